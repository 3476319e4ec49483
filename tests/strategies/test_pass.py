"""PASS: its terms by hand and against plain torch, its state, and what it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protocl import PrototypeMemory
from protocl.strategies.avalanche.companion_optimizer import companion_optimizer, follow
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.exemplar_free.linear_classifier import LinearRows
from protocl.strategies.exemplar_free.rotations import rotate, rotated, rotated_rows
from protocl.strategies.pass_ import PASS, PASSPlugin, augmented_prototypes, mean_variance
from tests.strategies.small import (
    build_net,
    build_strategy,
    outputs_at_eval,
    quiet_evaluator,
    train_on,
)


def test_radius_is_the_mean_variance_of_a_feature() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64, generator=generator)
    labels = torch.arange(40) % 3
    expected = np.mean([np.trace(np.cov(x[labels == c].numpy().T)) / 5 for c in range(3)])
    for level in ("diagonal", "full"):
        memory = PrototypeMemory(5, level).update(x, labels)
        assert float(mean_variance(memory)) == pytest.approx(expected)
    single = PrototypeMemory(2, "diagonal").update(torch.ones(1, 2), torch.tensor([4]))
    assert float(mean_variance(single)) == 0


def test_augmented_prototypes() -> None:
    made = augmented_prototypes(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]]), torch.tensor(3.0)
    )
    assert made.tolist() == [[4.0, -1.0]]


def test_rotations_come_view_by_view() -> None:
    images = torch.arange(2 * 9.0).view(2, 1, 3, 3)
    views = rotated(images)
    assert torch.equal(views[:2], images)
    for k in range(4):
        assert torch.equal(views[2 * k : 2 * k + 2], rotate(images, k))
    assert rotate(images, 1)[0, 0].tolist() == [[2.0, 5.0, 8.0], [1.0, 4.0, 7.0], [0.0, 3.0, 6.0]]
    assert rotated_rows(torch.tensor([5, 0])).tolist() == [20, 0, 21, 1, 22, 2, 23, 3]
    with pytest.raises(ValueError, match=r"shape \(2, 1, 3, 4\) cannot be rotated"):
        rotated(torch.zeros(2, 1, 3, 4))


def test_the_classifier_grows_and_keeps_its_rows() -> None:
    rows = LinearRows()
    rows.append(4, 3, torch.device("cpu"))
    before = [p.detach().clone() for p in rows.parameters()]
    rows.append(2, 3, torch.device("cpu"))
    for old, now in zip(before, rows.parameters(), strict=True):
        assert torch.equal(now[:4], old)
        assert float(now.detach().abs().max()) <= 1 / 3**0.5
    x = torch.randn(7, 3)
    torch.testing.assert_close(rows(x), x @ rows.weight.T + rows.bias)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.9), weight_decay=1e-3),
    ],
)
def test_a_companion_optimizer_steps_like_the_one_of_the_model(build: Any) -> None:
    def quadratic(p: nn.Parameter) -> Tensor:
        return (p - 3).square().sum()

    model, other = (nn.Parameter(torch.zeros(4)) for _ in range(2))
    optimizer = build([model])
    companion = companion_optimizer(optimizer, [other])
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        follow(companion, optimizer)
        for o, p in ((optimizer, model), (companion, other)):
            o.zero_grad()
            quadratic(p).backward()
            o.step()
    assert torch.equal(model, other)


def test_the_loss_of_a_later_experience_is_the_sum_of_its_terms(benchmark: Any) -> None:
    plugin = PASSPlugin(distillation_weight=0.0)
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream[:2])
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(12, 16, generator=generator)
    rows = torch.tensor([2, 3, 2])
    plugin.old_rows, plugin.table = torch.tensor([0, 1]), plugin.kept.prototypes()
    torch.manual_seed(5)
    loss = plugin.class_loss(features, rows)
    torch.manual_seed(5)
    drawn = plugin.old_rows[torch.randint(2, (3,))]
    made = plugin.table[drawn] + plugin.classifier.rows.radius * torch.randn(3, 16)

    def cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
        logits = x @ plugin.classifier.rows.weight.T + plugin.classifier.rows.bias
        return nn.functional.cross_entropy(logits / 0.1, labels)

    labels = torch.cat([4 * rows + k for k in range(4)])
    expected = cross_entropy(features, labels) + 10 * cross_entropy(made, 4 * drawn)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("radius", ["first", "all"])
def test_radius_is_that_of_the_first_experience_or_of_all(benchmark: Any, radius: Any) -> None:
    plugin = PASSPlugin(radius=radius)
    strategy = build_strategy("naive", [plugin, InMemory()])
    train_on(strategy, benchmark.train_stream[:1])
    assert plugin.memory is not None
    first = plugin.classifier.rows.radius.clone()
    assert float(first) == pytest.approx(float(mean_variance(plugin.memory)) ** 0.5)
    train_on(strategy, benchmark.train_stream[1:2])
    now = float(mean_variance(plugin.memory)) ** 0.5
    assert float(plugin.classifier.rows.radius) == pytest.approx(
        float(first) if radius == "first" else now
    )


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings, message in [
        ({"radius": "last"}, "radius='last'"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"augmentation_weight": -1.0}, r"augmentation_weight=-1\.0"),
        ({"distillation_weight": -1.0}, r"distillation_weight=-1\.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            PASSPlugin(**settings)


def test_ready_made_strategy_learns_new_classes_and_keeps_old_ones(benchmark: Any) -> None:
    model = build_net(features=32)
    strategy = PASS(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        method=PASSPlugin(distillation_weight=1.0),
        later_lr_factor=0.3,
        train_mb_size=16,
        train_epochs=8,
        plugins=[InMemory()],
        evaluator=quiet_evaluator(),
    )
    train_on(strategy, benchmark.train_stream)
    accuracies = []
    for experience in benchmark.test_stream:
        winners = torch.cat(outputs_at_eval(strategy, experience)).argmax(1)
        labels = torch.as_tensor(list(experience.dataset.targets))
        accuracies.append(float((winners == labels).float().mean()))
    # Gradient descent alone ends with [0, 0, 1].
    assert accuracies[0] + accuracies[1] > 0.4
    assert accuracies[2] > 0.3
