"""The Gaussian of each class, as a sampler."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from protocl.errors import PrecisionWarning
from protocl.memory.batch import Level

if TYPE_CHECKING:
    from protocl.memory.memory import PrototypeMemory

Covariance = Literal["auto", "full", "shared", "diagonal"]

_PIECE = 1 << 17
"""Elements of the scatters of classes that are made at once: of all they can be gigabytes."""

_KEPT = 1 << 28
"""Elements of all factors, 2 GiB, up to which they are kept for the next draw."""


class ClassGaussians:
    """``N(m_c, S_c + eps I)`` of each class, with the unbiased covariances of a memory.

    Merged memories give the covariance of the pooled class, exactly: ``S_c = B_c / (n_c - 1)`` with
    the scatter ``B_c``. A class of one sample has none, and ``eps`` alone.

    Args:
        memory: statistics, not to be changed while samples of them are drawn; samples are drawn
            under its feature map.
        covariance: ``"full"``: one a class. ``"shared"``: one for all, ``B / (N - C)``.
            ``"diagonal"``: variances of each class. ``"auto"``: the most that the memory knows.
        eps: variance that each feature has more; in squared units of the features.

    Raises:
        ValueError: the memory is empty, or does not know such covariances, or ``eps`` is negative.

    Warns:
        PrecisionWarning: ``eps`` outweighs the variance of the features.
    """

    def __init__(
        self, memory: PrototypeMemory, covariance: Covariance = "auto", eps: float = 1e-4
    ) -> None:
        if not len(memory):
            raise ValueError("the memory is empty: there are no classes to draw samples of")
        if not eps >= 0:
            raise ValueError(f"eps={eps}: expected a variance of 0 or more")
        kept = _kept(memory, covariance)
        self.classes, self.means, self._eps = memory.classes, memory.means, eps
        self._memory = memory if memory.level == kept else memory.at_level(kept)
        self._revision = self._memory.revision
        counts = memory.counts.double()
        self._freedom = (counts - 1).sum() if kept == "shared" else counts - 1
        self._freedom = self._freedom.clamp(min=1)
        self._kept: list[tuple[int, Tensor]] = []
        _warn_of_eps(self._variance(), eps)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` samples of each class, ``(C, n, W)`` float64, by normal numbers of ``generator``.

        Raises:
            ValueError: ``n`` is negative, or the memory has changed since.
        """
        if n < 0:
            raise ValueError(f"n={n}: expected a number of samples of each class")
        shape = len(self.means), n, self.means.shape[1]
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return self.placed(noise.to(self.means.device))

    def placed(self, noise: Tensor) -> Tensor:
        """Samples ``m_c + L_c z`` of standard normal ``noise`` ``(C, n, W)``, in its place.

        Raises:
            ValueError: the memory has changed: scatters would be of other samples than means.
        """
        if self._memory.revision != self._revision:
            raise ValueError("the memory has changed: make ClassGaussians of it again")
        if self._memory.level == "diagonal":
            noise *= (self._variances() + self._eps).sqrt()[:, None]
        elif self._memory.level == "shared":
            noise = noise @ _factor(self._memory.scatter() / self._freedom, self._eps).T
        else:
            for row, factor in self._factors():
                noise[row] = noise[row] @ factor.T
        return noise.add_(self.means[:, None])

    def _factors(self) -> Iterable[tuple[int, Tensor]]:
        """Each class's row, and the factor ``(W, W)`` of its covariance."""
        if not self._kept and len(self.classes) * self._memory.width**2 <= _KEPT:
            self._kept = list(self._made())
        return self._kept or self._made()

    def _made(self) -> Iterator[tuple[int, Tensor]]:
        for rows in torch.arange(len(self.classes)).split(max(1, _PIECE // self._memory.width**2)):
            scatters = self._memory.subset(self.classes[rows]).scatter()
            for row, scatter in zip(rows.tolist(), scatters, strict=True):
                yield row, _factor(scatter / self._freedom[row], self._eps)

    def _variances(self) -> Tensor:
        """``(C, W)`` variances of each class, or ``(W,)`` of all."""
        if self._memory.level == "shared":
            return self._memory.scatter().diagonal() / self._freedom
        by_class = self._memory.at_level("diagonal")
        return by_class.scatter() / self._freedom[:, None]

    def _variance(self) -> float:
        """Mean over features and classes of their variance."""
        return float(self._variances().mean())


def _kept(memory: PrototypeMemory, covariance: Covariance) -> Level:
    """The level of statistics that covariances of this kind come from."""
    if covariance not in get_args(Covariance):
        raise ValueError(f"covariance={covariance!r}: expected {', '.join(get_args(Covariance))}")
    if memory.level == "mean":
        raise ValueError(
            "a memory of level 'mean' knows no covariance to draw samples by: make it with "
            "level='shared', 'diagonal' or 'full'"
        )
    wanted: Level = memory.level if covariance == "auto" else covariance
    memory.require_level(wanted)
    return wanted


def _factor(covariance: Tensor, eps: float) -> Tensor:
    """``L`` with ``L L^T = S + eps I``; triangular where that is positive definite."""
    moved = covariance.clone()
    moved.diagonal().add_(eps)
    factor, failed = torch.linalg.cholesky_ex(moved)
    if not bool(failed):
        return factor
    values, vectors = torch.linalg.eigh(moved)
    return vectors * values.clamp(min=0).sqrt()


def _warn_of_eps(variance: float, eps: float) -> None:
    if 0 < variance < eps:
        warnings.warn(
            f"eps={eps:g} outweighs features whose variance within classes is {variance:.1g} in "
            "the mean: samples are drawn around their means at random; lower eps, or scale the "
            "features up",
            PrecisionWarning,
            stacklevel=4,
        )
