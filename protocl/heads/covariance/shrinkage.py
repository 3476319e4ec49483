"""Shrinkage and inversion of covariance matrices."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from protocl.errors import PrecisionWarning
from protocl.heads.covariance.triangular import inverses


def shrink_diagonals(covariances: Tensor, diagonal: float, off_diagonal: float) -> Tensor:
    """FeCAM's shrinkage: add multiples of the mean variance and of the mean covariance.

    ``S + a1 * mean(diag S) * I + a2 * mean(non-zero off-diagonals of S) * (1 - I)``

    Args:
        covariances: ``(C, W, W)``, changed in place.
        diagonal: ``a1``.
        off_diagonal: ``a2``.

    Source: Goswami et al. 2023 (FeCAM), eq. 4, and the authors' code.
    """
    variances = covariances.diagonal(dim1=1, dim2=2)
    variance_sum = variances.sum(1)
    counts = (covariances != 0).sum((1, 2)) - (variances != 0).sum(1)
    covariance_means = (covariances.sum((1, 2)) - variance_sum) / counts.clamp(min=1)
    variance_means = variance_sum / covariances.shape[1]
    covariances += (off_diagonal * covariance_means)[:, None, None]
    variances += (diagonal * variance_means - off_diagonal * covariance_means)[:, None]
    return covariances


def to_correlations(covariances: Tensor) -> Tensor:
    """Correlation matrices of ``(C, W, W)`` covariances, in place.

    A feature without variance is uncorrelated with all others and has correlation 1 with itself,
    so a class of one sample gets the identity and its distance is Euclidean.
    """
    deviations = covariances.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    scale = torch.where(deviations > 0, 1 / deviations, 0.0)
    covariances *= scale[:, :, None]
    covariances *= scale[:, None, :]
    covariances.diagonal(dim1=1, dim2=2).fill_(1.0)
    return covariances


def fill_flat(covariances: Tensor, variance: float) -> Tensor:
    """Give ``variance`` to each feature that has none, in place.

    Without it a class of one sample would have distance zero to everything.
    """
    variances = covariances.diagonal(dim1=1, dim2=2)
    variances.masked_fill_(variances <= 0, variance)
    return covariances


def whitening(matrices: Tensor) -> Tensor:
    """``A`` with ``A^T A`` equal to the inverse of each symmetric ``(C, W, W)`` matrix.

    Where a matrix is not positive definite ``A^T A`` is its pseudo-inverse.
    """
    factors, info = torch.linalg.cholesky_ex(matrices)
    halves = inverses(factors)
    # A pivot is the variance that a feature has beyond what those before it explain. Where that is
    # rounding alone, Cholesky goes through by luck, and divides by noise. Eigenvalues decide then.
    pivots, variances = (m.diagonal(dim1=-2, dim2=-1) for m in (factors, matrices))
    sound = pivots.square() > variances * (256 * matrices.shape[-1] * torch.finfo(pivots.dtype).eps)
    usable = (info == 0) & sound.all(-1) & torch.isfinite(halves).all(-1).all(-1)
    if not bool(usable.all()):
        halves[~usable] = _pseudo_whitening(matrices[~usable])
    return halves


def _pseudo_whitening(matrices: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrices)
    # Four times the cut-off of numpy's and torch's pinv: the matrix is a difference of larger ones.
    eps = 4 * matrices.shape[-1] * torch.finfo(values.dtype).eps
    cut = values.abs().amax(-1, keepdim=True) * eps
    scale = torch.where(values > cut, values, torch.inf).rsqrt()
    return scale[..., :, None] * vectors.mT


def or_euclidean(covariance: Tensor, means: Tensor) -> Tensor:
    """``covariance`` ``(W, W)``, or without any variance a multiple of the identity and a warning.

    The multiple is the variance of the class ``means`` ``(C, W)``, so that logits have no unit.
    """
    if bool((covariance.diagonal() > 0).any()):
        return covariance
    warn_of_no_scatter()
    return float(means.var(0, correction=0).mean() or 1.0) * torch.eye(
        len(covariance), dtype=covariance.dtype, device=covariance.device
    )


def warn_of_no_scatter() -> None:
    """Say that distances are Euclidean for want of any variance within classes."""
    warnings.warn(
        "no class has samples that differ (one sample a class?), so there is no covariance within "
        "classes: distances are Euclidean; add samples, or use NearestMean",
        PrecisionWarning,
        stacklevel=6,
    )


def warn_of_unit(covariance: Tensor, weight: float) -> None:
    """Say that shrinkage towards ``I`` leaves little of a covariance whose variances are small."""
    variance = float(covariance.diagonal().mean())
    if not variance < weight < 1:
        return
    warnings.warn(
        f"shrinkage={weight:g} towards the identity outweighs features whose variance within "
        f"classes is {variance:.1g} in the mean: distances are all but Euclidean; use "
        "target='scaled' or shrinkage='auto', which have no unit, or scale the features up",
        PrecisionWarning,
        stacklevel=6,
    )
