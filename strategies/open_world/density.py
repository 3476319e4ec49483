"""Prototypes of clusters, each with a temperature that follows how dense its cluster is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from protocl.memory.precision import in_full_precision

_SMOOTHING = 10
"""Samples added to the size of each cluster, so that small ones do not look dense."""


def density_temperatures(
    distances: Tensor, clusters: Tensor, count: int, temperature: float = 0.1
) -> Tensor:
    """Temperatures ``(K,)``, whose mean is ``temperature``: high for wide clusters.

    ``phi_k`` is the mean distance to the centre over ``log(n_k + 10)``, limited to the middle four
    fifths of all ``phi``. A cluster of no more than one sample, which says nothing of its width,
    has the largest.

    Args:
        distances: ``(N,)`` of samples to their centre, >= 0.
        clusters: ``(N,)`` row of the centre of each.
        count: number ``K`` of clusters.
        temperature: > 0.

    Source: Li et al., "Prototypical contrastive learning", ICLR 2021, section 3.2; as the code of
    GPC (Zhao et al. 2023) has it.
    """
    sizes = torch.bincount(clusters, minlength=count)
    sums = torch.zeros(count, dtype=distances.dtype, device=distances.device)
    sums = sums.index_add(0, clusters, distances)
    widths = sums / sizes.clamp(min=1) / (sizes + _SMOOTHING).to(sums).log()
    widths = torch.where(sizes > 1, widths, widths.max())
    low, high = widths.quantile(0.1), widths.quantile(0.9)
    widths = widths.clamp(low, high)
    mean = widths.mean()
    # All samples at their centres: no cluster is wider than another.
    return torch.where(mean > 0, temperature * widths / mean, torch.full_like(widths, temperature))


@in_full_precision
def prototypical_loss(
    features: Tensor, prototypes: Tensor, temperatures: Tensor, clusters: Tensor
) -> Tensor:
    """Cross-entropy of ``q . p_k / phi_k`` to the cluster of each sample, a scalar.

    Args:
        features: ``(N, D)`` of unit length.
        prototypes: ``(K, D)`` of unit length.
        temperatures: ``(K,)`` by :func:`density_temperatures`.
        clusters: ``(N,)`` rows of prototypes; negative ones are left out.

    Source: Zhao et al. 2023 (GPC), prototypical contrastive loss; the form is that of their code.
    """
    logits = features @ prototypes.T / temperatures
    lost = functional.cross_entropy(logits, clusters.clamp(min=0), reduction="none")
    counts = clusters >= 0
    return (lost * counts).sum() / counts.sum().clamp(min=1)
