"""Clients side by side in blocks of classes: the same result, in bounded memory."""

from __future__ import annotations

import pytest
import torch

from protocl import PrototypeMemory
from protocl.bench.peak_memory import MIB, PeakMeter
from protocl.federation.robust import side_by_side
from protocl.federation.robust.rules import CENTRES, ConsistencyScreen, RobustMerge
from protocl.federation.robust.side_by_side import SideBySide
from protocl.federation.wire.messages import Contribution

WIDTH = 64


def client(seed: int, classes: range, level: str = "mean", exact: bool = False) -> PrototypeMemory:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes).repeat(3)
    x = torch.randn(len(labels), WIDTH, generator=generator) + 0.1 * (labels[:, None] % 7)
    return PrototypeMemory(WIDTH, level, exact=exact).update(x, labels)  # type: ignore[arg-type]


def unequal() -> list[PrototypeMemory]:
    """Classes of one client, of two, and of several."""
    spans = ((0, 12), (3, 9), (4, 15), (4, 7), (6, 22), (40, 41))
    return [client(seed, range(*span)) for seed, span in enumerate(spans)]


def test_every_class_is_in_one_block_with_those_who_hold_it():
    memories = unequal()
    seen: dict[int, dict[int, int]] = {}
    for block in SideBySide(memories):
        for place, number in enumerate(block.members.tolist()):
            for column, class_id in enumerate(block.classes.tolist()):
                if count := int(block.counts[place, column]):
                    seen.setdefault(class_id, {})[number] = count
                    memory = memories[number]
                    row = memory.classes.tolist().index(class_id)
                    assert torch.equal(block.means[place, column], memory.means[row])
    held: dict[int, dict[int, int]] = {}
    for number, memory in enumerate(memories):
        for class_id in memory.classes.tolist():
            held.setdefault(class_id, {})[number] = 3
    assert seen == held


@pytest.mark.parametrize("centre", CENTRES)
@pytest.mark.parametrize("elements", [1, 500, 3000])
@pytest.mark.parametrize("defended", [False, True])
def test_blocks_change_nothing(monkeypatch, centre, elements, defended):
    plain = RobustMerge(centre)
    strict = RobustMerge(centre, max_norm=1.1, max_count=1.0, min_consistency=0.3, share_votes=True)
    rule, memories = strict if defended else plain, unequal()
    whole = rule(memories)
    monkeypatch.setattr(side_by_side, "_ELEMENTS", elements)
    parts = rule(memories)
    assert torch.equal(parts.classes, whole.classes)
    assert torch.equal(parts.counts, whole.counts)
    torch.testing.assert_close(parts.means, whole.means, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("level", ["shared", "full"])
def test_levels_with_moments_give_the_same_means(level):
    memories = [client(seed, range(seed, seed + 4), level, exact=True) for seed in range(4)]
    plain = [client(seed, range(seed, seed + 4), exact=True) for seed in range(4)]
    assert torch.equal(RobustMerge()(memories).means, RobustMerge()(plain).means)


@pytest.mark.parametrize("liars", [1, 2])
def test_a_message_of_ten_thousand_classes_needs_little_memory(liars):
    """Before it took 795 MiB; what clients sent is there anyway."""
    rule = RobustMerge(max_norm=1.5, max_count=2.0, min_consistency=0.6, share_votes=True)
    honest = [client(seed, range(10)) for seed in range(20 - liars)]
    sent = [*honest, *(client(seed, range(10_000)) for seed in range(100, 100 + liars))]
    with PeakMeter() as meter:
        merged = rule(sent)
        ConsistencyScreen(0.5)([Contribution(memory, "e", 1) for memory in sent], honest[0])
    assert meter.rise < 256 * MIB
    assert len(merged) <= 10_000
    torch.testing.assert_close(merged.means[:10], rule(honest).means, rtol=0.2, atol=0.2)
