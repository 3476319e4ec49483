"""What scatter is worth that is the small difference of two large sums."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.errors import PrecisionWarning

if TYPE_CHECKING:
    from protocl.memory.memory import PrototypeMemory

FAR = 1e5
"""Root mean square over standard deviation beyond which scatter has lost its fifth digit."""

_FIFTH_DIGIT = 2e-5
"""Relative error of scatter at :data:`FAR`."""

_NAMED = 3
"""Features that a warning names."""

_OR_PAIRS = ", or sum second moments in pairs (moments='pairs')"


def rounding_share(samples: Tensor, *, bounded: bool = True) -> Tensor:
    """Share of a sum of squares that rounding can leave in its difference to another.

    Alike terms are rounded alike, so that the error of a running sum grows with the number of
    its terms: measured, up to 0.4 roundings a sample.

    Args:
        samples: how many terms were added.
        bounded: whether the sum of many batches keeps what rounding takes, in another half.
    """
    terms = 16 + samples
    return torch.finfo(torch.float64).eps * (terms.clamp(max=2**52 / FAR**2) if bounded else terms)


def farthest(samples: int, *, bounded: bool = True) -> float:
    """Root mean square over standard deviation up to which scatter keeps its fifth digit.

    Args:
        samples: the most that one sum is of.
        bounded: as for :func:`rounding_share`. Without another half ``n`` additions are off by at
            most ``n`` roundings, ``n 2^-53`` of the sum of squares.
    """
    if bounded:
        return FAR
    return min(FAR, math.sqrt(_FIFTH_DIGIT / (samples * torch.finfo(torch.float64).eps / 2)))


def clear_rounding_(
    scatter: Tensor, squares: Tensor, samples: Tensor, *, bounded: bool = True
) -> Tensor:
    """Set to zero, in place, the scatter of features that do not vary beyond rounding.

    Args:
        scatter: variances ``(C, W)`` or matrices ``(..., W, W)``, times the counts.
        squares: ``(..., W)`` sums of squares that they are the remainder of.
        samples: ``(..., 1)`` how many samples were summed.
        bounded: as for :func:`rounding_share`.
    """
    matrices = scatter.ndim > squares.ndim
    variances = scatter.diagonal(dim1=-2, dim2=-1) if matrices else scatter
    # A feature that is always zero has no products either: nothing to clear.
    flat = (variances <= squares * rounding_share(samples, bounded=bounded)) & (squares != 0)
    if not bool(flat.any()):
        return scatter
    if not matrices:
        return scatter.masked_fill_(flat, 0.0)
    *places, features = flat.nonzero(as_tuple=True)
    scatter[(*places, features)] = 0.0
    scatter.mT[(*places, features)] = 0.0
    return scatter


def offset_ratios(
    squares: Tensor, means: Tensor, scatter: Tensor, counts: Tensor, *, bounded: bool = True
) -> Tensor:
    """How many standard deviations within classes each feature is from the origin, ``(W,)``.

    Infinite where rounding hides the scatter; zero where there is none to hide, as in a feature
    that is constant, or varies between classes only.

    Args:
        squares: ``(W,)`` sums of squares of all samples.
        means: ``(C, W)`` of the classes.
        scatter: ``(W,)`` what is left of the squares within classes.
        counts: ``(C,)`` samples of the classes.
        bounded: as for :func:`rounding_share`.
    """
    samples = counts.sum()
    share = rounding_share(samples, bounded=bounded)
    hidden = scatter <= squares * share
    ratios = torch.where(hidden, torch.inf, squares / scatter).sqrt()
    between = squares - (counts.to(means) @ means).square() / samples
    low, high = means.aminmax(dim=0)
    # Means of samples that vary differ by far more than rounding, however far from the origin.
    constant = high - low <= share * torch.maximum(low.abs(), high.abs())
    none = (scatter == 0) | constant | (between > squares / FAR)
    return torch.where(none & (hidden | (scatter == 0)), 0.0, ratios)


def warn_of_offsets(memory: PrototypeMemory) -> None:
    """Warn of features so far from the origin that sums of their squares lose their scatter.

    A feature of mean ``m`` and standard deviation ``s`` within classes keeps its scatter to a
    relative error near ``2e-15 (m / s)^2``: 2e-7 at 10^4, 2e-5 at 10^5, 2e-3 at 10^6. Single
    numbers (``moments="single"``) of ``n`` samples keep it to at most ``n 2^-53 (m / s)^2``.
    """
    if memory.total == len(memory):  # one sample a class: no scatter that could be lost
        return
    ratios = memory.offset_ratios()
    most = memory.total if memory.level == "shared" else int(memory.counts.max())
    limit = farthest(most, bounded=memory.keeps_rounding)
    far = (ratios > limit).nonzero()[:, 0]
    if len(far) == 0:
        return
    worst = far[ratios[far].argsort(descending=True)][:_NAMED]
    named = ", ".join(
        f"{feature} ({ratio:.0e})" if ratio < torch.inf else f"{feature} (further still)"
        for feature, ratio in zip(worst.tolist(), ratios[worst].tolist(), strict=True)
    )
    warnings.warn(
        f"{len(far)} of {len(ratios)} features lie over {limit:.0e} standard deviations from the "
        f"origin, where sums of squares lose their scatter: feature {named}; subtract a fixed "
        f"offset from the features before they are summed{'' if limit == FAR else _OR_PAIRS}",
        PrecisionWarning,
        stacklevel=4,
    )
