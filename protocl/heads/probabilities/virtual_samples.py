"""Samples that never were, drawn from what a memory says of its classes."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory

_FREEDOM = 4
"""Degrees of freedom of the Student distribution: tails heavier than a Gaussian's, as features of
real images have; of 3, 4 and infinity the best on held-out training samples of digits."""

_SAMPLES = 6400
"""Samples of all classes together, if there are no more classes."""


def virtual_samples(memory: PrototypeMemory) -> tuple[Tensor, Tensor]:
    """Samples under the memory's feature map, ``(V C, W)`` float64, and their rows ``(V C,)``.

    A sample is ``m_c + t (1 + k / n_c)^(1/2)``: ``t`` is Student's with the pooled covariance
    (divisor ``N - C``), and ``m_c`` is the class mean drawn towards the mean of all by the
    share ``1 - k`` of its spread that the chance of ``n_c`` samples explains (James & Stein 1961):
    where new samples of the class lie, seen from a head that was fitted to the old ones. The
    deviations come from one seed and are the same for every class, so that ids do not matter.

    Raises:
        ValueError: the memory has no scatter between features, or one sample a class alone.
    """
    means, counts = memory.means, memory.counts.double()
    pooled = _pooled_covariance(memory)
    centre = means.mean(0)
    kept = _kept_share(means, pooled, counts)
    each = max(1, _SAMPLES // len(means))
    deviations = _deviations(each, pooled)
    rows = torch.arange(len(means), device=means.device).repeat_interleave(each)
    wider = (1 + kept / counts).sqrt()
    spread = wider[:, None, None] * deviations
    places = centre + kept * (means - centre)
    return (places[:, None] + spread).flatten(0, 1), rows


def _pooled_covariance(memory: PrototypeMemory) -> Tensor:
    if not memory.provides("shared"):
        raise ValueError(
            f"probabilities from a memory of level '{memory.level}', which keeps no scatter "
            "between features, are not calibrated: make the memory with "
            "head.new_memory(feature_dim, calibrated=True), or pass a calibration table: "
            "head.calibrate(memory, head.calibration_table(memory, features, labels))"
        )
    freedom = memory.total - len(memory)
    if freedom < 1:
        raise ValueError(
            f"{memory.total} samples of {len(memory)} classes leave no scatter within classes to "
            "calibrate by: add a second sample of some class"
        )
    shared = memory if memory.level == "shared" else memory.at_level("shared")
    return shared.scatter() / freedom


def _kept_share(means: Tensor, pooled: Tensor, counts: Tensor) -> Tensor:
    """Share of the spread of class means that is theirs, 0-d in [0, 1]."""
    between = (means - means.mean(0)).square().sum() / max(len(means) - 1, 1)
    chance = pooled.diagonal().sum() * counts.reciprocal().mean()
    return torch.where(between > chance, 1 - chance / between, torch.zeros_like(between))


def _deviations(samples: int, covariance: Tensor) -> Tensor:
    """``(samples, W)`` from Student's distribution with this covariance."""
    generator = torch.Generator().manual_seed(0)
    shape = samples, len(covariance)
    normal = torch.randn(*shape, generator=generator, dtype=torch.float64)
    squares = torch.randn(samples, _FREEDOM, generator=generator, dtype=torch.float64).square()
    scale = ((_FREEDOM - 2) / squares.sum(1, keepdim=True)).sqrt()
    return (normal * scale).to(covariance.device) @ _factor(covariance).T


def _factor(covariance: Tensor) -> Tensor:
    """``L`` with ``L L^T`` equal to a covariance, but for what makes a singular one regular."""
    size = covariance.diagonal().mean()
    for ridge in (1e-9, 1e-6, 1e-3):
        moved = covariance.clone()
        moved.diagonal().add_(ridge * size)
        factor, failed = torch.linalg.cholesky_ex(moved)
        if not bool(failed):
            return factor
    return covariance.diagonal().clamp(min=0).sqrt().diag()  # no scatter but rounding
