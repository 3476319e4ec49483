"""Similarities and the supervised contrastive loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from protocl.memory.precision import in_full_precision

_NO_DIRECTION = 1e-12
"""A vector below this norm has no direction."""


def unit_rows(vectors: Tensor) -> Tensor:
    """Rows ``(N, D)`` scaled to norm 1; a zero row stays zero and passes its gradient unscaled.

    Dividing by a small constant instead would multiply that gradient by 1e12, and a ReLU network
    does give zero rows.
    """
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(norms > _NO_DIRECTION, norms, 1.0)


@in_full_precision
def cosine_similarities(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines ``(N, K)`` of features ``(N, D)`` to prototypes ``(K, D)``; 0 for zero rows."""
    return unit_rows(features) @ unit_rows(prototypes).T


@in_full_precision
def supervised_contrastive(
    projections: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    base_temperature: float | None = 0.07,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Pull samples of one class together, push all others away.

    For the anchor ``i``, its positives ``A(i) = {j != i : y_j = y_i}`` and
    ``s_ij = cos(z_i, z_j) / temperature``::

        l_i = -mean_{j in A(i)} [ s_ij - log sum_{a != i} exp(s_ia) ]

    An anchor without positives (a single view of a class's only sample) is left out of the mean.

    Args:
        projections: ``(N, P)``; normalised here. Two views of ``B`` images are ``2 B`` rows.
        labels: ``(N,)``.
        temperature: > 0. Finite down to about 1e-3 in float32, for the row maximum that is
            subtracted leaves out the similarity of a sample to itself.
        base_temperature: the loss is multiplied by ``temperature / base_temperature``, as in the
            reference code; None for the formula of the paper.
        reduction: over anchors; ``"none"`` gives ``(N,)`` with 0 where there are no positives.

    Source: Khosla et al. 2020, "Supervised contrastive learning", eq. 2 (``L_out``).
    """
    units = unit_rows(projections)
    similarities = units @ units.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    lowest = torch.finfo(similarities.dtype).min
    log_total = similarities.masked_fill(itself, lowest).logsumexp(1)
    positives = (labels[:, None] == labels) & ~itself
    counts = positives.sum(1)
    attraction = torch.where(positives, similarities, 0.0).sum(1) / counts.clamp(min=1)
    losses = torch.where(counts > 0, log_total - attraction, 0.0)
    if base_temperature is not None:
        losses = losses * (temperature / base_temperature)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (counts > 0).sum().clamp(min=1)


@in_full_precision
def contrastive(projections: Tensor, *, views: int = 2, temperature: float = 1.0) -> Tensor:
    """Pull the views of a sample together, push all other samples away; no label is needed.

    For each row, the mean over its other views ``j`` of ``-log softmax_{a != i}(s_ia)_j``; the
    supervised loss in which each sample is a class of its own.

    Args:
        projections: ``(V B, P)``, all first views first; normalised here.
        views: ``V``, at least 2.
        temperature: > 0.

    Source: Chen et al. 2020, "A simple framework for contrastive learning", eq. 1.
    """
    samples = torch.arange(len(projections) // views, device=projections.device)
    return supervised_contrastive(
        projections, samples.repeat(views), temperature=temperature, base_temperature=None
    )
