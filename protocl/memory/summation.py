"""Sums whose error does not grow with the number of terms, and sums without any error.

Three kinds of accumulator, all plain tensors so that they live in an ``nn.Module``:

* *compensated*: a float64 pair ``(high, low)`` whose value is ``high + low``. Adding a term costs
  a handful of additions and leaves a relative error near 2^-104 (Dekker 1971; Knuth, TAOCP vol. 2,
  section 4.2.2), so a million batches are as good as one and a term that is added and subtracted
  again leaves nothing behind.
* *fixed point*: int64 multiples of a stated step. Integer addition is associative, hence the same
  bits under any order and any grouping. Overflow raises.
* *two words*: the same with 128 bits, ``low + 2^64 high``, both words signed. A value has exactly
  one such form, and where it fits 64 bits ``high`` is 0 and ``low`` the value itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EXACT_INTEGER_BITS = 53
"""Integers up to 2^53 are exact in float64; products in fixed point stay below it."""

_LARGEST_HIGH = 2**62
"""Of the upper word: two of them add up in 64 bits, and no sum of samples comes near it."""

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


def add_words_(low: Tensor, high: Tensor, term: Tensor, term_high: Tensor | None = None) -> None:
    """Add ``term + 2^64 term_high`` to ``low + 2^64 high`` in place, with carry.

    Args:
        low, high: int64 of equal shapes.
        term, term_high: the same; ``term_high`` defaults to zero.

    Raises:
        OverflowError: a sum exceeds 2^126; nothing has changed.
    """
    total = low + term
    carry = _carry(low, term, total)
    if term_high is not None:
        carry += term_high
    upper = high + carry
    require_reach(magnitude(upper))
    low.copy_(total)
    high.copy_(upper)


def magnitude(words: Tensor) -> int:
    """The largest magnitude, also that of -2^63; 0 of none."""
    return max(int(words.max()), -int(words.min())) if words.numel() else 0


def require_reach(largest: int) -> None:
    """Refuse an upper word of this magnitude, from which on sums would have to be looked at.

    Raises:
        OverflowError: it is too large.
    """
    if largest > _LARGEST_HIGH:
        raise OverflowError("a second moment exceeds 2^126 steps: no samples have such a one")


def _carry(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """What ``total``, the wrapped sum of ``a`` and ``b``, lacks, in units of 2^64: -1, 0 or 1."""
    wrapped = ((a ^ total) & (b ^ total)) < 0
    return wrapped.to(torch.int64) * torch.where(b < 0, -1, 1)


def negated_words(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """``-(low + 2^64 high)``; -2^63 has no counterpart in 64 bits and takes a carry."""
    least = (low == torch.iinfo(torch.int64).min).to(torch.int64)
    return -low, -high + least


def sum_words(low: Tensor, high: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums over the first dimension: both words."""
    total = torch.zeros_like(low[:0].sum(0))
    total_high = torch.zeros_like(total)
    for row, word in enumerate(low):
        add_words_(total, total_high, word, None if high is None else high[row])
    return total, total_high


def words_as_float(low: Tensor, high: Tensor | None) -> Tensor:
    """The values in float64."""
    value = low.to(torch.float64)
    return value if high is None else value + high.to(torch.float64) * 2.0**64


def words_of_floats(whole: Tensor) -> tuple[Tensor, Tensor]:
    """The words of whole numbers in float64 of magnitude below 2^126."""
    high = torch.round(whole / 2.0**64)
    low = whole - high * 2.0**64  # exact: both are multiples of the last place of ``whole``
    # 2^63 is one more than a word holds.
    over = low >= 2.0**63
    return torch.where(over, low - 2.0**64, low).to(torch.int64), (high + over).to(torch.int64)


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
