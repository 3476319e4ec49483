"""IL2A: its terms by hand and against the authors' formulation, its state, what it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from protocl.strategies.exemplar_free.mixup import MixedViews, mixed_rows
from protocl.strategies.il2a import IL2APlugin, logit_variances
from tests.strategies.small import build_strategy, train_on


def covariances(count: int, width: int) -> Tensor:
    half = torch.randn(count, width, width, dtype=torch.float64)
    return half @ half.mT


def test_variances_are_those_of_the_authors_product_for_each_sample() -> None:
    torch.manual_seed(0)
    weight, anchors = torch.randn(5, 4, dtype=torch.float64), torch.tensor([3, 0])
    spread = covariances(2, 4)
    found = logit_variances(weight, anchors, spread)
    for k, row in enumerate(anchors):
        difference = weight - weight[row]
        expected = (difference @ spread[k] @ difference.T).diagonal()
        torch.testing.assert_close(found[k], expected)
    assert (found[[0, 1], anchors].abs() < 1e-12).all()


def test_variances_are_those_of_logits_of_gaussian_samples() -> None:
    torch.manual_seed(1)
    weight, spread = torch.randn(3, 4, dtype=torch.float64), covariances(1, 4)
    samples = torch.distributions.MultivariateNormal(torch.zeros(4).double(), spread[0])
    logits = samples.sample((200_000,)) @ weight.T
    expected = (logits - logits[:, :1]).var(0)
    found = logit_variances(weight, torch.tensor([0]), spread)[0]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-9)


def test_variances_have_the_gradient_of_their_formula() -> None:
    torch.manual_seed(2)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    anchors, spread = torch.tensor([1, 2]), covariances(2, 3)
    assert torch.autograd.gradcheck(lambda w: logit_variances(w, anchors, spread), (weight,))


def test_half_precision_is_widened() -> None:
    weight, spread = torch.randn(4, 3), covariances(1, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = logit_variances(weight, torch.tensor([1]), spread)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logit_variances(weight, torch.tensor([1]), spread))


def test_every_pair_of_classes_has_a_number_of_its_own() -> None:
    pairs = torch.combinations(torch.arange(6))
    numbers = mixed_rows(pairs[:, 0], pairs[:, 1])
    assert sorted(numbers.tolist()) == list(range(15))
    assert torch.equal(numbers, mixed_rows(pairs[:, 1], pairs[:, 0]))
    assert mixed_rows(torch.tensor([2]), torch.tensor([2])).tolist() == [-1]


def test_mixtures_are_nearly_even_and_of_the_partners() -> None:
    torch.manual_seed(0)
    views = MixedViews(mixes=3, concentration=20.0)
    images = torch.eye(50).view(50, 1, 50, 1)  # image i has its only 1 at i
    made = views(images)
    assert made.shape == (200, 1, 50, 1)
    assert torch.equal(made[:50], images)
    for number, partners in enumerate(views.partners):
        assert sorted(partners.tolist()) == list(range(50))
        for i, j in enumerate(partners.tolist()):
            mixture = made[50 * (number + 1) + i].flatten()
            assert float(mixture.sum()) == pytest.approx(1)
            if i != j:
                assert 0.4 <= float(mixture[i]) <= 0.6
                assert set(mixture.nonzero().flatten().tolist()) == {i, j}


def ready(benchmark: Any, **settings: Any) -> IL2APlugin:
    """A plugin in the middle of its third experience: classes of rows 0 to 3 are old."""
    plugin = IL2APlugin(distillation_weight=0.0, **settings)
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream[:2])
    plugin.old_rows, plugin.new_rows = torch.tensor([0, 1]), torch.tensor([2, 3])
    plugin.auxiliary = plugin.begin_steps(16)
    return plugin


def test_the_loss_of_a_later_experience_is_the_sum_of_its_terms(benchmark: Any) -> None:
    plugin = ready(benchmark, mixes=2)
    assert plugin.auxiliary is not None
    rows = torch.tensor([2, 3, 2])
    features = torch.rand(9, 16)
    plugin.mixed.partners = torch.tensor([[1, 0, 2], [2, 1, 0]])
    torch.manual_seed(5)
    loss = plugin.class_loss(features, rows)
    torch.manual_seed(5)
    drawn = plugin.old_rows[torch.randint(2, (3,))]

    weight, bias = plugin.classifier.rows.weight, plugin.classifier.rows.bias
    everything = torch.cat([weight, plugin.auxiliary.weight])
    logits = features @ everything.T + torch.cat([bias, plugin.auxiliary.bias])
    # Of the six mixtures only the first two are of two classes; theirs is the only mixed class.
    counted, labels = [0, 1, 2, 3, 4], torch.tensor([2, 3, 2, 4, 4])
    expected = nn.functional.cross_entropy(logits[counted] / 0.1, labels)

    memory = plugin.memory
    for n, row in enumerate(drawn.tolist()):
        place = int((memory.classes == plugin.kept.rows.ids[row]).nonzero())
        spread = (memory.scatter()[place] / (memory.counts[place] - 1)).float()
        difference = weight - weight[row]
        variances = (difference @ spread @ difference.T).diagonal()
        made = memory.means[place].float() @ weight.T + bias + 2.5 / 2 * variances
        term = nn.functional.cross_entropy(made[None] / 0.1, drawn[n : n + 1])
        expected = expected + 10 * term / len(drawn)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_replayed_classes_are_mixed_into_none_of_the_present_ones(benchmark: Any) -> None:
    plugin = ready(benchmark, mixes=1, augmentation_weight=0.0)
    plugin.mixed.partners = torch.tensor([[1, 0]])
    features, rows = torch.rand(4, 16), torch.tensor([2, 0])  # row 0 came from a buffer
    alone = plugin.classifier.loss_of_logits(
        torch.cat(
            [
                plugin.classifier.logits(features),
                plugin.classifier.logits(features, plugin.auxiliary),
            ],
            1,
        )[:2],
        rows,
    )
    torch.testing.assert_close(plugin.class_loss(features, rows), alone)


def test_mixed_classes_last_one_experience(benchmark: Any) -> None:
    plugin = IL2APlugin(ratio=0.1, augmentation_weight=0.5)
    strategy = build_strategy("naive", [plugin])
    train_on(strategy, benchmark.train_stream)
    assert plugin.auxiliary is None
    assert len(plugin.classifier.rows.weight) == 6
    assert plugin.memory.level == "full"
    assert plugin.mixed.partners.numel() == 0


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings, message in [
        ({"ratio": -1.0}, r"ratio=-1\.0"),
        ({"mixes": -1}, "mixes=-1"),
        ({"concentration": 0.0}, r"concentration=0\.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            IL2APlugin(**settings)
