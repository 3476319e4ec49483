"""ProtoGCD's losses: what each view is taught by the other, and how prototypes share the samples.

Logits are cosines ``(V N, K)`` of samples and prototypes, all first views first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protocl.memory.precision import in_full_precision

_RATIO_FLOOR = 1e-6


def certain_share(epoch: int, epochs: int, first: float = 0.0) -> float:
    """Share of samples whose pseudo-label is made hard: a line from ``first`` to 1, then 1.

    Args:
        epoch: from 0.
        epochs: in the last of them it is 1; with 1 or less it always is.
        first: share in epoch 0, in [0, 1].

    Source: the schedule in the code of ProtoGCD (Ma et al. 2025).

    >>> [round(certain_share(epoch, 4), 2) for epoch in range(6)]
    [0.0, 0.33, 0.67, 1.0, 1.0, 1.0]
    """
    return 1.0 if epochs <= 1 else min(1.0, first + (1 - first) * epoch / (epochs - 1))


@torch.no_grad()
def pseudo_labels(logits: Tensor, share: float, temperature: float = 0.05) -> Tensor:
    """Targets ``(N, K)``: soft ones, and hard ones for the most certain samples.

    Certain are those of the largest ratio of the largest probability to the next.

    Args:
        logits: ``(N, K)`` of one view.
        share: of the samples whose target is one-hot; their number is rounded down.
        temperature: of the soft targets.

    Source: Ma et al. 2025, adaptive pseudo-labels; the form is that of their code.
    """
    targets = (logits / temperature).softmax(1)
    count = int(len(targets) * share)
    if not count or targets.shape[1] < 2:
        return targets
    best = targets.topk(2, dim=1).values
    certain = (best[:, 0] / (best[:, 1] + _RATIO_FLOOR)).topk(count).indices
    hard = torch.zeros_like(targets).scatter_(1, targets.argmax(1, keepdim=True), 1.0)
    targets[certain] = hard[certain]
    return targets


@in_full_precision
def distillation(
    logits: Tensor, share: float, *, temperature: float = 0.1, teacher_temperature: float = 0.05
) -> Tensor:
    """Cross-entropy of each of two views to the :func:`pseudo_labels` of the other, a scalar.

    Args:
        logits: ``(2 N, K)``.
        share: see :func:`pseudo_labels`.
        temperature: of the student.
        teacher_temperature: of the targets.

    Source: Ma et al. 2025, dual-level adaptive pseudo-labelling; the form is that of their code.
    """
    views = logits.chunk(2)
    student = [(view / temperature).log_softmax(1) for view in views]
    teacher = [pseudo_labels(view, share, teacher_temperature) for view in views]
    crossed = zip(teacher, reversed(student), strict=True)
    losses = [-(targets * found).sum(1).mean() for targets, found in crossed]
    return torch.stack(losses).mean()


@in_full_precision
def uneven_use(logits: Tensor, temperature: float = 0.1) -> Tensor:
    """``log K - H(mean softmax)``, a scalar: 0 where all prototypes get the same share.

    Args:
        logits: ``(N, K)`` of all views.
        temperature: > 0.

    Source: Ma et al. 2025, entropy regularisation; the form is that of their code.
    """
    mean = (logits / temperature).softmax(1).mean(0)
    return math.log(len(mean)) + torch.special.xlogy(mean, mean).sum()


@in_full_precision
def prototype_separation(prototypes: Tensor, temperature: float = 0.1) -> Tensor:
    """``mean_c log mean_{c' != c} exp(p_c . p_c' / tau)``, a scalar; 0 of a single prototype.

    Args:
        prototypes: ``(K, D)`` of unit length.
        temperature: > 0.

    Source: Ma et al. 2025, prototype separation; the form is that of their code.
    """
    count = len(prototypes)
    if count < 2:
        return prototypes.sum() * 0
    logits = prototypes @ prototypes.T / temperature
    itself = torch.eye(count, dtype=torch.bool, device=logits.device)
    lowest = torch.finfo(logits.dtype).min
    return (logits.masked_fill(itself, lowest).logsumexp(1) - math.log(count - 1)).mean()
