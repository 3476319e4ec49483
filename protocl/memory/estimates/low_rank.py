"""Second moments of low rank, with the trace that was dropped put back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protocl.memory.memory import PrototypeMemory


class LowRank(NamedTuple):
    """``F^T F + t I`` in place of a positive semi-definite matrix.

    Attributes:
        factor: ``F``, ``(r, W)``: leading eigenvectors, each times the root of its eigenvalue.
        rest: ``t``, what the other eigenvalues are in the mean over all ``W`` directions.
    """

    factor: Tensor
    rest: Tensor

    @classmethod
    def of(cls, matrix: Tensor, rank: int) -> LowRank:
        """The leading ``rank`` eigenpairs of a symmetric ``(W, W)`` matrix.

        With ``e`` the next eigenvalue, ``0 <= G - F^T F <= e I``. Of several matrices the errors
        add up. Ridge weights solve for *all* class sums: what they have in dropped directions would
        be multiplied by ``1 / lambda``, unless the dropped trace is put back as ``t I``.

        Raises:
            ValueError: ``rank`` is not positive.
        """
        if rank < 1:
            raise ValueError(f"rank={rank}: expected one eigenvector or more")
        values, vectors = torch.linalg.eigh(matrix)
        values = values.clamp(min=0)
        kept = slice(max(len(values) - rank, 0), None)
        factor = (vectors[:, kept] * values[kept].sqrt()).T
        return cls(factor, values[: kept.start].sum() / len(values))

    def whole(self) -> Tensor:
        """``F^T F + t I``, ``(W, W)``."""
        matrix = self.factor.T @ self.factor
        matrix.diagonal().add_(self.rest)
        return matrix


def low_rank_kind(like: PrototypeMemory, rank: int) -> PrototypeMemory:
    """An empty memory of the kind of those whose scatter has low rank."""
    return PrototypeMemory(
        like.feature_dim, "shared", feature_map=like.feature_map, fingerprint=like.fingerprint,
        estimated=f"scatter of rank {rank}", moments=like.moments,
    ).to(like.device)  # fmt: skip


def of_low_rank(memory: PrototypeMemory, rank: int) -> tuple[PrototypeMemory, LowRank]:
    """A memory whose scatter within classes has low rank, marked as an estimate, and that scatter.

    Class sums are exact, and so is their part of the second moment: no direction in which classes
    differ is dropped. What is left of the second moment after class means is never negative.

    Args:
        memory: of level ``shared``.
        rank: eigenpairs that are kept.
    """
    moment = LowRank.of(memory.scatter(), rank)
    estimate = PrototypeMemory.from_statistics(
        low_rank_kind(memory, rank), classes=memory.classes, counts=memory.counts,
        sums=memory.sums, scatter=moment.whole(),
    )  # fmt: skip
    return estimate, moment
