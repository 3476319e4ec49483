"""Memories, heads and updates on the device are those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from protocl import PrototypeMemory
from protocl.memory.pending import PendingUpdates
from protocl.registry import HEADS

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(600, 48, generator=GENERATOR)
Y = torch.randint(9, (600,), generator=GENERATOR)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
def test_memory(device: torch.device, level: Any, exact: bool) -> None:
    def learned(place: torch.device) -> PrototypeMemory:
        x, y = X.to(place), Y.to(place)
        memory = PrototypeMemory(48, level, exact=exact).to(place).update(x[:400], y[:400])
        memory.merge(PrototypeMemory(48, level, exact=exact).to(place).update(x[400:], y[400:]))
        gone = PrototypeMemory(48, level, exact=exact).to(place).update(x[:90], y[:90])
        return memory.subtract(gone).to("cpu")

    found, expected = learned(device), learned(torch.device("cpu"))
    assert torch.equal(found.counts, expected.counts)
    if exact:
        assert all(torch.equal(found.parts()[n], part) for n, part in expected.parts().items())
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-12, atol=1e-12)
    if level != "mean":
        torch.testing.assert_close(
            found.second_moment, expected.second_moment, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", ["mean", "diagonal", "shared"])
def test_updates_wait_for_nothing(
    device: torch.device, no_waiting: Any, level: Any, exact: bool, dtype: torch.dtype
) -> None:
    memory = PrototypeMemory(48, level, exact=exact).to(device)
    pending = PendingUpdates(memory, range(9))
    given = [(x.to(device), y.to(device)) for x, y in zip(X.to(dtype).split(100), Y.split(100),
                                                          strict=True)]  # fmt: skip
    with no_waiting():
        for x, y in given:
            pending.update(x, y)
    found = pending.flush().to("cpu")
    expected = PrototypeMemory(48, level, exact=exact).update(X.to(dtype), Y)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-12, atol=1e-12)
    if exact:
        assert all(torch.equal(found.parts()[n], part) for n, part in expected.parts().items())


@pytest.mark.parametrize("name", HEADS.names())
def test_head(device: torch.device, name: str) -> None:
    def answers(place: torch.device) -> torch.Tensor:
        head = HEADS.get(name)(dtype=torch.float64) if name != "bayesian" else HEADS.get(name)()
        x, y = X.abs().to(place), Y.to(place)
        memory = head.new_memory(48).to(place).update(x, y)
        logits: torch.Tensor = head.to(place).fit(memory)(x[:50]).cpu()
        return logits

    found, expected = answers(device), answers(torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
