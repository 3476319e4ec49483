"""Every golden value of PRD's losses, predictors and schedule."""

from __future__ import annotations

import pytest
import torch

from protocl.strategies.training.contrastive import (
    cosine_similarities,
    supervised_contrastive,
    unit_rows,
)
from protocl.strategies.training.relation_losses import (
    prototype_loss,
    relation_distillation,
    relation_distillation_by_task,
)
from tests.golden.prd import assert_close, given, output

VIEWS = torch.cat([given("proj_view1"), given("proj_view2")])
LABELS = given("labels").repeat(2)
OLD_TASKS = torch.tensor([0, 0, 0, 1, 1, 1])
DIRECTIONS = {
    "KL(teacher||student)": "teacher_student",
    "KL(student||teacher)": "student_teacher",
}


def relation_inputs() -> tuple[torch.Tensor, ...]:
    """Features and prototypes of student and teacher; the student's carry a gradient."""
    student = [given(name).requires_grad_() for name in ("feat_new", "protos_old_student")]
    return *student, given("feat_old"), given("protos_old_teacher")


class TestSupervisedContrastive:
    @pytest.mark.parametrize("temperature", [0.1, 0.2])
    def test_with_the_scale_of_the_code(self, temperature):
        found = supervised_contrastive(VIEWS, LABELS, temperature=temperature)
        assert_close(found, output(f"supcon_code_tau{temperature}"))

    @pytest.mark.parametrize("temperature", [0.1, 0.2])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_as_in_the_paper(self, temperature, reduction):
        found = supervised_contrastive(
            VIEWS, LABELS, temperature=temperature, base_temperature=None, reduction=reduction
        )
        assert_close(found, output(f"supcon_noscale_{reduction}_tau{temperature}"))

    def test_by_anchor(self):
        found = supervised_contrastive(VIEWS, LABELS, base_temperature=None, reduction="none")
        assert_close(found, output("supcon_per_anchor_noscale_tau0.1"))

    def test_gradient(self):
        first = given("proj_view1").requires_grad_()
        supervised_contrastive(torch.cat([first, given("proj_view2")]), LABELS).backward()
        assert_close(first.grad, output("supcon_code_tau0.1_grad_view1_raw"))

    def test_all_labels_distinct(self):
        found = supervised_contrastive(VIEWS, torch.arange(6).repeat(2))
        assert_close(found, output("supcon_code_all_distinct_labels_tau0.1"))

    def test_one_label(self):
        found = supervised_contrastive(VIEWS, torch.zeros_like(LABELS))
        assert_close(found, output("supcon_code_one_label_tau0.1"))


class TestPrototypeLoss:
    rows = LABELS - 6

    def test_value(self):
        found = prototype_loss(given("protos_cur")[self.rows], given("feat_new"))
        assert_close(found, output("proto_loss_one_minus_cos"))
        assert_close(found - 1, output("proto_loss_paper_minus_cos"))

    def test_gradient_reaches_prototypes_only(self):
        prototypes, features = (given(n).requires_grad_() for n in ("protos_cur", "feat_new"))
        prototype_loss(prototypes[self.rows], features).backward()
        assert_close(prototypes.grad, output("proto_loss_grad_protos"))
        assert (features.grad is None) == output("proto_loss_grad_features_is_none")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_relation_of_the_code(temperature):
    key = f"relation_code_T{temperature}"
    features, prototypes, *teacher = relation_inputs()
    found = relation_distillation_by_task(
        features, prototypes, *teacher, OLD_TASKS, temperature=temperature
    )
    found.backward()
    assert_close(found, output(key))
    assert_close(prototypes.grad, output(f"{key}_grad_protos"))
    assert_close(features.grad[0], output(f"{key}_grad_feat_row0"))
    assert_close(features.grad.norm(), output(f"{key}_grad_feat_norm"))


def test_relation_of_the_code_does_not_depend_on_the_order_of_prototypes():
    features, prototypes, old_features, old_prototypes = relation_inputs()
    order = torch.tensor([3, 0, 4, 1, 5, 2])
    found = relation_distillation_by_task(
        features, prototypes[order], old_features, old_prototypes[order], 7 - OLD_TASKS[order]
    )
    assert_close(found, output("relation_code_T1.0"))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("name", DIRECTIONS)
class TestRelationOfThePaper:
    @staticmethod
    def options(temperature, name):
        return {"temperature": temperature, "direction": DIRECTIONS[name]}

    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_value(self, temperature, name, reduction):
        found = relation_distillation(
            *relation_inputs(), reduction=reduction, **self.options(temperature, name)
        )
        assert_close(found, output(f"relation_paper_tau{temperature}_{name}_{reduction}"))

    def test_by_prototype(self, temperature, name):
        found = relation_distillation(
            *relation_inputs(), reduction="none", **self.options(temperature, name)
        )
        assert_close(found, output(f"relation_paper_tau{temperature}_{name}_per_proto"))

    def test_gradients(self, temperature, name):
        features, prototypes, *teacher = relation_inputs()
        relation_distillation(
            features, prototypes, *teacher, **self.options(temperature, name)
        ).backward()
        key = f"relation_paper_tau{temperature}_{name}_grad"
        assert_close(prototypes.grad, output(f"{key}_protos"))
        assert_close(features.grad.norm(), output(f"{key}_feat_norm"))


def test_a_student_that_equals_its_teacher_loses_nothing():
    same = (given("feat_old"), given("protos_old_teacher")) * 2
    assert float(relation_distillation(*same)) == output("relation_paper_identity")
    assert float(relation_distillation_by_task(*same, OLD_TASKS)) == output(
        "relation_code_identity"
    )


def test_totals():
    contrastive = supervised_contrastive(VIEWS, LABELS)
    placed = prototype_loss(given("protos_cur")[LABELS - 6], given("feat_new"))
    inputs = relation_inputs()
    both = contrastive + 2 * placed
    released = both + 4 * relation_distillation_by_task(*inputs, OLD_TASKS)
    assert_close(released, output("total_code_alpha2_beta4"))
    paper = both + 4 * relation_distillation(*inputs)
    assert_close(paper, output("total_paper_alpha2_beta4_tau1"))


def test_predictors():
    prototypes = torch.cat([given("protos_old_student"), given("protos_cur")])
    cosines = cosine_similarities(given("feat_new"), prototypes)
    assert_close(cosines[0], output("predict_cos_row0"))
    assert cosines.argmax(1).tolist() == output("predict_class_il")
    assert (cosines[:, 6:].argmax(1) + 6).tolist() == output("predict_task2_il")


def test_a_zero_row_has_no_direction_and_a_bounded_gradient():
    rows = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    (unit_rows(rows) * torch.arange(3.0)).sum().backward()
    assert torch.equal(unit_rows(rows), torch.zeros(2, 3, dtype=torch.float64))
    assert rows.grad.abs().max() == 2
