"""Batches that hide the inputs, labels or classes from who reads them by position and type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from avalanche.training import Naive
from torch import Tensor, nn
from torch.utils.data import Dataset

from protocl.strategies import NAPAVQ, PRD, PASSPlugin, PRDPlugin, PrototypePlugin
from protocl.strategies.plugin.task_classes import STRIDE, TaskClasses
from tests.strategies.generated import ByName, Form, Model, Samples, images
from tests.strategies.small import (
    assert_equal_weights,
    build_net,
    build_strategy,
    outputs_at_eval,
    quiet_evaluator,
    train_on,
    weights_of,
)

LABELS = [[0, 1, 0, 1, 1, 0], [3, 2, 3, 2, 2, 3, 2]]
COUNTS = [3, 3, 4, 3]
both = pytest.mark.parametrize("collect", ["extra_pass", "training"])


def stream_of(*parts: Dataset[Any]) -> Any:
    sets = [as_classification_dataset(part) for part in parts]  # type: ignore[call-overload]
    return benchmark_from_datasets(train=sets, test=sets)


def hosted(kind: Any, model: nn.Module, plugin: PrototypePlugin, **settings: Any) -> Any:
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)  # type: ignore[union-attr]
    return kind(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), plugins=[plugin],
        criterion=nn.CrossEntropyLoss(), evaluator=quiet_evaluator(),
        **{"train_mb_size": 5, "eval_mb_size": 7, **settings},
    )  # fmt: skip


class Pairs(Samples):
    """Two inputs before the label."""

    def __getitem__(self, index: int) -> Any:
        return self.x[index], torch.tensor(1 + index % 3), self.targets[index]


class ByPosition(Naive):
    """Reads them."""

    @property
    def mb_x(self) -> Any:
        return tuple(self.mbatch[:2])

    @property
    def mb_y(self) -> Any:
        return self.mbatch[2]


class TakesPairs(Model):
    def forward(self, pair: Any) -> Any:
        return super().forward(pair[0] * pair[1].view(-1, 1, 1, 1))


class Nested(ByName):
    """Hands the model a dictionary."""

    @property
    def mb_x(self) -> Any:
        return {"pixels": self.mbatch["image"]}


class TakesNested(Model):
    def forward(self, x: Any) -> Any:
        return super().forward(x["pixels"])


@both
@pytest.mark.parametrize(
    ("host", "model", "data", "form"),
    [
        (ByPosition, TakesPairs, Pairs, Form()),
        (Nested, TakesNested, Samples, Form("dictionary")),
    ],
)
def test_the_host_alone_knows_where_inputs_and_labels_are(
    host: Any, model: Any, data: Any, form: Form, collect: Any
) -> None:
    parts = (data(images(y, t), y, form) for t, y in enumerate(LABELS))
    benchmark, plugin = stream_of(*parts), PrototypePlugin(collect=collect)
    strategy = hosted(host, model(), plugin)
    train_on(strategy, benchmark.train_stream)
    assert plugin.memory is not None
    assert plugin.memory.counts.tolist() == COUNTS
    if collect == "extra_pass":  # the same samples again replace what they gave
        train_on(strategy, benchmark.train_stream[1:])
        assert plugin.memory.counts.tolist() == COUNTS
    outputs = torch.cat(outputs_at_eval(strategy, benchmark.test_stream))
    assert outputs.shape == (sum(COUNTS), 4)


class Doubles(Naive):
    def _unpack_minibatch(self) -> None:
        super()._unpack_minibatch()
        self.mbatch[0] = 2 * self.mbatch[0]


@pytest.mark.parametrize("make", [PrototypePlugin, PASSPlugin, lambda: PRDPlugin(views=None)])
def test_features_are_of_the_inputs_that_the_host_gives_its_model(make: Any) -> None:
    answers = []
    for host, factor in ((Doubles, 1), (Naive, 2)):
        x = factor * images(LABELS[0], 0)
        benchmark, plugin = stream_of(Samples(x, LABELS[0], Form())), make()
        torch.manual_seed(0)
        model = Model()
        strategy = host(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=nn.CrossEntropyLoss(), train_mb_size=6, plugins=[plugin],
            evaluator=quiet_evaluator(),
        )  # fmt: skip
        train_on(strategy, benchmark.train_stream, eval_streams=[])
        answers.append(torch.cat(outputs_at_eval(strategy, benchmark.test_stream)))
    torch.testing.assert_close(*answers)


class Squeezes(Model):
    def embedded(self, x: Tensor) -> Tensor:
        return super().embedded(x).squeeze()


@both
@pytest.mark.parametrize("samples", [2, 6])
def test_a_model_may_drop_the_dimension_of_a_single_sample(collect: Any, samples: int) -> None:
    labels = [0, 1] * (samples // 2)
    benchmark = stream_of(Samples(images(labels, 0), labels, Form()))
    plugin = PrototypePlugin(collect=collect)
    strategy = hosted(Naive, Squeezes(), plugin, train_mb_size=samples, eval_mb_size=samples - 1)
    train_on(strategy, benchmark.train_stream, eval_streams=[])
    assert plugin.memory is not None
    assert plugin.memory.total == samples
    assert torch.cat(outputs_at_eval(strategy, benchmark.test_stream)).shape == (samples, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: build_strategy("naive", [PrototypePlugin(collect="training")]),
        lambda: build_strategy("naive", [PASSPlugin()]),
        lambda: PRD(
            model=(net := build_net()), optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            evaluator=quiet_evaluator(),
        ),
    ],
)  # fmt: skip
def test_a_data_set_that_hides_its_classes_is_refused_before_training(make: Any) -> None:
    data = AvalancheDataset([Samples(images(LABELS[0], 0), LABELS[0], Form())])
    strategy = make()
    before = weights_of(strategy.model)
    with pytest.raises(TypeError, match=r"has no targets.*as_classification_dataset"):
        train_on(strategy, benchmark_from_datasets(train=[data]).train_stream)
    assert_equal_weights(strategy.model, before)


def test_what_an_epoch_drops_is_read_again() -> None:
    labels = [0, 1, 0, 1, 1, 0, 1]
    benchmark = stream_of(Samples(images(labels, 0), labels, Form()))
    plugin = PrototypePlugin(collect="training")
    strategy = hosted(Naive, Model(), plugin, train_mb_size=3)
    with pytest.warns(UserWarning, match=r"6 samples of the experience.*all 7 samples"):
        strategy.train(benchmark.train_stream[0], drop_last=True)
    assert plugin.memory is not None
    assert plugin.memory.counts.tolist() == [3, 4]


def test_ids_of_few_bits_do_not_overflow_in_what_is_made_of_them() -> None:
    labels = [70, 6, 70, 6]  # four views: 280 and 24 are the same in eight bits
    means = []
    for kind in (int, np.uint8):
        data = Samples(images([0, 1, 0, 1], 0), labels, Form())
        data.targets = [kind(label) for label in labels]
        torch.manual_seed(0)
        net = build_net(classes=71)
        strategy = NAPAVQ(
            model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.01), train_epochs=1,
            train_mb_size=2, evaluator=quiet_evaluator(),
        )  # fmt: skip
        train_on(strategy, stream_of(data).train_stream, eval_streams=[])
        assert strategy.memory is not None
        means.append((strategy.memory.classes, strategy.memory.means))
    assert torch.equal(means[0][0], means[1][0])
    assert torch.equal(means[0][1], means[1][1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_tasks_of_few_bits_tell_classes_apart(dtype: torch.dtype) -> None:
    tasks = TaskClasses(mask=True, per_task=True)
    ids = tasks.note(torch.tensor([1, 1], dtype=dtype), torch.tensor([0, 2], dtype=dtype))
    assert ids.tolist() == [1, 1 + 2 * STRIDE]
    assert tasks.seen == {0: {1}, 2: {1}}
