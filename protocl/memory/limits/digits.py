"""Whether the arithmetic of a memory has enough digits for the features that are added."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.errors import PrecisionWarning
from protocl.memory.summation import all_finite

if TYPE_CHECKING:
    from protocl.memory.memory import PrototypeMemory

LARGEST = 1e150
"""Largest magnitude of a feature: a hundred million squares of it add up in float64."""

COARSE = 256
"""Steps that features should spread over in fixed point: eight bits, as in an image."""

_ALIKE = 1e7
"""Magnitude over range from which on squares of a feature are alike in float64."""


def check_wide(values: Tensor, *, squared: bool) -> None:
    """Refuse float64 features too large to be squared, and warn of those whose squares are alike.

    Only float64 has such numbers. From sums they are no longer told from constants, so this is
    said of the samples themselves. NaN and infinite values pass: they are refused elsewhere.

    Args:
        values: ``(N, W)``.
        squared: whether a second moment is kept of them.

    Raises:
        OverflowError: a feature is beyond :data:`LARGEST`.
    """
    low, high = values.aminmax(dim=0)
    sizes = torch.maximum(low.abs(), high.abs())
    if not all_finite(sizes):
        return
    feature = int(sizes.argmax())
    if float(sizes[feature]) > LARGEST:
        raise OverflowError(
            f"feature {feature} has magnitude {float(sizes[feature]):g}: sums of squares in "
            f"float64 hold up to {LARGEST:g}; scale the features down"
        )
    if squared:
        _warn_of_alike(high - low, sizes)


def warn_of_coarse_step(memory: PrototypeMemory) -> None:
    """Warn where fixed point left too little of the spread of all features together.

    Judged by what is accumulated, for a single batch may be alike by chance. What lies on the
    grid, such as whole numbers with a step of 1, loses nothing.
    """
    if not memory.rounded or len(memory) == 0:
        return
    spread, step = _spread(memory), memory.step
    # A class alone that never varies is constant, and as well represented as can be.
    if spread >= COARSE * step or (spread == 0 and len(memory) == 1):
        return
    finer = spread or step
    warnings.warn(
        f"features spread over {spread:.1g}, which is {spread / step:.1g} steps of fixed point "
        f"with step={step:g}: expected {COARSE} or more; use a step of {finer / 2**16:.1g} "
        "or less, or scale the features up",
        PrecisionWarning,
        stacklevel=4,
    )


def _spread(memory: PrototypeMemory) -> float:
    """The largest range of a feature: of class means, or that of even values of its variance."""
    means = memory.means
    spread = float((means.amax(0) - means.amin(0)).max())
    if memory.level == "mean":
        return spread
    squares = memory.squares if memory.level == "shared" else memory.squares.sum(0)
    variance = squares / memory.total - (memory.sums.sum(0) / memory.total).square()
    return max(spread, float((12 * variance.clamp(min=0)).max().sqrt()))


def _warn_of_alike(ranges: Tensor, sizes: Tensor) -> None:
    alike = ((ranges > 0) & (ranges < sizes / _ALIKE)).nonzero()[:, 0]
    if len(alike) == 0:
        return
    feature = int(alike[0])
    warnings.warn(
        f"feature {feature} varies by {float(ranges[feature] / sizes[feature]):.0e} of its "
        "size, which sums of squares in float64 do not resolve: it counts as constant; "
        "subtract a fixed offset from the features first",
        PrecisionWarning,
        stacklevel=8,
    )
