"""Whether samples can be taken out of a memory, as far as its sums tell."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.errors import PrecisionWarning

if TYPE_CHECKING:
    from protocl.memory.memory import PrototypeMemory

_LITTLE = 1e-3
"""Share of the squares of a class below which what is left of it has lost digits."""

_SLACK = 1e-9
"""Share of a sum that rounding may leave of it."""


def require_contained(memory: PrototypeMemory, other: PrototypeMemory) -> None:
    """Refuse to subtract ``other``, whose kind is that of ``memory``, if it was never added.

    Raises:
        ValueError: a class or a count would fall below zero, a class without samples would keep a
            sum, or fewer squares would be left than samples of such a sum have. Statistics to
            which noise was added may hold such squares, and are not held to the last.
    """
    rows = _rows_of_classes(memory, other)
    left = memory.counts
    left[rows] -= other.counts.to(left.device)
    sums = _rest(memory.sums, other.sums, rows)
    _require_nothing(sums[left == 0], memory.sums)
    if memory.raw_means:
        raw, gone = (m.unmapped_means * m.counts[:, None] for m in (memory, other))
        _require_nothing(_rest(raw, gone, rows)[left == 0], raw)
    if memory.level == "mean":
        return
    squares = memory.squares
    rest = (
        squares - other.squares if memory.level == "shared" else _rest(squares, other.squares, rows)
    )
    if memory.level != "shared":
        _require_nothing(rest[left == 0], squares)
    sound = _variances_hold(
        memory.squares, memory.sums, memory.counts, squares
    ) and _variances_hold(other.squares, other.sums, other.counts, other.squares)
    if sound and not _variances_hold(rest, sums, left, squares):
        raise ValueError(
            "cannot subtract: what is left would have variances below zero, "
            "so these samples were never added to this memory"
        )


def warn_of_little_left(before: Tensor, squares: Tensor) -> None:
    """Warn where single numbers keep of few samples the rounding of many that were subtracted.

    Args:
        before: ``(C, W)`` or ``(W,)`` sums of squares before the subtraction.
        squares: the same after it.
    """
    sizes, left = before.sum(-1), squares.sum(-1)
    little = (left > 0) & (left < _LITTLE * sizes)
    if not bool(little.any()):
        return
    share = float((left / sizes)[little].min())
    warnings.warn(
        f"{share:.1g} of the squares of a class are left, in single numbers that were rounded when "
        "there was more: their relative error is larger by its inverse; keep second moments in "
        "pairs (moments='pairs') or in fixed point where most samples of a class are forgotten",
        PrecisionWarning,
        stacklevel=4,
    )


def _rows_of_classes(memory: PrototypeMemory, other: PrototypeMemory) -> Tensor:
    """Rows of the classes of ``other``, none of which may have more samples than in ``memory``."""
    known, ids = memory.classes, other.classes.to(memory.device)
    missing = ids[~torch.isin(ids, known)]
    if len(missing):
        raise ValueError(f"cannot subtract classes {missing.tolist()}: they are not in this memory")
    rows = torch.searchsorted(known, ids)
    mine, theirs = memory.counts[rows], other.counts.to(memory.device)
    too_many = (theirs > mine).nonzero()
    if len(too_many):
        first = int(too_many[0])
        raise ValueError(
            f"cannot subtract {int(theirs[first])} samples of class {int(ids[first])}: "
            f"this memory has {int(mine[first])}"
        )
    return rows


def _rest(whole: Tensor, part: Tensor, rows: Tensor) -> Tensor:
    return whole.index_add(0, rows, part.to(whole.device), alpha=-1)


def _require_nothing(rest: Tensor, whole: Tensor) -> None:
    """Refuse sums ``rest`` of classes that would have no samples."""
    if rest.numel() and float(rest.abs().max()) > _SLACK * float(whole.abs().max()):
        raise ValueError(
            "cannot subtract: a class would lose all its samples but not its sum, "
            "so these samples were never added to this memory"
        )


def _variances_hold(squares: Tensor, sums: Tensor, counts: Tensor, scale: Tensor) -> bool:
    """Whether ``sum x^2 >= (sum x)^2 / n`` up to rounding of sums of size ``scale``."""
    least = sums.square() / counts.clamp(min=1)[:, None]
    least = least.sum(0) if squares.ndim == 1 else least
    return bool((squares - least >= -_SLACK * scale.abs().to(squares.device)).all())
