"""Analytic contrastive projection onto targets that lie apart, then regression: AnaCP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from protocl.config.validation import is_number
from protocl.heads.base import Head
from protocl.heads.joint.parts import member_memories
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.estimates.gaussians import ClassGaussians
from protocl.memory.feature_maps import FeatureMap, UnitNorm, unit
from protocl.memory.maps.gelu_projection import GeluProjection, gelu
from protocl.memory.maps.joint import Joint

_ZERO = 1e-10
"""Share of the largest singular value below which one is rounding."""

_EPS = 1e-8
"""Added to the eigenvalues of a covariance before it is inverted, as in the authors' code."""


def lifted_targets(
    means: Tensor, covariance: Tensor, *, released: bool = False, shift: Tensor | None = None
) -> Tensor:
    """Targets ``(C, W)`` of unit length: class means whose whitened differences are lifted by one.

    Centred and whitened, the means are ``U diag(s) V^T``; ``s + 1`` in place of ``s`` brings near
    classes apart. Centring takes one direction away, whose ``s`` is 0 and stays so.

    Args:
        means: ``(C, W)``.
        covariance: ``(W, W)`` within classes.
        released: whiten once more instead of going back, as the authors' code does.
        shift: ``(W,)`` added to each whitened target. The authors' code lifts the direction of the
            singular value 0 as well, which adds an arbitrary vector of unit length.

    Source: Momeni et al., NeurIPS 2025, "AnaCP", and the authors' code.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0) + _EPS
    whiten = (vectors * values.rsqrt()) @ vectors.T
    back = whiten if released else (vectors * values.sqrt()) @ vectors.T
    centre = means.mean(0)
    left, sizes, right = torch.linalg.svd((means - centre) @ whiten, full_matrices=False)
    lifted = (left * torch.where(sizes > _ZERO * sizes[0], sizes + 1, 0.0)) @ right
    return unit((lifted if shift is None else lifted + shift) @ back + centre)


def projected(features: Sequence[Tensor], thetas: Sequence[Tensor]) -> Tensor:
    """``o`` ``(N, W)``: mean over projections of unit ``z_h Theta_h``, of features ``z_h``."""
    outputs = [unit(z @ theta) for z, theta in zip(features, thetas, strict=True)]
    return torch.stack(outputs).mean(0)


def ridge(features: Tensor, targets: Tensor, regularization: float) -> Tensor:
    """``(Z^T Z + r I)^-1 Z^T Y`` of features ``(N, M)`` and targets ``(N, K)``."""
    return solved(features.T @ features, features.T @ targets, regularization)


def solved(gram: Tensor, right: Tensor, regularization: float) -> Tensor:
    """``(G + r I)^-1 B``."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + regularization * eye, right)


class AnaCP(Head):
    """A projection onto lifted class means, found by least squares, and ridge regression behind it.

    Projections of random features ``gelu(unit(f) R_h)`` are fitted to :func:`.lifted_targets` and
    averaged. The classifier is fitted to samples of the class Gaussians, seeded, that go the
    same way. All of it follows from sums under a :class:`.Joint` map, so that experiences and
    clients merge exactly.

    Args:
        projections: number ``H``.
        dim: random features ``M`` of each; 5,000 in the paper. The statistics take
            ``16 (D + H M)^2`` bytes.
        regularization: of the projections, and of the classifier.
        per_class: samples of each class that the classifier is fitted to.
        released: see :func:`.lifted_targets`.
        seed: of the random features and of the samples.
        dtype: precision of what is kept and of the logits.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.5, 1.5], [4.0, 1.0], [4.5, 0.5]])
        >>> head = AnaCP(projections=2, dim=8)
        >>> memory = head.new_memory(2).update(x, torch.tensor([0, 0, 1, 1]))
        >>> head.fit(memory).predict(torch.tensor([[0.2, 1.0], [4.2, 0.8]])).tolist()
        [0, 1]

    Source: Momeni et al., NeurIPS 2025, "AnaCP: toward upper-bound continual learning via analytic
    contrastive projection", and the authors' code.
    """

    required_level: Level = "shared"
    keeps_digits: ClassVar[bool] = False
    _last: Tensor
    _classifier: Tensor

    def __init__(
        self,
        projections: int = 3,
        *,
        dim: int = 500,
        regularization: float = 100.0,
        per_class: int = 100,
        released: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype)
        for name, value in (
            ("projections", projections), ("dim", dim), ("regularization", regularization),
            ("per_class", per_class),
        ):  # fmt: skip
            if not (is_number(value) and value > 0):
                raise ValueError(f"{name}={value!r}: expected a number > 0")
        self.projections, self.dim, self.per_class = projections, dim, per_class
        self.regularization, self.released, self.seed = regularization, released, seed
        self._joint: tuple[int, Joint] | None = None

    def feature_map(self, feature_dim: int) -> FeatureMap:
        if self._joint is None or self._joint[0] != feature_dim:
            drawn = [self._drawn(feature_dim, number + 1) for number in range(self.projections)]
            self._joint = feature_dim, Joint([UnitNorm(), *drawn])
        return self._joint[1]

    def _drawn(self, feature_dim: int, number: int) -> GeluProjection:
        return GeluProjection(feature_dim, self.dim, seed=self.seed + number)

    def _fit(self, memory: PrototypeMemory) -> None:
        base, *parts = member_memories(memory)
        targets = lifted_targets(base.means, base.scatter() / base.total, released=self.released)
        thetas = [
            solved(part.second_moment, part.sums.T @ targets, self.regularization) for part in parts
        ]
        last = self._drawn(memory.feature_dim, 0).to(memory.device)
        self._set(_last=last.weight.double(), **{f"_theta_{i}": t for i, t in enumerate(thetas)})
        x, rows = self._replayed(base)
        maps = [part.feature_map for part in parts]
        z = [map.projected(x) for map in maps if isinstance(map, GeluProjection)]
        inner = last.projected(projected(z, thetas))
        one_hot = functional.one_hot(rows, len(memory)).to(inner)
        self._set(_classifier=ridge(inner, one_hot, self.regularization))

    def _replayed(self, base: PrototypeMemory) -> tuple[Tensor, Tensor]:
        """Samples ``(N, D)`` of the class Gaussians of unit features, and their rows."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = ClassGaussians(base, "shared", eps=0.0).draw(self.per_class, generator)
        rows = torch.arange(len(drawn), device=drawn.device)
        return drawn.flatten(0, 1), rows.repeat_interleave(self.per_class)

    def _logits(self, features: Tensor) -> Tensor:
        z = features[:, self._feature_dim :].split(self.dim, dim=1)
        thetas = [getattr(self, f"_theta_{number}") for number in range(self.projections)]
        return gelu(projected(z, thetas) @ self._last) @ self._classifier
