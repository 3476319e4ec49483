"""Prototypes of old classes in new spaces: EASE's numbers, from memories that may be merged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protocl import PrototypeMemory
from protocl.heads.joint.completed import completed_prototypes
from tests.golden.statistics_methods import values

F64 = torch.float64


def spaces(prototypes: torch.Tensor) -> list[PrototypeMemory]:
    """Three spaces of four features; two classes more with each."""
    return [
        PrototypeMemory(4).update(
            prototypes[2 * space :, 4 * space : 4 * space + 4], torch.arange(2 * space, 6)
        )
        for space in range(3)
    ]


def test_the_authors_numbers():
    golden = values("ease_synthesis")
    given = torch.from_numpy(np.random.RandomState(4).standard_normal((6, 12)))
    for task in range(2):
        given[2 * task : 2 * task + 2, 4 * task + 4 :] = 0
    expected = torch.tensor(golden["prototypes_given"], dtype=F64)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-9)
    classes, found = completed_prototypes(spaces(given))
    assert classes.tolist() == list(range(6))
    expected = torch.tensor(golden["completed_recalc_sim"], dtype=F64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_clients_merge_to_what_one_place_gives():
    x, y = torch.randn(60, 12, dtype=F64), torch.arange(60) % 6
    parts = []
    for chosen in (y >= 0, torch.arange(60) < 30, torch.arange(60) >= 30):
        parts.append([
            PrototypeMemory(4).update(
                x[keep := chosen & (y >= 2 * space)][:, 4 * space : 4 * space + 4], y[keep]
            )
            for space in range(3)
        ])  # fmt: skip
    whole, *clients = parts
    merged = [sum(memories) for memories in zip(*clients, strict=True)]
    torch.testing.assert_close(completed_prototypes(merged)[1], completed_prototypes(whole)[1])


def test_what_is_known_stays_and_what_does_not_fit_is_refused():
    memories = spaces(torch.randn(6, 12, dtype=F64))
    alone = completed_prototypes(memories[:1])[1]
    assert torch.equal(alone, memories[0].means)
    found = completed_prototypes(memories)[1]
    assert torch.equal(found[4:, 8:], memories[2].means)
    same = completed_prototypes([memories[0], memories[0]])[1]  # nothing is absent
    assert torch.equal(same, torch.cat([memories[0].means] * 2, 1))
    with pytest.raises(ValueError, match=r"memory 1 knows classes \[2, 3\]"):
        completed_prototypes(memories[::-1])
    for bad in ([], [memories[0], PrototypeMemory(4)]):
        with pytest.raises(ValueError, match="one memory or more, each with a class"):
            completed_prototypes(bad)
