"""PRD's losses: one that places prototypes, two that keep their relation to samples, their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from protocl.config.validation import NOT_NEGATIVE, POSITIVE, ranged, require_declared
from protocl.memory.precision import in_full_precision
from protocl.strategies.training.contrastive import (
    cosine_similarities,
    supervised_contrastive,
    unit_rows,
)


@in_full_precision
def prototype_loss(prototypes: Tensor, features: Tensor) -> Tensor:
    """``1 - mean cos(p, sg(f))``: pull prototypes to their samples, leaving the encoder alone.

    Args:
        prototypes: ``(N, D)``, the prototype of each sample's class.
        features: ``(N, D)``; no gradient flows into them.

    Source: Asadi et al. 2023 (PRD), eq. 4, plus the constant 1.
    """
    return 1 - (unit_rows(prototypes) * unit_rows(features.detach())).sum(1).mean()


@in_full_precision
def relation_distillation(
    features: Tensor,
    prototypes: Tensor,
    old_features: Tensor,
    old_prototypes: Tensor,
    *,
    temperature: float = 1.0,
    direction: Literal["teacher_student", "student_teacher"] = "teacher_student",
    reduction: Literal["sum", "mean", "none"] = "sum",
) -> Tensor:
    """Keep, for each old prototype, which samples of the batch are near to it (PRD's paper).

    ``R_k = softmax over samples i of cos(p_k, f_i) / temperature``, and the loss adds up
    ``KL(R'_k || R_k)`` over prototypes, with ``R'`` of the model before this experience. It
    depends on the size of the batch, and is 0 for a batch of one.

    Args:
        features: ``(N, D)`` of the current encoder.
        prototypes: ``(K, D)`` current copies of the old prototypes.
        old_features: ``(N, D)`` of the same inputs under the old encoder; constant.
        old_prototypes: ``(K, D)`` as they were; constant.
        temperature: of both softmaxes.
        direction: ``"student_teacher"`` for ``KL(R_k || R'_k)``.
        reduction: over prototypes; ``"none"`` gives ``(K,)``.

    Source: Asadi et al. 2023 (PRD), eqs. 5 and 6.
    """
    student = (cosine_similarities(prototypes, features) / temperature).log_softmax(1)
    teacher = cosine_similarities(old_prototypes, old_features).detach() / temperature
    teacher = teacher.log_softmax(1)
    first, second = (teacher, student) if direction == "teacher_student" else (student, teacher)
    divergences = (first.exp() * (first - second)).sum(1)
    if reduction == "none":
        return divergences
    return divergences.sum() if reduction == "sum" else divergences.sum() / max(len(prototypes), 1)


@in_full_precision
def relation_distillation_by_task(
    features: Tensor,
    prototypes: Tensor,
    old_features: Tensor,
    old_prototypes: Tensor,
    tasks: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Keep, for each sample, which prototypes of one old task are near to it (PRD's code).

    Logits are ``f . p_k / |p_k|`` with features of any norm; a softmax runs over the prototypes of
    one task, ``KL(teacher || student)`` is averaged over samples and added up over tasks. With one
    class a task it is 0. This is the distillation of LwF with a head for each task.

    Args:
        features, prototypes, old_features, old_prototypes: as in :func:`relation_distillation`.
        tasks: ``(K,)`` task of each prototype, any integers.
        temperature: of both softmaxes; the loss is not multiplied by its square.
    """
    groups = torch.unique(tasks, return_inverse=True)[1]
    student = features @ unit_rows(prototypes).T / temperature
    teacher = (old_features @ unit_rows(old_prototypes).T).detach() / temperature
    student, teacher = (_log_softmax_in_groups(logits, groups) for logits in (student, teacher))
    return (teacher.exp() * (teacher - student)).sum() / max(len(features), 1)


def _log_softmax_in_groups(logits: Tensor, groups: Tensor) -> Tensor:
    """Log-softmax ``(N, K)`` over the columns of each group; groups ``(K,)`` are 0, 1, 2, ..."""
    index = groups.expand_as(logits)
    highest = torch.full_like(logits, -torch.inf).scatter_reduce(1, index, logits.detach(), "amax")
    shifted = logits - highest.gather(1, index)
    totals = torch.zeros_like(logits).scatter_add(1, index, shifted.exp())
    return shifted - totals.gather(1, index).log()


class PRDTerms(NamedTuple):
    """The terms of one mini-batch's loss, scalars.

    Attributes:
        contrastive: supervised contrastive loss.
        prototype: distance of prototypes to their samples.
        relation: relation distillation; 0 in the first experience.
        total: their weighted sum.
    """

    contrastive: Tensor
    prototype: Tensor
    relation: Tensor
    total: Tensor


class Relations(NamedTuple):
    """What relation distillation compares, for ``N`` inputs and ``K`` old prototypes.

    Attributes:
        prototypes: ``(K, D)`` current copies of the old prototypes.
        old_features: ``(N, D)`` under the teacher.
        old_prototypes: ``(K, D)`` as they were.
        experiences: ``(K,)`` experience in which each was made.
    """

    prototypes: Tensor
    old_features: Tensor
    old_prototypes: Tensor
    experiences: Tensor


@dataclass(frozen=True)
class PRDLoss:
    """``L_contrastive + prototype_weight L_prototype + relation_weight L_relation``.

    Attributes:
        temperature: of the contrastive loss, and of the softmax over cosines at evaluation.
        base_temperature: see :func:`.supervised_contrastive`.
        prototype_weight: ``alpha`` of the paper.
        relation_weight: ``beta`` of the paper.
        relation: ``"paper"`` (softmax over samples) or ``"released"`` (over prototypes of a task).
        relation_temperature: of the softmaxes that are compared.
        relation_direction, relation_reduction: see :func:`.relation_distillation`. The sum grows
            with the number of old classes.

    Source: Asadi et al. 2023, "Prototype-sample relation distillation: towards replay-free
    continual learning", ICML; weights from the authors' README.
    """

    temperature: float = ranged(0.1, POSITIVE)
    base_temperature: float | None = ranged(0.07, POSITIVE)
    prototype_weight: float = ranged(2.0, NOT_NEGATIVE)
    relation_weight: float = ranged(4.0, NOT_NEGATIVE)
    relation: Literal["paper", "released"] = "paper"
    relation_temperature: float = ranged(1.0, POSITIVE)
    relation_direction: Literal["teacher_student", "student_teacher"] = "teacher_student"
    relation_reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        require_declared(self)

    def __call__(
        self,
        projections: Tensor,
        features: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        relations: Relations | None,
    ) -> PRDTerms:
        """The loss of a mini-batch of ``N`` rows: two views of ``N / 2`` samples.

        Args:
            projections: ``(N, P)``.
            features: ``(N, D)``.
            labels: ``(N,)``.
            prototypes: ``(N, D)``, the prototype of each row's class.
            relations: None in the first experience.
        """
        contrastive = supervised_contrastive(
            projections,
            labels,
            temperature=self.temperature,
            base_temperature=self.base_temperature,
        )
        placed = prototype_loss(prototypes, features)
        relation = torch.zeros_like(placed)
        if relations is not None:
            relation = self._relation(features, relations)
        total = contrastive + self.prototype_weight * placed + self.relation_weight * relation
        return PRDTerms(contrastive, placed, relation, total)

    def _relation(self, features: Tensor, relations: Relations) -> Tensor:
        if self.relation == "released":
            return relation_distillation_by_task(
                features, *relations, temperature=self.relation_temperature
            )
        return relation_distillation(
            features,
            *relations[:3],
            temperature=self.relation_temperature,
            direction=self.relation_direction,
            reduction=self.relation_reduction,
        )
