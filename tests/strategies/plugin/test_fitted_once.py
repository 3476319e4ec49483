"""However often is evaluated, a head is fitted once a change of the memory."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from protocl.heads.base import Head
from protocl.registry import HEADS
from protocl.strategies import PrototypePlugin
from tests.strategies.small import build_strategy, train_on


def fits_of(head: Head, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The revisions of the memory that ``head`` derives itself from, as they come."""
    seen: list[str] = []
    fit = head._fit

    def counted(memory: Any) -> None:
        seen.append(memory.revision)
        fit(memory)

    monkeypatch.setattr(head, "_fit", counted)
    return seen


@pytest.mark.parametrize("name", HEADS.names())
@pytest.mark.parametrize("collect", ["extra_pass", "training"])
def test_evaluation_never_fits_again(
    name: str, collect: Any, benchmark: Any, monkeypatch: pytest.MonkeyPatch
):
    head = HEADS.get(name)()
    seen = fits_of(head, monkeypatch)
    strategy = build_strategy("naive", [PrototypePlugin(head, collect=collect)], train_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, experience in enumerate(benchmark.train_stream, start=1):
            train_on(strategy, [experience])
            for stream in (benchmark.test_stream, benchmark.train_stream[:1], []):
                strategy.eval(stream)
            assert len(seen) == number == len(set(seen))


def test_a_strength_of_ridge_that_was_chosen_is_not_chosen_again(monkeypatch: pytest.MonkeyPatch):
    from protocl.heads import Ridge, ridge

    done = []
    monkeypatch.setattr(
        ridge, "decompose", lambda m, *a, f=ridge.decompose: done.append(m) or f(m, *a)
    )
    features, labels = torch.randn(60, 8), torch.arange(60) % 3
    memory = Ridge().new_memory(8).update(features, labels)
    head = Ridge().fit(memory).fit(memory)
    head.calibrate(memory)
    head.predict_proba(features)
    assert done == [memory]
