"""DPCR's change of each class: the map of the backbone, then back into what the class spanned.

Projecting keeps a class out of directions in which it had no samples, whose entries of the map the
new classes alone decided. It moves *new* features onto the *old* span, which makes sense as long
as the map is near the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.memory.from_statistics import require_plain
from protocl.strategies.drift.estimators import AffineMap

SMALLEST = 1e-10
"""Share of a class's largest eigenvalue below which one is rounding."""


def row_spaces(moments: Tensor) -> Tensor:
    """The projections ``R_c`` ``(C, D, D)`` onto the spans of classes' features.

    Args:
        moments: second moments ``(C, D, D)``, not centred.
    """
    values, vectors = torch.linalg.eigh(moments)
    inside = values > SMALLEST * values[:, -1:]
    spanning = vectors * inside[:, None, :]
    return spanning @ spanning.mT


def mapped_in_row_spaces(memory: PrototypeMemory, change: AffineMap) -> PrototypeMemory:
    """The statistics as if every sample of class ``c`` had become ``R_c A f``.

    Args:
        memory: of level ``full``, of features as they are, in floating point.
        change: from old to new features, without offset.

    Raises:
        ValueError: the memory keeps something else, or the map has an offset.

    Source: He et al., ICML 2025, "Semantic shift estimation via dual-projection and classifier
    reconstruction for exemplar-free class-incremental learning" (DPCR).
    """
    require_row_spaces(memory.level)
    require_plain(memory)
    if bool(change.bias.any()):
        raise ValueError("the map has an offset: expected one of pair_moments(..., bias=False)")
    weights = row_spaces(memory.second_moment) @ change.weight
    return PrototypeMemory.from_statistics(
        memory, classes=memory.classes, counts=memory.counts,
        sums=(weights @ memory.sums[:, :, None])[:, :, 0],
        second_moment=weights @ memory.second_moment @ weights.mT,
    )  # fmt: skip


def require_row_spaces(level: str | None) -> None:
    """Refuse statistics that do not tell what each class spans.

    Raises:
        ValueError: the level is not ``full``.
    """
    if level != "full":
        raise ValueError(
            f"drift='dpcr' projects onto what each class spans, which level '{level}' does not "
            "tell: keep level='full', or take drift='ldc'"
        )
