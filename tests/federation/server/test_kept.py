"""What is kept of a client that sends often: added up, and still what it sent."""

from __future__ import annotations

import pytest
import torch

from protocl import PrototypeMemory
from protocl.federation.server.kept import MAX_PARTS
from protocl.federation.server.state import MergedMemory, same_statistics
from protocl.federation.wire.messages import Contribution

DIM = 4


def part(number: int, like: PrototypeMemory) -> PrototypeMemory:
    """Other classes, and another number of samples, in each."""
    n = number % 3 + 1
    x = torch.randn(n, DIM, generator=torch.Generator().manual_seed(number))
    return like.empty_like().update(x, torch.arange(n) + number % 5)


@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
@pytest.mark.parametrize("exact", [True, False])
def test_many_contributions_of_a_client_are_their_sum_and_can_be_forgotten(level, exact):
    like = PrototypeMemory(DIM, level, exact=exact, fingerprint="b")
    server, own = MergedMemory(like), like.empty_like()
    server.accept(Contribution(other := part(99, like), "o", 1, "full"), client="other")
    for number in range(3 * MAX_PARTS):
        kind = "delta" if number else "full"
        own.merge(sent := part(number, like))
        server.accept(Contribution(sent, "e", number + 1, kind), client="a")
        assert server.contribution_of("a").total == own.total
    if exact:
        assert same_statistics(server.contribution_of("a"), own)
    assert torch.allclose(server.contribution_of("a").means, own.means)
    server.forget_client("a")
    assert server.memory.counts.tolist() == other.counts.tolist()
    if exact:
        assert same_statistics(server.memory, other)
