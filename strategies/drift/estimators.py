"""How the features of old classes moved while the backbone trained, estimated from new data.

Statistics of a class that were summed under an old backbone are carried over to the new one. All
estimates come from the features of the current samples under both backbones, ``(N, D)`` each:

====== ===================================================== =====================================
name   old mean ``mu`` becomes                               source
====== ===================================================== =====================================
none   ``mu``
sdc    ``mu`` + weighted mean displacement of its             Yu et al., CVPR 2020, eq. 8 to 10
       neighbourhood
ldc    ``A mu + b``; covariances become ``A S A^T``           Gomez-Villa et al., ECCV 2024; least
                                                              squares instead of its 20 epochs
dpcr   ``R A mu``, moments ``R A P A^T R``; ``R`` projects    He et al., ICML 2025; see
       onto what the class spans                              :mod:`.row_space`
adc    ``mu`` + mean displacement of samples that were        Goswami et al., CVPR 2024, section 4
       perturbed towards it
====== ===================================================== =====================================

``sdc``, ``ldc`` and ``dpcr`` are functions of sums, so estimates of several batches or clients add
up. ``sdc`` may take another metric: :mod:`.feature_matrix` (Magistri et al., ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from protocl.data.augmentation.input_range import InputRange, input_range
from protocl.memory import PrototypeMemory
from protocl.memory.from_statistics import require_plain
from protocl.strategies.training.distances import squared_distances

DriftMethod = Literal["none", "sdc", "ldc", "dpcr", "adc"]

FeaturesOf = Callable[[Tensor], Tensor]
"""From inputs ``(N, ...)`` to features ``(N, D)``."""


class WeightedDisplacements(NamedTuple):
    """Sums behind SDC's estimate; those of several batches are added with ``+``.

    Attributes:
        sums: ``(K, D)`` weighted displacements.
        weights: ``(K,)``.
    """

    sums: Tensor
    weights: Tensor

    def plus(self, other: Self) -> WeightedDisplacements:
        """Add the sums of another batch."""
        return WeightedDisplacements(self.sums + other.sums, self.weights + other.weights)

    @property
    def mean(self) -> Tensor:
        """Displacement ``(K, D)`` of each class."""
        return self.sums / self.weights[:, None]


def weighted_displacements(
    means: Tensor, old: Tensor, new: Tensor, sigma: float = 0.3
) -> WeightedDisplacements:
    """Displacements of samples, weighted by how near they were to each class mean.

    The weight is ``exp(-|f_old - mu_k|^2 / (2 sigma^2)) + 1e-5``.

    Args:
        means: ``(K, D)`` under the old backbone.
        old, new: ``(N, D)`` features of the same samples under both.
        sigma: width of the neighbourhood, in units of the features.

    Source: Yu et al. 2020, "Semantic drift compensation", equations 8 and 9, with the offset of
    the authors' code.
    """
    old, new = old.double(), new.double()
    squares = squared_distances(old, means)
    weights = torch.exp(squares / (-2 * sigma**2)) + 1e-5
    return WeightedDisplacements(weights.T @ (new - old), weights.sum(0))


class PairMoments(NamedTuple):
    """Sums behind the least-squares map from old to new features; ``+`` by :meth:`plus`.

    Attributes:
        gram: ``(E, E)``, ``sum e e^T`` of old features extended by 1, so ``E = D + 1`` with bias.
        cross: ``(E, D)``, ``sum e f_new^T``.
    """

    gram: Tensor
    cross: Tensor

    def plus(self, other: Self) -> PairMoments:
        """Add the sums of another batch."""
        return PairMoments(self.gram + other.gram, self.cross + other.cross)

    def solve(self, ridge: float = 0.0) -> AffineMap:
        """The map of least squared error; of several, the one that is nearest to the identity.

        Hence directions in which no sample differs, such as features that are always 0, stay as
        they are: the new classes show no drift there, and old prototypes may need them.

        Args:
            ridge: weight of the distance to the identity (not for the bias), relative to the mean
                of the diagonal of ``gram``; needed where there are fewer samples than features.
        """
        gram, width = self.gram.clone(), self.cross.shape[1]
        diagonal = gram.diagonal()[:width]
        diagonal += ridge * diagonal.mean()
        change = torch.linalg.pinv(gram, hermitian=True) @ (self.cross - self.gram[:, :width])
        bias = change[width] if len(change) > width else torch.zeros_like(change[0])
        weight = change[:width].T
        identity = torch.eye(width, dtype=weight.dtype, device=weight.device)
        return AffineMap(identity + weight, bias)


def pair_moments(old: Tensor, new: Tensor, *, bias: bool = True) -> PairMoments:
    """The sums of pairs of features ``(N, D)`` under the old and the new backbone."""
    old, new = old.double(), new.double()
    extended = torch.cat([old, torch.ones_like(old[:, :1])], 1) if bias else old
    return PairMoments(extended.T @ extended, extended.T @ new)


class AffineMap(NamedTuple):
    """An affine map of features, ``f -> A f + b``.

    Attributes:
        weight: ``A``, ``(D, D)``.
        bias: ``b``, ``(D,)``.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """``(N, D)`` from ``(N, D)``."""
        return features @ self.weight.T + self.bias

    def covariance(self, covariances: Tensor) -> Tensor:
        """``A S A^T`` of covariances or scatters ``(..., D, D)``."""
        return self.weight @ covariances @ self.weight.T


def mapped(memory: PrototypeMemory, change: AffineMap) -> PrototypeMemory:
    """The statistics as if every sample's feature had been ``A f + b``.

    Exact for levels ``mean``, ``shared`` and ``full``. Level ``diagonal`` lacks the correlations
    that mix into the variances, so these move along unchanged.

    Args:
        memory: of features as they are, in floating point.
        change: from old to new features.

    Raises:
        ValueError: the memory keeps something else.
    """
    if memory.level in ("mean", "diagonal"):
        return displaced(memory, change(memory.means) - memory.means)
    require_plain(memory)
    a, b, sums, counts = *change, memory.sums, memory.counts.double()
    second = change.covariance(memory.second_moment)
    if memory.level == "shared":
        sums, counts = sums.sum(0, keepdim=True), counts.sum(0, keepdim=True)
    crossed = (sums @ a.T)[:, :, None] * b
    added = crossed + crossed.transpose(1, 2) + counts[:, None, None] * torch.outer(b, b)
    return PrototypeMemory.from_statistics(
        memory, classes=memory.classes, counts=memory.counts,
        sums=memory.counts[:, None] * change(memory.means),
        second_moment=second + (added[0] if memory.level == "shared" else added),
    )  # fmt: skip


def displaced(memory: PrototypeMemory, displacements: Tensor) -> PrototypeMemory:
    """The statistics as if every sample of class ``k`` had moved by ``displacements[k]``.

    Covariances stay as they are. Exact at every level.

    Args:
        memory: of features as they are, in floating point.
        displacements: ``(C, D)`` in the order of ``memory.classes``.

    Raises:
        ValueError: the memory keeps something else.
    """
    require_plain(memory)
    means, counts = memory.means, memory.counts.double()
    moved = means + displacements.double()
    second = None
    if memory.level == "diagonal":
        second = memory.second_moment + counts[:, None] * (moved.square() - means.square())
    elif memory.level == "shared":
        weighted = counts[:, None]
        second = memory.second_moment + (weighted * moved).T @ moved - (weighted * means).T @ means
    elif memory.level == "full":
        outer = moved[:, :, None] * moved[:, None] - means[:, :, None] * means[:, None]
        second = memory.second_moment + counts[:, None, None] * outer
    return PrototypeMemory.from_statistics(
        memory, classes=memory.classes, counts=memory.counts,
        sums=counts[:, None] * moved, second_moment=second,
    )  # fmt: skip


def perturbed(
    inputs: Tensor,
    targets: Tensor,
    features_of: FeaturesOf,
    *,
    step: float = 25.0,
    steps: int = 3,
    limits: InputRange | None = None,
) -> Tensor:
    """Inputs moved until their features come near a class mean: ``(K, M, ...)``.

    Each step is ``x <- clip(x - step g / |g|)`` into ``limits``, ``g`` the gradient of the mean
    squared error to the mean, its norm taken over all ``M`` inputs of the class.

    Args:
        inputs: ``(K, M, ...)``, ``M`` samples for each class.
        targets: ``(K, D)`` class means.
        features_of: the old backbone, in evaluation mode.
        step: length of a step for ``M`` inputs together, relative to the span of ``limits``.
        steps: number of steps.
        limits: range of the inputs; by default :func:`.input_range` of these.

    Source: Goswami et al. 2024, "Resurrecting old classes with new data for exemplar-free continual
    learning", equation 4 in the form of the authors' code.
    """
    x, (classes, count) = inputs.detach(), inputs.shape[:2]
    limits = input_range(x) if limits is None else limits
    length_of_step = step * limits.span
    for _ in range(steps):
        with torch.enable_grad():
            leaf = x.flatten(0, 1).requires_grad_()
            features = features_of(leaf).unflatten(0, (classes, count))
            errors = (features - targets[:, None].to(features)).square().flatten(1).mean(1)
            (gradient,) = torch.autograd.grad(errors.sum(), leaf)
        gradient = gradient.reshape(classes, -1)
        length = gradient.norm(dim=1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
        x = (x - length_of_step * (gradient / length).view_as(x)).clamp(limits.low, limits.high)
    return x


def hit_displacements(
    means: Tensor, old: Tensor, new: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean displacement of those samples of each class that the old means assign to it.

    Args:
        means: ``(C, D)`` all old means.
        old, new: ``(K, M, D)`` features of ``M`` samples for each of ``K`` classes.
        rows: ``(K,)`` rows of the classes in ``means``.

    Returns:
        Displacements ``(K, D)``, 0 where there is no hit, and the number of hits ``(K,)``.
    """
    nearest = squared_distances(old.flatten(0, 1), means).argmin(1).view(old.shape[:2])
    hits = (nearest == rows[:, None]).double()
    moved = (hits[:, :, None] * (new.double() - old.double())).sum(1)
    return moved / hits.sum(1, keepdim=True).clamp(min=1), hits.sum(1)
