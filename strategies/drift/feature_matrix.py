"""EFC's metric for displacements: directions of features count by what they do to the outputs."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from protocl.strategies.drift.estimators import WeightedDisplacements
from protocl.strategies.training.distances import squared_distances


class FeatureMatrix(NamedTuple):
    """Sums behind the empirical feature matrix; those of several batches are added by :meth:`plus`.

    Attributes:
        total: ``(D, D)``, sum over samples.
        samples: their number.
    """

    total: Tensor
    samples: int

    def plus(self, other: Self) -> FeatureMatrix:
        """Add the sums of another batch."""
        return FeatureMatrix(self.total + other.total, self.samples + other.samples)

    @property
    def mean(self) -> Tensor:
        """``E`` ``(D, D)``."""
        return self.total / self.samples


def feature_matrix(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> FeatureMatrix:
    """``sum_n sum_k p_nk (w_k - w_n)(w_k - w_n)^T`` with ``w_n = sum_k p_nk w_k``.

    ``p`` is the softmax of the classifier. It is the Fisher information of its outputs about the
    features: how much they change if features move.

    Args:
        features: ``(N, D)``.
        weight: rows of the classifier ``(K, D)``.
        bias: ``(K,)``.

    Source: Magistri et al., ICLR 2024, "Elastic feature consolidation for cold start exemplar-free
    incremental learning" (EFC).
    """
    features, weight = features.double(), weight.double()
    logits = features @ weight.T
    p = (logits if bias is None else logits + bias.double()).softmax(1)
    mean = p @ weight
    return FeatureMatrix(weight.T @ (p.sum(0)[:, None] * weight) - mean.T @ mean, len(features))


def metric_squares(features: Tensor, means: Tensor, matrix: Tensor) -> Tensor:
    """``(f - m)^T E (f - m)`` ``(N, C)`` of features ``(N, D)`` and class means ``(C, D)``."""
    values, vectors = torch.linalg.eigh(matrix)
    root = vectors * values.clamp(min=0).sqrt()
    return squared_distances(features.double() @ root, means.double() @ root)


def metric_displacements(
    squares: Tensor, moved: Tensor, limits: tuple[float, float], sigma: float = 0.2
) -> WeightedDisplacements:
    """Displacements of samples, weighted by how near they were to each class mean in the metric.

    The weight is ``exp(-s / (2 sigma^2))`` with ``s`` the squares, scaled so that ``limits`` become
    0 and 1. Limits over all samples and classes make the sums of several batches add up.

    Args:
        squares: ``(N, C)``, see :func:`metric_squares`.
        moved: ``(N, D)``, new less old features.
        limits: least and largest of all squares.
        sigma: width of the neighbourhood, as a share of the span of squares.

    Source: Magistri et al. 2024, with the scaling of the authors' code.
    """
    least, largest = limits
    scaled = (squares - least) / max(largest - least, torch.finfo(squares.dtype).tiny)
    weights = torch.exp(scaled / (-2 * sigma**2))
    return WeightedDisplacements(weights.T @ moved.double(), weights.sum(0))


def classifier_rows(layer: nn.Module, classes: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weights ``(C, D)`` and biases ``(C,)`` of ``classes`` ``(C,)`` in a classification layer.

    Raises:
        ValueError: it is not linear, or has no row for one of the classes.
    """
    linear = [part for part in layer.modules() if isinstance(part, nn.Linear)]
    if len(linear) != 1:
        raise ValueError(
            f"drift.metric='efm' needs one linear classification layer, and the model has a "
            f"{type(layer).__name__}: take metric='euclidean'"
        )
    weight, bias = linear[0].weight.detach(), linear[0].bias
    if int(classes.max()) >= len(weight):
        raise ValueError(
            f"drift.metric='efm': the classification layer has {len(weight)} rows and none for "
            f"class {int(classes.max())}: take metric='euclidean'"
        )
    return weight[classes], None if bias is None else bias.detach()[classes]
