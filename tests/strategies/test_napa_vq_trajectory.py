"""NAPA-VQ inside Avalanche, step by step, against the authors' own training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.testing import assert_close

from protocl.data import TensorData
from protocl.strategies.exemplar_free.neural_gas import mix_prototypes
from protocl.strategies.napa_vq import NAPAVQ, NAPAVQLoss, NAPAVQPlugin
from tests.golden.napa_vq import golden
from tests.strategies.small import outputs_at_eval, quiet_evaluator, train_on

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Inputs:
    """What the golden recipe draws, in its order."""

    def __init__(self) -> None:
        r = np.random.RandomState(334)
        self.weight, self.bias = tensor(r.randn(8, 48) / 8), tensor(r.randn(8) / 8)
        patterns = r.randn(4, 3, 4, 4)
        x = [patterns[[k] * 9 + [k + 1] * 9] + 0.5 * r.randn(18, 3, 4, 4) for k in (0, 2)]
        self.images = tensor(np.concatenate(x))
        self.orders = [r.permutation(18).tolist() for _ in range(2)]
        self.codes = [tensor(r.randn(8, 8)) for _ in range(2)]
        self.queries = tensor(patterns[[0, 1, 2, 3] * 2] + 0.5 * r.randn(8, 3, 4, 4))


def tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values)


class Network(nn.Module):
    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.hidden, self.classifier = nn.Linear(48, 8), nn.Linear(8, 4)
        self.hidden.weight.data, self.hidden.bias.data = inputs.weight, inputs.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.hidden(x.flatten(1)).relu())
        return out


class Follower:
    """Gives the method the golden draws, and compares each step."""

    def __init__(self, method: NAPAVQPlugin, inputs: Inputs, steps: list[dict[str, Any]]) -> None:
        self.method, self.inputs, self.steps, self.number = method, inputs, steps, 0
        codes = iter(inputs.codes)
        method.initial_codes = lambda *_: next(codes).clone()  # type: ignore[method-assign]
        method.mixtures = self.mixtures  # type: ignore[method-assign]

    def mixtures(self, count: int) -> tuple[Tensor, Tensor]:
        draws = self.steps[self.number]["draws"]
        anchors, shares = torch.tensor(draws["anchors"]), torch.tensor(draws["shares"])
        assert self.method.table is not None
        neighbours = torch.tensor(draws["neighbours"])
        return mix_prototypes(self.method.table, anchors, neighbours, shares), anchors

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        order = self.inputs.orders[self.number // 3]
        strategy.adapted_dataset = strategy.adapted_dataset.subset(order)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        expected = self.steps[self.number]
        assert_close(float(strategy.loss), expected["loss"]["total"], **CLOSE)
        gradients = {"W": strategy.model.hidden.weight, "C": self.method.parameters.codes}
        for name, parameter in gradients.items():
            assert parameter.grad is not None
            assert_close(float(parameter.grad.norm()), expected["grad_norm"][name], **CLOSE)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        expected, hidden = self.steps[self.number], strategy.model.hidden
        values = {"W": hidden.weight, "b": hidden.bias, "C": self.method.parameters.codes}
        for name, value in values.items():
            for key, number in expected[name].items():
                assert_close(float(_entry(value, key)), number, **CLOSE)
        if "edges" in expected:
            assert_close(self.method.parameters.edges, torch.tensor(expected["edges"]), **CLOSE)
        self.number += 1


def _entry(value: Tensor, key: str) -> Tensor:
    if key == "norm":
        return value.norm()
    if key == "norm_of_new_rows":
        return value[8:].norm()
    return value[tuple(map(int, key.split(",")))]


@pytest.mark.parametrize("indexing", ["per_sample", "one_for_all"])
@pytest.mark.parametrize("k", [15, 3])
def test_trajectory(k: int, indexing: str) -> None:
    expected, inputs = golden()["trajectory"][f"k{k}"], Inputs()
    experiences = [expected["first"], expected["second"][indexing]]
    loss = NAPAVQLoss(k=k, stable=False)
    method = NAPAVQPlugin(loss, code_lr=0.5, later_code_lr=0.05, code_init="random")
    follower = Follower(method, inputs, [step for part in experiences for step in part["steps"]])
    model = Network(inputs)
    strategy = NAPAVQ(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=2e-4),
        method=method, later_lr_factor=0.1, train_mb_size=6, plugins=[follower],
        evaluator=quiet_evaluator(),
    )  # fmt: skip
    train = TensorData(inputs.images, torch.arange(36) // 9)
    test = TensorData(inputs.queries, torch.arange(8) % 4)
    stream = nc_benchmark(
        train, test, 2, task_labels=False, shuffle=False, fixed_class_order=[0, 1, 2, 3]
    )
    for t, part in enumerate(experiences):
        train_on(strategy, stream.train_stream[t : t + 1], shuffle=False)
        after = part["after"]
        assert_close(method.prototypes(), torch.tensor(after["prototypes"]), **CLOSE)
        order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # Avalanche sorts samples by class
        answers = torch.cat(outputs_at_eval(strategy, stream.test_stream))[:, : 2 * t + 2]
        cosines = torch.tensor(after["query_cosines"])[order]
        assert_close(answers * loss.temperature, cosines, **CLOSE)
        predicted = torch.tensor(after["query_predictions"])[order]
        assert torch.equal(answers.argmax(1), predicted)
    assert follower.number == 6


def test_shares_of_mixtures_are_in_their_range() -> None:
    method = NAPAVQPlugin(NAPAVQLoss(mix=(0.6, 0.9)))
    method.old_rows, method.table = torch.tensor([0]), torch.eye(8)
    method.parameters.append(torch.zeros(8, 8))
    method.parameters.edges = torch.ones(8, 8)
    mixed, anchors = method.mixtures(400)
    shares = mixed.gather(1, anchors[:, None]).squeeze(1)
    apart = shares[shares < 1]  # a neighbour may be the anchor itself
    assert apart.min() >= 0.6
    assert apart.max() <= 0.9
