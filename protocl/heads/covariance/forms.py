"""How a Mahalanobis head holds the covariances, and what a distance costs under each form.

======================= ====================== ======================= =====================
form                    statistics (level)     numbers that it holds   products a distance
======================= ====================== ======================= =====================
:class:`ClassFactors`   ``full``               ``C W^2``               ``W^2 / 2``
:class:`LowRank`        ``full``               ``C W (r + 2)``         ``W (r + 2)``
:class:`SharedFactor`   ``shared``             ``W^2 + C W``           ``W``
======================= ====================== ======================= =====================

``C`` classes of ``W`` features, ``r`` directions; a number takes 4 bytes in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from protocl.heads.covariance.directions import warn_of_lost_scatter, whitened_error
from protocl.heads.covariance.shrinkage import whitening
from protocl.heads.distances import write_negative_distances
from protocl.heads.ranking import slices
from protocl.memory.batch import Level
from protocl.tracing import exporting

Parts = Mapping[str, Tensor]

_PIECE = 1 << 20
"""Elements of the differences ``(G, N, W)`` that are held at once."""

_TRACED_ROWS = 32
"""Queries that a graph is laid out for, whose number is not known when it is exported."""

_BLOCKS = 4
"""Blocks of rows in which a triangular factor is multiplied, without most of its zeros."""

_LEAST = 1e-6
"""Least diagonal of a low-rank form, as a multiple of the mean diagonal of its matrix."""


class CovarianceForm(ABC):
    """A form of covariance: parameters from means and matrices, and the logits that follow.

    Attributes:
        level: statistics that the matrices come from.
        keeps_classes: whether what is derived from a class depends on that class alone.
    """

    level: ClassVar[Level] = "full"
    keeps_classes: ClassVar[bool] = False

    @abstractmethod
    def numbers(self, classes: int, width: int) -> int:
        """How many numbers are kept, all but terms in ``C`` and ``W`` alone."""

    @abstractmethod
    def derive(
        self,
        means: Tensor,
        matrices: Iterable[tuple[Tensor, Tensor]],
        dtype: torch.dtype,
        known: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Tensors by name, which the head casts and keeps; the rest gets them back as ``parts``.

        Args:
            means: ``(C, W)`` float64, around their middle, to which queries are moved as well.
            matrices: float64 ``(G, W, W)``, a few classes at a time in the order of ``means``, with
                the sums of squares behind them ``(G, W)`` in the same unit; for level ``shared``
                the one matrix ``(1, W, W)``.
            dtype: what the head casts to; large tensors come in it.
            known: factors of the classes that have not changed, and are neither among ``matrices``
                nor in what is given back; only where :attr:`keeps_classes`.
        """

    def queries(self, parts: Parts, features: Tensor) -> Tensor:
        """Turn mapped features ``(N, W)`` into what is compared with the classes, ``(N, V)``."""
        return features

    @abstractmethod
    def write(self, parts: Parts, queries: Tensor, chosen: slice, out: Tensor) -> None:
        """Write the negative squared distances to the classes ``chosen`` to ``out`` ``(N, c)``."""


class ClassFactors(CovarianceForm):
    """One factor ``A_c`` a class with ``A_c^T A_c = R_c^-1``; distances ``|A_c (x - m_c)|^2``."""

    keeps_classes: ClassVar[bool] = True

    def __init__(self) -> None:
        self._triangular = True

    def numbers(self, classes: int, width: int) -> int:
        return classes * width * (width + 1)

    def derive(
        self,
        means: Tensor,
        matrices: Iterable[tuple[Tensor, Tensor]],
        dtype: torch.dtype,
        known: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        classes, width = means.shape
        factors = means.new_empty(classes - len(known), width, width, dtype=dtype)
        # A pseudo-inverse, for a singular matrix, has a factor that is not triangular.
        triangular = self._triangular or all(map(_is_triangular, known))
        error, rows = 0.0, iter(factors)
        for part, squares in matrices:
            halves = whitening(part)
            error = max(error, whitened_error(halves, part, squares))
            for factor, row in zip(halves, rows, strict=False):
                row.copy_(factor)
                triangular &= _is_triangular(row)
        warn_of_lost_scatter(error)
        self._triangular = triangular
        return {"means": means, "factors": factors}

    def write(self, parts: Parts, queries: Tensor, chosen: slice, out: Tensor) -> None:
        means, factors = parts["means"][chosen], parts["factors"][chosen]
        for rows in _bands(queries):
            part = queries[rows]
            for some in _groups(len(means), part):
                lengths = self._squared_lengths(part - means[some, None], factors[some])
                out[rows, some] = lengths.T.neg()

    def _squared_lengths(self, differences: Tensor, factors: Tensor) -> Tensor:
        """``|A_c d|^2`` ``(G, N)`` of differences ``(G, N, W)`` under factors ``(G, W, W)``."""
        width = factors.shape[1]
        in_blocks = self._triangular and not exporting()  # a graph would hold each block as well
        block = -(-width // _BLOCKS) if in_blocks else width
        total = differences.new_zeros(differences.shape[:2])
        for start in range(0, width, block):
            stop = min(start + block, width)
            whitened = differences[..., :stop] @ factors[:, start : start + block, :stop].mT
            total += whitened.square_().sum(-1)
        return total


def _is_triangular(factor: Tensor) -> bool:
    return torch.equal(factor, factor.tril())


class SharedFactor(CovarianceForm):
    """One factor for all classes, so that whitened queries meet whitened means."""

    level: ClassVar[Level] = "shared"

    def numbers(self, classes: int, width: int) -> int:
        return width * (width + classes)

    def derive(
        self,
        means: Tensor,
        matrices: Iterable[tuple[Tensor, Tensor]],
        dtype: torch.dtype,
        known: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        ((matrix, squares),) = matrices
        factor = whitening(matrix)[0]
        warn_of_lost_scatter(whitened_error(factor, matrix[0], squares[0]))
        points = means @ factor.T
        return {"factor": factor, "points": points, "squares": points.square().sum(1)}

    def queries(self, parts: Parts, features: Tensor) -> Tensor:
        return features @ parts["factor"].T

    def write(self, parts: Parts, queries: Tensor, chosen: slice, out: Tensor) -> None:
        write_negative_distances(queries, parts["points"][chosen], parts["squares"][chosen], out)


class LowRank(CovarianceForm):
    """``R_c`` replaced by ``V_c V_c^T + diag(d_c)``: its largest eigenvectors, its own diagonal.

    ``V_c`` holds what its directions have beyond the mean of the other eigenvalues, as in
    probabilistic principal component analysis (Tipping & Bishop 1999, eq. 7); ``d_c`` makes up
    for the diagonal.

    By Woodbury's identity ``R^-1 = D^-1 - B^T B`` with ``B = L^-1 V^T D^-1`` and
    ``L L^T = I + V^T D^-1 V``, so that a distance is one product with ``[x^2, x]`` and ``r`` more.

    Args:
        rank: ``r``, directions of each class, 0 to ``W``; with 0 a diagonal remains. ``W - 1`` and
            the diagonal are the whole covariance, so that no more are kept.
    """

    def __init__(self, rank: int) -> None:
        if not hasattr(rank, "__index__") or rank < 0:
            raise ValueError(f"rank={rank}: expected 0 or more directions a class")
        self.rank = rank

    def numbers(self, classes: int, width: int) -> int:
        return classes * width * (self._kept(width) + 2)

    def _kept(self, width: int) -> int:
        # The last direction would leave no diagonal to divide by.
        return min(self.rank, max(width - 1, 0))

    def derive(
        self,
        means: Tensor,
        matrices: Iterable[tuple[Tensor, Tensor]],
        dtype: torch.dtype,
        known: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        start = 0
        found: list[list[Tensor]] = []
        for part, _ in matrices:
            derived = self._of(part, means[start : start + len(part)])
            found.append([tensor.to(dtype) for tensor in derived])
            start += len(part)
        weights, constants, directions, places = (
            torch.cat(tensors) for tensors in zip(*found, strict=True)
        )
        return {
            "weights": weights,
            "constants": constants,
            "directions": directions,
            "places": places,
        }

    def _of(self, matrices: Tensor, means: Tensor) -> tuple[Tensor, ...]:
        """Weights ``(G, 2 W)``, constants ``(G,)``, directions ``(G, r, W)``, places ``(G, r)``."""
        rank = self._kept(matrices.shape[1])
        values, vectors = torch.linalg.eigh(matrices)
        rest = values[:, : matrices.shape[1] - rank]
        floor = rest.sum(1) / rest.shape[1]
        kept = (values[:, None, matrices.shape[1] - rank :] - floor[:, None, None]).clamp(min=0)
        loaded = vectors[:, :, matrices.shape[1] - rank :] * kept.sqrt()
        diagonals = matrices.diagonal(dim1=1, dim2=2)
        least = _LEAST * diagonals.mean(1, keepdim=True)
        precisions = 1 / torch.maximum(diagonals - loaded.square().sum(2), least)
        scaled = loaded * precisions[:, :, None]
        inner = loaded.mT @ scaled
        inner.diagonal(dim1=1, dim2=2).add_(1.0)
        directions = torch.linalg.solve_triangular(
            torch.linalg.cholesky(inner), scaled.mT, upper=False
        )
        weights = torch.cat([-precisions, 2 * means * precisions], dim=1)
        constants = -(means.square() * precisions).sum(1)
        places = (directions @ means[:, :, None])[:, :, 0]
        return weights, constants, directions, places

    def queries(self, parts: Parts, features: Tensor) -> Tensor:
        return torch.cat([features.square(), features], dim=1)

    def write(self, parts: Parts, queries: Tensor, chosen: slice, out: Tensor) -> None:
        torch.addmm(parts["constants"][chosen], queries, parts["weights"][chosen].T, out=out)
        directions, places = parts["directions"][chosen], parts["places"][chosen]
        classes, rank, width = directions.shape
        # The components of a group of classes take the room of one block of logits.
        group = classes if exporting() else max(1, classes // max(rank, 1))
        for some in slices(classes if rank else 0, group):
            flat = directions[some].reshape(-1, width)
            components = torch.addmm(places[some].reshape(-1), queries[:, width:], flat.T, beta=-1)
            out[:, some] += components.square_().unflatten(1, (-1, rank)).sum(2)


def _bands(queries: Tensor) -> Iterable[slice]:
    """Rows of queries ``(N, W)`` whose differences to one class fit :data:`_PIECE`."""
    if exporting():
        return (slice(None),)
    return slices(len(queries), max(1, _PIECE // queries.shape[1]))


def _groups(classes: int, part: Tensor) -> Iterable[slice]:
    """Classes whose differences to the queries ``part`` fit :data:`_PIECE`."""
    elements = _TRACED_ROWS * part.shape[1] if exporting() else part.numel()
    return slices(classes, max(1, _PIECE // elements))
