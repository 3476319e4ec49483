"""Whatever a stream holds, the plugin's statistics are those of each sample, and cost nothing."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.strategies import PrototypePlugin
from protocl.strategies.plugin.model_output import ScoresCrossEntropy
from tests.strategies import small
from tests.strategies.generated import (
    CLASSES,
    DTYPES,
    WRAPS,
    ByName,
    Form,
    Model,
    benchmark_of,
    forms,
    images,
    streams,
)
from tests.strategies.small import assert_equal_weights, build_strategy, outputs_at_eval, train_on

PLAIN = ("der", "gem", "lwf")
"""Strategies of Avalanche that read batches ``(x, y, t)`` and tensors as output alone."""

DOORS = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
}


class Trial:
    """A strategy of Avalanche that trains a classifier on a still backbone, through a stream.

    Args:
        host: name of the strategy.
        stream: labels of each experience.
        form: what its data sets give.
        wrap: how the model returns its output.
        sizes: of mini-batches in training and in evaluation.
        collect: how the plugin collects; None for no plugin.
    """

    def __init__(
        self, host: str, stream: Any, form: Form, wrap: str, sizes: Any, collect: Any
    ) -> None:
        if host in PLAIN:
            form, wrap = Form(dtype=form.dtype, contiguous=form.contiguous), "tensor"
        self.stream, self.form = stream, form
        self.benchmark = benchmark_of(stream, form, tasked=host in PLAIN)
        torch.manual_seed(0)
        self.model = Model(wrap, DTYPES[form.dtype][1])
        self.model.features.requires_grad_(False)
        self.plugin = None if collect is None else PrototypePlugin(collect=collect)
        self.strategy = build_strategy(
            host, [] if self.plugin is None else [self.plugin], self.model,
            train_mb_size=sizes[0], eval_mb_size=sizes[1], criterion=ScoresCrossEntropy(),
        )  # fmt: skip
        train_on(self.strategy, self.benchmark.train_stream, eval_streams=[])
        self.random_state = torch.get_rng_state()

    def features(self) -> Tensor:
        """``(N, 8)`` of all samples in their order."""
        batches = [images(labels, t, self.form) for t, labels in enumerate(self.stream)]
        with torch.no_grad():
            return torch.cat([self.model.embedded(batch) for batch in batches])


def assert_statistics_of(memory: PrototypeMemory | None, features: Tensor, stream: Any) -> None:
    """Counts are exact, sums those of float64."""
    assert memory is not None
    labels = torch.tensor([label for part in stream for label in part])
    counts = labels.bincount(minlength=CLASSES)
    sums = torch.zeros(CLASSES, 8, dtype=torch.float64).index_add_(0, labels, features.double())
    seen = counts.nonzero().flatten()
    assert torch.equal(memory.classes, seen)
    assert torch.equal(memory.counts, counts[seen])
    torch.testing.assert_close(memory.sums, sums[seen], rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def _hosts_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(small.STRATEGIES, "by name", ByName)


@pytest.mark.parametrize("collect", ["extra_pass", "training"])
@settings(max_examples=40, deadline=None)
@given(
    host=st.sampled_from(["naive", "replay", "ewc", "si", *PLAIN]),
    stream=streams,
    form=forms,
    wrap=st.sampled_from(sorted(WRAPS)),
    sizes=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    door=st.sampled_from(sorted(DOORS)),
    mode=st.booleans(),
)
@example("naive", [[0, 1]], Form(label="tensor"), "tensor", (2, 2), "plain", True)
@example("replay", [[0], [0]], Form(), "tensor", (1, 1), "plain", True)
@example("by name", [[3, 0], [0]], Form("dictionary"), "dict", (2, 1), "plain", True)
@example("by name", [[1]], Form("dictionary", "tensor"), "tensor", (1, 1), "no_grad", False)
def test_statistics_are_those_of_each_sample_once(
    collect: Any, host: str, stream: Any, form: Form, wrap: str, sizes: Any, door: str, mode: bool
) -> None:
    trial = Trial(host, stream, form, wrap, sizes, collect)
    assert trial.plugin is not None
    features = trial.features()
    assert_statistics_of(trial.plugin.memory, features, stream)

    context: AbstractContextManager[Any] = DOORS[door]()
    trial.model.train(mode)
    with context:
        inside = torch.cat(outputs_at_eval(trial.strategy, trial.benchmark.test_stream))
    outputs = torch.cat(outputs_at_eval(trial.strategy, trial.benchmark.test_stream))
    assert torch.equal(inside, outputs)
    expected = trial.plugin.logits(features, width=CLASSES)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
    assert_statistics_of(trial.plugin.memory, features, stream)


@pytest.mark.parametrize("collect", ["extra_pass", "training"])
@settings(max_examples=12, deadline=None)
@given(
    host=st.sampled_from(["naive", "replay", "ewc", "si", *PLAIN]),
    stream=streams,
    form=forms,
    wrap=st.sampled_from(sorted(WRAPS)),
    sizes=st.tuples(st.integers(1, 10), st.integers(1, 10)),
)
def test_the_host_does_not_notice(
    collect: Any, host: str, stream: Any, form: Form, wrap: str, sizes: Any
) -> None:
    bare = Trial(host, stream, form, wrap, sizes, None)
    beside = Trial(host, stream, form, wrap, sizes, collect)
    assert_equal_weights(bare.model, beside.model)
    assert torch.equal(bare.random_state, beside.random_state)


@settings(max_examples=8, deadline=None)
@given(stream=streams, sizes=st.tuples(st.integers(1, 10), st.integers(1, 10)))
def test_evaluation_in_half_precision_leaves_the_statistics(stream: Any, sizes: Any) -> None:
    trial = Trial("naive", stream, Form(), "tensor", sizes, "extra_pass")
    before = outputs_at_eval(trial.strategy, trial.benchmark.test_stream)
    with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
        half = torch.cat(outputs_at_eval(trial.strategy, trial.benchmark.test_stream))
    seen = sorted({label for part in stream for label in part})
    assert half[:, seen].isfinite().all()
    after = outputs_at_eval(trial.strategy, trial.benchmark.test_stream)
    assert torch.equal(torch.cat(before), torch.cat(after))
