"""Integers of 128 bits as two int64 words: sums of second moments that no message can overflow.

A value is ``low + 2^64 high`` with both words signed. It has exactly one such form, and where it
fits 64 bits ``high`` is 0 and ``low`` the value itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_HIGH = 2**62
"""Of the upper word: two of them add up in 64 bits, and no sum of samples comes near it."""


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


def negated(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
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


def as_float(low: Tensor, high: Tensor | None) -> Tensor:
    """The values in float64."""
    value = low.to(torch.float64)
    return value if high is None else value + high.to(torch.float64) * 2.0**64


def of_floats(whole: Tensor) -> tuple[Tensor, Tensor]:
    """The words of whole numbers in float64 of magnitude below 2^126."""
    high = torch.round(whole / 2.0**64)
    low = whole - high * 2.0**64  # exact: both are multiples of the last place of ``whole``
    # 2^63 is one more than a word holds.
    over = low >= 2.0**63
    return torch.where(over, low - 2.0**64, low).to(torch.int64), (high + over).to(torch.int64)
