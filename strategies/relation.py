"""PRD's losses on prototypes: one that places them, two that keep their relation to samples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from protocl.precision import in_full_precision
from protocl.strategies.contrastive import cosine_similarities, unit_rows


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
