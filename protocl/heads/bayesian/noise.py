"""Noise and prior of Bayesian prototypes from the memory itself (empirical Bayes)."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.heads.bayesian.priors import Covariance, SharedPrior
from protocl.heads.covariance.directions import squares_behind, warn_of_lost_scatter, whitened_error
from protocl.heads.covariance.shrinkage import warn_of_no_scatter, whitening
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.shrinkage import oas_shrinkage, shrink_towards_identity

_LEAST = 1e-6
"""Least variance, as a share of the variance of the class means."""


def noise_of(value: float | Tensor, covariance: Covariance) -> Tensor:
    """A given noise variance in float64: ``()``, ``(D,)`` or ``(D, D)``.

    Raises:
        ValueError: it is not positive, or has another shape than ``covariance`` allows.
    """
    noise = torch.as_tensor(value, dtype=torch.float64)
    most = {"iso": 0, "diag": 1, "full": 2}[covariance]
    if noise.ndim not in (0, most):
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}: expected {most} dimensions for "
            f"'{covariance}', or a number"
        )
    variances = noise.diagonal() if noise.ndim == 2 else noise
    if not bool((variances > 0).all()):
        raise ValueError(f"noise={value}: expected variances > 0")
    return noise


def noise_matrix(noise: Tensor, covariance: Covariance, width: int) -> Tensor:
    """A number for ``"full"`` as ``(D, D)``, the same in all directions; any other as it is."""
    if covariance != "full" or noise.ndim:
        return noise
    return noise * torch.eye(width, dtype=noise.dtype, device=noise.device)


def estimate_noise(memory: PrototypeMemory, covariance: Covariance) -> Tensor:
    """Pooled variance within classes: ``()``, ``(D,)``, or a shrunk ``(D, D)`` covariance.

    A feature that never varies within a class gets a variance far below that of the means.
    """
    freedom = max(memory.total - len(memory), 1)
    if covariance == "full":
        shared = memory.at_level("shared")
        covariances = shared.scatter() / freedom
        least = _least_variance(memory.means, covariances.diagonal())
        weight = oas_shrinkage(covariances, freedom)
        shrunk = shrink_towards_identity(covariances, weight, scaled=True)
        shrunk.diagonal().add_(least)
        half = whitening(shrunk[None])[0]
        squares = squares_behind(covariances, shared.squares / freedom)
        warn_of_lost_scatter(whitened_error(half, shrunk, squares))
        return shrunk
    variances = memory.at_level("diagonal").scatter().sum(0) / freedom
    least = _least_variance(memory.means, variances)
    return (variances.mean() if covariance == "iso" else variances).clamp(min=least)


def _least_variance(means: Tensor, within: Tensor) -> float:
    """What a variance is raised to, of class means ``(C, W)`` and variances ``(W,)`` of samples."""
    if not bool((within > 0).any()):
        warn_of_no_scatter()
    sizes = (means - means.mean(0)).square(), within, means.square()
    return next((_LEAST * float(size.mean()) for size in sizes if bool((size > 0).any())), 1.0)


def estimate_prior(memory: PrototypeMemory, noise: Tensor) -> SharedPrior:
    """Mean and spread of the class means, less the part of the spread that noise explains.

    With a single class there is no spread, and the noise stands in for it.
    """
    means = memory.means
    variances = noise.diagonal() if noise.ndim == 2 else noise
    if len(means) == 1:
        return SharedPrior(mean=means[0], precision=1 / variances.mean())
    sampling = variances.mean() / memory.counts.to(means.dtype)
    between = means.var(0).mean() - sampling.mean()
    return SharedPrior(
        mean=means.mean(0), precision=1 / between.clamp(min=_LEAST * variances.mean())
    )
