"""Updates that wait give what updates give, and the device is asked for nothing on the way."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from protocl import PrototypeMemory
from protocl.memory.feature_maps import UnitNorm
from protocl.memory.pending import PendingUpdates
from tests.host_syncs import host_syncs
from tests.second_device import second_device

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(90, 6, generator=GENERATOR)
Y = torch.randint(2, 9, (90,), generator=GENERATOR)
CLASSES = range(12)
KINDS = [(level, exact) for level in ("mean", "diagonal", "shared") for exact in (False, True)]


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(25), Y.split(25), strict=True))


@pytest.mark.parametrize("settings", [{}, {"raw_means": True}, {"moments": "single"}])
@pytest.mark.parametrize("classes", [CLASSES, None])
@pytest.mark.parametrize(("level", "exact"), KINDS)
def test_the_sums_are_those_of_updates(
    level: Any, exact: bool, classes: Any, settings: dict[str, Any]
) -> None:
    expected, found = (PrototypeMemory(6, level, exact=exact, **settings) for _ in range(2))
    pending = PendingUpdates(found, classes)
    for number, (x, y) in enumerate(batches()):
        expected.update(x, y)
        pending.update(x, y)
        if number == 1:
            pending.flush()
    pending.flush()
    assert found.rounded == expected.rounded
    for name, part in expected.parts().items():
        if exact or name in ("class_ids", "count"):
            assert torch.equal(found.parts()[name], part), name
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-15, atol=1e-15)
    if level != "mean":
        torch.testing.assert_close(
            found.second_moment, expected.second_moment, rtol=1e-14, atol=1e-14
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_behind_a_map(dtype: torch.dtype) -> None:
    expected, found = (
        PrototypeMemory(6, "shared", feature_map=UnitNorm(), exact=True) for _ in range(2)
    )
    with PendingUpdates(found, CLASSES) as pending:
        pending.update(X.to(dtype), Y)
    expected.update(X.to(dtype), Y)
    assert torch.equal(found.second, expected.second)
    assert torch.equal(found.sum, expected.sum)


@pytest.mark.parametrize(("level", "exact"), KINDS)
def test_the_host_waits_for_nothing_or_once_a_batch(level: Any, exact: bool) -> None:
    with second_device() as there, host_syncs() as syncs:
        given = [(x.to(there), y.to(there)) for x, y in batches()]
        memory = PrototypeMemory(6, level, exact=exact).to(there)
        declared, read = PendingUpdates(memory, CLASSES), PendingUpdates(memory)
        before = len(syncs.found)
        for x, y in given:
            declared.update(x, y)
        assert syncs.found[before:] == []
        for x, y in given:
            read.update(x, y)
        assert len(syncs.found) - before == len(given)
        assert all("labels_on_host" in place for place in syncs.found[before:])
        total = int(declared.flush().total)
    assert total == len(X)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (X.clone().fill_(float("nan")), Y, ValueError, "NaN or infinite"),
        (X, Y + 10, ValueError, "not among the classes"),
        (X, -Y, ValueError, "not among the classes"),
        (1e4 * X, Y, OverflowError, "do not fit"),
    ],
)
def test_what_is_wrong_is_found_by_the_flush_and_none_is_added(
    x: Tensor, y: Tensor, error: type[Exception], message: str
) -> None:
    memory = PrototypeMemory(6, "shared", exact=True).update(X, Y)
    before = {name: part.clone() for name, part in memory.parts().items()}
    pending = PendingUpdates(memory, CLASSES).update(X, Y).update(x, y)
    with pytest.raises(error, match=message):
        pending.flush()
    assert all(torch.equal(part, before[name]) for name, part in memory.parts().items())
    pending.update(X, Y).flush()
    assert memory.total == 2 * len(X)


def test_floating_features_beyond_all_reason() -> None:
    with pytest.raises(OverflowError), PendingUpdates(PrototypeMemory(6), CLASSES) as pending:
        pending.update(X.double() * 1e160, Y)


def test_what_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"memory\.update"):
        PendingUpdates(PrototypeMemory(6, "full"))
    with pytest.raises(ValueError, match="class -1"):
        PendingUpdates(PrototypeMemory(6), [-1, 2])
    with pytest.raises(ValueError, match="label -2"):
        PendingUpdates(PrototypeMemory(6)).update(X[:1], torch.tensor([-2]))
    with pytest.raises(TypeError, match="floating"):
        PendingUpdates(PrototypeMemory(6), CLASSES).update(Y[:, None].expand(-1, 6), Y)


def test_nothing_is_nothing() -> None:
    memory = PrototypeMemory(6)
    with PendingUpdates(memory, []) as pending:
        pending.update(X[:0], Y[:0])
    assert len(memory) == 0
    with contextlib.suppress(ZeroDivisionError), PendingUpdates(memory, CLASSES) as pending:
        pending.update(X, Y)
        raise ZeroDivisionError
    assert len(memory) == 0
