"""Losses on features: gradients, precision, compilation, and the corners of their domain."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from protocl.heads import RandomPrior
from protocl.heads.bayesian.posterior import ConjugatePosterior
from protocl.strategies.training.contrastive import supervised_contrastive
from protocl.strategies.training.relation_losses import (
    PRDLoss,
    Relations,
    prototype_loss,
    relation_distillation,
    relation_distillation_by_task,
)
from tests.golden.prd import given

TASKS = torch.tensor([1, 0, 1])
LABELS = torch.tensor([0, 1, 1, 2, 0, 1, 1, 2])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def bayesian_loss(features: Tensor) -> Tensor:
    posterior = ConjugatePosterior(features.shape[1], RandomPrior(), 0.5)
    posterior.add_classes(torch.arange(3))
    posterior.update(randn(8, features.shape[1], seed=5), LABELS)
    return posterior.loss(features, LABELS)


CONSTANTS = {
    dtype: (randn(8, 5, seed=3, dtype=dtype), randn(3, 5, seed=4, dtype=dtype))
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
}
"""What a teacher gives, made beforehand: no generator may be made in compiled code."""

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "contrastive": lambda f: supervised_contrastive(f, LABELS),
    "prototype": lambda f: prototype_loss(f[:4], f[4:]),
    "relation": lambda f: relation_distillation(f, f[:3].flip(0), *CONSTANTS[f.dtype]),
    "reverse": lambda f: relation_distillation(
        f, f[:3].flip(0), *CONSTANTS[f.dtype], direction="student_teacher", reduction="mean"
    ),
    "by_task": lambda f: relation_distillation_by_task(
        f, f[:3].flip(0), *CONSTANTS[f.dtype], TASKS
    ),
    "bayesian": bayesian_loss,
}


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "prototype"])
def test_gradients_are_those_of_finite_differences(name):
    assert torch.autograd.gradcheck(LOSSES[name], randn(8, 5).requires_grad_())


def test_gradient_of_prototypes_is_that_of_finite_differences():
    features = randn(4, 5, seed=1)
    assert torch.autograd.gradcheck(
        lambda p: prototype_loss(p, features), randn(4, 5).requires_grad_()
    )


@pytest.mark.parametrize("name", LOSSES)
def test_mixed_precision_computes_in_float32(name):
    features = randn(8, 5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = LOSSES[name](features)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, LOSSES[name](features), rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_features_give_a_float32_loss_and_their_gradient(name):
    features = randn(8, 5, dtype=torch.bfloat16).requires_grad_()
    loss = LOSSES[name](features)
    assert loss.dtype == torch.float32
    loss.backward()
    assert features.grad.dtype == torch.bfloat16
    assert features.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "bayesian"])
def test_compiles_without_graph_breaks(name):
    features = randn(8, 5, dtype=torch.float32)
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), LOSSES[name](features))


@pytest.mark.parametrize("name", LOSSES)
def test_zero_features_have_finite_gradients(name):
    features = torch.zeros(8, 5, dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name](features)
    loss.backward()
    assert loss.isfinite()
    assert features.grad.abs().max() < 1e3


class TestSupervisedContrastive:
    def test_a_single_view_leaves_out_samples_without_positives(self):
        projections = randn(4, 5)
        labels = torch.tensor([0, 0, 1, 2])
        by_anchor = supervised_contrastive(projections, labels, reduction="none")
        assert by_anchor[2:].tolist() == [0, 0]
        mean = supervised_contrastive(projections, labels)
        torch.testing.assert_close(mean, by_anchor[:2].mean())

    def test_no_positives_at_all(self):
        projections = randn(3, 5).requires_grad_()
        loss = supervised_contrastive(projections, torch.arange(3))
        loss.backward()
        assert float(loss) == 0
        assert torch.equal(projections.grad, torch.zeros(3, 5, dtype=torch.float64))

    def test_one_row(self):
        assert float(supervised_contrastive(randn(1, 5), torch.tensor([3]))) == 0

    def test_small_temperature_in_float32(self):
        """Subtracting a maximum that includes a sample itself gives NaN here."""
        views = torch.cat([given("proj_view1"), given("proj_view2")])
        labels = given("labels").repeat(2)
        wide = supervised_contrastive(views, labels, temperature=0.005)
        narrow = supervised_contrastive(views.float(), labels, temperature=0.005)
        assert float(narrow) == pytest.approx(6.216753, rel=1e-4)
        torch.testing.assert_close(narrow, wide.float(), rtol=1e-4, atol=0)

    def test_against_loops(self):
        projections = randn(8, 5)
        units = torch.nn.functional.normalize(projections)
        losses = []
        for i in range(8):
            others = [j for j in range(8) if j != i]
            scores = {j: float(units[i] @ units[j]) / 0.2 for j in others}
            total = math.log(sum(math.exp(score) for score in scores.values()))
            positives = [j for j in others if LABELS[j] == LABELS[i]]
            losses.append(-sum(scores[j] - total for j in positives) / len(positives))
        found = supervised_contrastive(
            projections, LABELS, temperature=0.2, base_temperature=None, reduction="none"
        )
        torch.testing.assert_close(found, torch.tensor(losses, dtype=torch.float64))


class TestRelations:
    def test_one_sample_has_no_relation_in_the_form_of_the_paper(self):
        loss = relation_distillation(randn(1, 5), randn(3, 5), randn(1, 5, seed=2), randn(3, 5))
        assert float(loss) == 0

    def test_one_class_a_task_has_no_relation_in_the_form_of_the_code(self):
        inputs = randn(8, 5), randn(3, 5), *CONSTANTS[torch.float64]
        assert float(relation_distillation_by_task(*inputs, torch.arange(3))) == 0
        assert float(relation_distillation(*inputs)) > 0

    def test_tasks_of_different_sizes_add_up(self):
        features, prototypes = randn(8, 5), randn(5, 5)
        old = randn(8, 5, seed=2), randn(5, 5, seed=3)
        tasks = torch.tensor([4, 9, 4, 9, 9])
        separate = [
            relation_distillation_by_task(
                features, prototypes[tasks == t], old[0], old[1][tasks == t], tasks[tasks == t]
            )
            for t in (4, 9)
        ]
        together = relation_distillation_by_task(features, prototypes, *old, tasks)
        torch.testing.assert_close(together, sum(separate))

    def test_large_logits_do_not_overflow(self):
        inputs = randn(8, 5) * 1e4, randn(3, 5), randn(8, 5, seed=2) * 1e4, randn(3, 5, seed=3)
        assert relation_distillation_by_task(*inputs, TASKS).isfinite()

    def test_the_teacher_gets_no_gradient(self):
        teacher = [part.clone().requires_grad_() for part in CONSTANTS[torch.float64]]
        student = [randn(8, 5).requires_grad_(), randn(3, 5).requires_grad_()]
        relation_distillation(*student, *teacher).backward()
        relation_distillation_by_task(*student, *teacher, TASKS).backward()
        assert [part.grad for part in teacher] == [None, None]
        assert all(part.grad.abs().sum() > 0 for part in student)


class TestTotal:
    def test_weights(self):
        features, prototypes = randn(8, 5), randn(8, 5, seed=1)
        relations = Relations(randn(3, 5, seed=2), *CONSTANTS[torch.float64], TASKS)
        loss = PRDLoss(prototype_weight=3, relation_weight=5)
        terms = loss(randn(8, 4), features, LABELS, prototypes, relations)
        expected = terms.contrastive + 3 * terms.prototype + 5 * terms.relation
        torch.testing.assert_close(terms.total, expected)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"temperature": 0}, "temperature=0: expected a number > 0"),
            ({"relation": "code"}, "relation='code': expected 'paper' or 'released'"),
            ({"relation_reduction": "max"}, "relation_reduction='max'"),
            ({"relation_direction": "both"}, "relation_direction='both'"),
        ],
    )
    def test_refusals(self, settings, message):
        with pytest.raises(ValueError, match=message):
            PRDLoss(**settings)
