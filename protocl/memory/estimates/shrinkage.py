"""Shrinkage of a covariance matrix towards the identity."""

from __future__ import annotations

from torch import Tensor


def shrink_towards_identity(covariance: Tensor, weight: float, *, scaled: bool) -> Tensor:
    """``(1 - weight) S + weight T`` for ``S`` ``(W, W)``; ``T`` is ``I`` or ``tr(S) / W * I``."""
    size = float(covariance.diagonal().mean()) if scaled else 1.0
    shrunk = covariance * (1 - weight)
    shrunk.diagonal().add_(weight * size)
    return shrunk


def oas_shrinkage(covariance: Tensor, samples: int) -> float:
    """Oracle approximating shrinkage weight towards the scaled identity.

    Args:
        covariance: ``(W, W)`` with divisor ``samples``.
        samples: number of samples behind it.

    Source: Chen, Wiesel, Eldar & Hero 2010, "Shrinkage algorithms for MMSE covariance estimation",
    in the form that scikit-learn computes, so that both give the same weight.
    """
    width = len(covariance)
    mean_square = float(covariance.square().mean())
    squared_mean = float(covariance.diagonal().mean()) ** 2
    numerator = mean_square + squared_mean
    denominator = (samples + 1) * (mean_square - squared_mean / width)
    return 1.0 if denominator <= 0 else min(numerator / denominator, 1.0)
