"""Sums whose error does not grow with the number of terms, and sums without any error.

Two kinds of accumulator, both plain tensors so that they live in an ``nn.Module``:

* *compensated*: a float64 pair ``(high, low)`` whose value is ``high + low``. Adding a term costs
  a handful of additions and leaves a relative error near 2^-104 (Dekker 1971; Knuth, TAOCP vol. 2,
  section 4.2.2), so a million batches are as good as one and a term that is added and subtracted
  again leaves nothing behind.
* *fixed point*: int64 multiples of a stated step. Integer addition is associative, hence the same
  bits under any order and any grouping. Overflow raises.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EXACT_INTEGER_BITS = 53
"""Integers up to 2^53 are exact in float64; products in fixed point stay below it."""

_SLAB = 1 << 15
"""Elements that one step of an in-place addition touches (256 KiB a temporary)."""


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded sum and its exact rounding error: ``a + b == s + e`` (Knuth's TwoSum)."""
    s = a + b
    b_virtual = s - a
    return s, (a - (s - b_virtual)) + (b - b_virtual)


def add_compensated_(
    high: Tensor, low: Tensor, term: Tensor, term_low: Tensor | None = None
) -> None:
    """Add ``term + term_low`` to the pair ``(high, low)`` in place.

    Args:
        high, low: float64, equal shapes, contiguous.
        term, term_low: float64 of the same shape; ``term_low`` defaults to zero.
    """
    lows = [None] if term_low is None else [term_low]
    for h, lo, t, *rest in _slabs(high, low, term, *(x for x in lows if x is not None)):
        s, e = two_sum(h, t)
        e += lo
        for t_low in rest:
            e += t_low
        torch.add(s, e, out=h)
        # |e| <= |s|, so the error of this second addition is exact in three operations.
        torch.sub(e, h - s, out=lo)


def all_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite."""
    # The extremes are found several times as quickly as each number is judged; NaN is both.
    return not values.numel() or bool(torch.isfinite(torch.stack(values.aminmax())).all())


def overflows(total: Tensor, term: Tensor) -> bool:
    """Whether ``total + term`` leaves the int64 range anywhere."""
    for t, x in _slabs(total, term.contiguous()):
        s = t + x
        if bool((((t ^ s) & (x ^ s)) < 0).any()):
            return True
    return False


def quantise(values: Tensor, step: float) -> Tensor:
    """Nearest multiples of ``step`` as whole numbers in float64 (ties to even).

    Raises:
        OverflowError: a value lies beyond 2^53 steps.
    """
    whole = torch.round(values.to(torch.float64) / step)
    largest = float(whole.abs().max()) if whole.numel() else 0.0
    if largest > 2**EXACT_INTEGER_BITS:
        raise OverflowError(
            f"a feature of magnitude {largest * step:g} does not fit fixed point with step "
            f"{step:g}: at most {2**EXACT_INTEGER_BITS * step:g}; use a larger step"
        )
    return whole


def rows_per_exact_product(whole: Tensor, step: float) -> int:
    """How many rows of whole numbers a Gram product may sum and stay exact in float64.

    Args:
        whole: ``(N, W)`` whole numbers in float64.
        step: quantisation step, for the message only.

    Raises:
        OverflowError: a single squared value exceeds 2^53.
    """
    largest = float(whole.abs().max()) if whole.numel() else 0.0
    rows = 2**EXACT_INTEGER_BITS // max(int(largest) ** 2, 1)
    if rows < 1:
        raise OverflowError(
            f"the square of a feature of magnitude {largest * step:g} is not exact in fixed "
            f"point with step {step:g}: at most {2 ** (EXACT_INTEGER_BITS / 2) * step:g}; "
            "use a larger step"
        )
    return rows


def _slabs(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching flat pieces, so that temporaries stay small; the first two may be written to."""
    # A view raises where a flat piece would be a copy, and what is added to it lost.
    flat = [tensor.view(-1) for tensor in tensors[:2]]
    flat += [tensor.reshape(-1) for tensor in tensors[2:]]
    for start in range(0, flat[0].numel(), _SLAB):
        yield tuple(piece[start : start + _SLAB] for piece in flat)
