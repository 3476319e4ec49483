"""Whatever a data set gives with a sample, however a model returns its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import as_classification_dataset
from torch import Tensor, nn
from torch.utils.data import Dataset

from protocl.heads import NearestMean
from protocl.memory import PrototypeMemory
from protocl.strategies import (
    PRD,
    DriftCompensation,
    IL2APlugin,
    PASSPlugin,
    PRDPlugin,
    ProtoCL,
    PrototypePlugin,
)
from protocl.strategies.exemplar_free.strategy import ExemplarFree
from protocl.strategies.frozen.base import FrozenBackbone
from protocl.strategies.training.views import named_views
from tests.strategies.small import Net, build_net, build_strategy, outputs_at_eval, quiet_evaluator
from tests.strategies.small import train_on as train


class Rows(Dataset[Any]):
    """Samples of two classes, with what ``extra`` adds to each."""

    def __init__(self, extra: Callable[[int, int], tuple[Any, ...]], first: int = 0) -> None:
        generator = torch.Generator().manual_seed(first)
        self.targets = [first + i % 2 for i in range(24)]
        centres = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(9))
        self.x = centres[self.targets] + 0.1 * torch.rand(24, 1, 8, 8, generator=generator)
        self.extra = extra

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        y = self.targets[index]
        return self.x[index], y, *self.extra(index, y)


EXTRAS: dict[str, Callable[[int, int], tuple[Any, ...]]] = {
    "nothing": lambda index, y: (),
    "index": lambda index, y: (index,),
    "weight": lambda index, y: (0.5,),
    "index and box": lambda index, y: (index, torch.zeros(4)),
}


def stream_of(extra: Callable[[int, int], tuple[Any, ...]]) -> Any:
    sets = [as_classification_dataset(Rows(extra, first)) for first in (0, 2)]
    return benchmark_from_datasets(train=sets, test=sets)


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda out: {"logits": out},
    "tuple": lambda out: (out, None),
    "object": lambda out: type("Output", (), {"logits": out})(),
}


class Wrapped(Net):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


def build(name: str, model: nn.Module, **settings: Any) -> Any:
    common: dict[str, Any] = {
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "train_mb_size": 8, "train_epochs": 1, "evaluator": quiet_evaluator(), **settings,
    }  # fmt: skip
    if name == "prd":
        return PRD(model=model, plugin=PRDPlugin(views=named_views("copies")), **common)
    if name == "protocl":
        return ProtoCL(model=model, **common)
    method = {"pass": PASSPlugin, "il2a": IL2APlugin}[name]()
    return ExemplarFree(model=model, method=method, **common)


TRAINED = ["prd", "protocl", "pass", "il2a"]


def accuracy(strategy: Any, stream: Any) -> float:
    outputs = torch.cat(outputs_at_eval(strategy, stream))
    labels = torch.tensor([y for experience in stream for y in experience.dataset.targets])
    return (outputs.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("collect", ["extra_pass", "training"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_only_a_task_label_is_a_task_label(extra: str, collect: Any) -> None:
    benchmark = stream_of(EXTRAS[extra])
    plugin = PrototypePlugin(collect=collect)
    strategy = build_strategy("naive", [plugin])
    train(strategy, benchmark.train_stream)
    assert plugin.tasks.seen == {}
    assert plugin.memory is not None
    assert plugin.memory.counts.tolist() == [12] * 4
    if collect == "extra_pass":  # the others are from training mode, under a backbone that moved
        assert accuracy(strategy, benchmark.test_stream) == 1.0


@pytest.mark.parametrize("name", TRAINED)
def test_extra_columns_do_not_change_what_is_learned(name: str) -> None:
    outputs = []
    for extra in ("nothing", "index and box"):
        torch.manual_seed(0)
        strategy = build(name, build_net())
        benchmark = stream_of(EXTRAS[extra])
        train(strategy, benchmark.train_stream)
        outputs.append(torch.cat(outputs_at_eval(strategy, benchmark.test_stream)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", ["prototypes", *TRAINED])
def test_a_model_may_return_its_scores_in_an_object(name: str, wrap: str) -> None:
    outputs = []
    for returned in (lambda out: out, WRAPS[wrap]):
        torch.manual_seed(0)
        model, benchmark = Wrapped(returned), stream_of(EXTRAS["nothing"])
        if name == "prototypes":
            strategy = build_strategy("naive", [PrototypePlugin()], model, train_epochs=0)
        else:
            strategy = build(name, model)
        torch.manual_seed(0)
        train(strategy, benchmark.train_stream)
        outputs.append(torch.cat(outputs_at_eval(strategy, benchmark.test_stream)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("model", [nn.Identity(), nn.Flatten()])
def test_a_feature_extractor_is_a_model(model: nn.Module) -> None:
    benchmark = stream_of(EXTRAS["nothing"])
    strategy = FrozenBackbone(model=model, head=NearestMean(), evaluator=quiet_evaluator())
    train(strategy, benchmark.train_stream)
    expected = PrototypeMemory(64)
    for experience in benchmark.train_stream:
        rows = experience.dataset
        expected.update(torch.stack([r[0] for r in rows]).flatten(1), torch.tensor(rows.targets[:]))
    assert strategy.memory is not None
    torch.testing.assert_close(strategy.memory.means, expected.means)
    outputs = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
    assert outputs.shape[1] == 4
    assert accuracy(strategy, benchmark.test_stream) == 1.0


class SameDraws:
    """Avalanche's loaders draw from the global state when a stream is evaluated; undo that."""

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.state = torch.get_rng_state()

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        torch.set_rng_state(self.state)


@pytest.mark.parametrize("name", TRAINED)
def test_an_evaluation_in_the_middle_of_an_epoch_changes_nothing(name: str) -> None:
    outputs = []
    for eval_every in (-1, 2):
        torch.manual_seed(0)
        strategy = build(
            name, build_net(), eval_every=eval_every, peval_mode="iteration", plugins=[SameDraws()]
        )
        benchmark = stream_of(EXTRAS["nothing"])
        train(strategy, benchmark.train_stream, eval_streams=[benchmark.test_stream])
        outputs.append(torch.cat(outputs_at_eval(strategy, benchmark.test_stream)))
    assert torch.equal(*outputs)


def test_drift_compensation_takes_extra_columns() -> None:
    benchmark, plugin = stream_of(EXTRAS["index"]), PrototypePlugin()
    strategy = build_strategy("naive", [DriftCompensation(plugin, "ldc"), plugin])
    train(strategy, benchmark.train_stream)
    assert plugin.memory is not None
    assert plugin.memory.counts.tolist() == [12] * 4


def test_a_model_that_another_strategy_froze_is_refused_in_words() -> None:
    model = build_net()
    settings: dict[str, Any] = {"head": NearestMean(), "evaluator": quiet_evaluator()}
    FrozenBackbone(model=model, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"froze it; give a new model"):
        FrozenBackbone(model=model, first_experience_epochs=1, optimizer=optimizer, **settings)


def test_adaptation_to_an_online_stream() -> None:
    benchmark, model = stream_of(EXTRAS["nothing"]), build_net()
    stream = split_online_stream(benchmark.train_stream, experience_size=8)
    strategy = FrozenBackbone(
        model=model, head=NearestMean(), first_experience_epochs=1, evaluator=quiet_evaluator(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
    )  # fmt: skip
    train(strategy, stream)
    assert strategy.memory is not None
    assert strategy.memory.counts.tolist() == [12] * 4
