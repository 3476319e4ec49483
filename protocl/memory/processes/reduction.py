"""The sum of the memories of several processes, buffer by buffer.

No memory travels whole. What kind each is comes first, as text, so that all refuse together what
does not fit; then every memory gets rows for the classes of all. From there on:

* *fixed point*: the largest magnitudes, which came along, tell whether a sum can leave 64 bits.
  Where none can, one integer reduction a buffer adds it in place. Else words are added as halves
  of 32 bits and joined again with their carry, a block at a time.
* *floating point*: blocks of all ranks are gathered and added in the order of ranks, with the
  compensation of a merge.

A process holds its memory, one buffer more while rows are made, and blocks that with all copies
stay below 64 MiB, whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.distributed.collectives import (
    Group,
    blocks,
    broadcast_,
    gather,
    gathered,
    sum_,
    together,
)
from protocl.errors import FingerprintError
from protocl.memory.kind import differing
from protocl.memory.summation import add_compensated_, magnitude, require_reach

if TYPE_CHECKING:
    from protocl.memory.memory import PrototypeMemory

_HALF = 32
_MASK = (1 << _HALF) - 1
_WORDS = 64
"""Bytes that a step holds for each number whose two words are added as halves, copies included."""
_PAIR = 16
"""Bytes of a number and its other half. A step holds those of all processes three times: as sent,
as received, and those of the step before."""


@dataclass(frozen=True)
class _Header:
    """What a process says of its memory.

    Attributes:
        described: its kind.
        fingerprint: of its backbone.
        rounded: whether fixed point may have moved a feature.
        classes: their number.
        largest: the largest magnitude of each buffer of integers; of no others.
    """

    described: dict[str, str]
    fingerprint: str | None
    rounded: bool
    classes: int
    largest: dict[str, int]


def all_reduce_(memory: PrototypeMemory, group: Group = None) -> None:
    """Replace the statistics of ``memory`` on every process by their sum; see the module.

    Raises:
        FingerprintError, ValueError, OverflowError, PeerError: see
            :meth:`protocl.PrototypeMemory.all_reduce`.
    """
    headers = gathered(_header(memory), group)
    _refuse_different(headers)
    _Reduction(memory, headers, group).carry_out()
    known = [header.fingerprint for header in headers if header.fingerprint is not None]
    memory.fingerprint = known[0] if known else None
    memory.rounded = any(header.rounded for header in headers)
    memory._touch()


def _header(memory: PrototypeMemory) -> _Header:
    names = memory._layout.owners if memory.exact else ()
    largest = {name: magnitude(memory._buffer(name)) for name in names}
    return _Header(
        memory.describe(), memory.fingerprint, memory.rounded, len(memory.class_ids), largest
    )


def _refuse_different(headers: Sequence[_Header]) -> None:
    """Refuse, on all processes alike, memories of several kinds or backbones."""
    for rank, header in enumerate(headers):
        difference = differing(headers[0].described, header.described)
        if difference is not None:
            name, first, other = difference
            raise ValueError(
                f"cannot add up memories: {name} is {first} on rank 0, {other} on rank {rank}"
            )
    prints = {rank: h.fingerprint for rank, h in enumerate(headers) if h.fingerprint is not None}
    if len(set(prints.values())) > 1:
        said = ", ".join(f"{text} on rank {rank}" for rank, text in prints.items())
        raise FingerprintError(
            f"cannot add up memories of different backbones: {said}; statistics add up under one "
            "backbone only"
        )


class _Reduction:
    """One sum over the processes of a group.

    Args:
        memory: the one here.
        headers: of all, which fit.
        group: the processes.
    """

    def __init__(self, memory: PrototypeMemory, headers: Sequence[_Header], group: Group) -> None:
        self.memory, self.headers, self.group = memory, headers, group
        self.layout = memory._layout

    def carry_out(self) -> None:
        """Make rows for all classes, refuse what would overflow, and add."""
        ids = self._union()
        with together(self.group):
            self.memory._rows_for(ids)
        wide = [name for name in self.layout.forms if self.memory.exact and self._leaves(name)]
        for name in wide:
            self._require_fit(name)
        sum_(self.memory.count, self.group)
        for name in self.layout.forms:
            if not self.memory.exact:
                self._add_floats(name)
            elif name in wide:
                self._add_words(name)
            else:
                sum_(self.memory._buffer(name), self.group)
        self.memory._drop_zero_halves()

    def _union(self) -> Tensor:
        """The class ids of all processes, one list after the other."""
        union = self.memory.class_ids
        for rank, header in enumerate(self.headers):
            ids = self.memory.class_ids.clone()
            if len(ids) != header.classes:
                ids = ids.new_empty(header.classes)
            broadcast_(ids, rank, self.group)
            union = torch.unique(torch.cat([union, ids]))
        return union

    # -- fixed point ------------------------------------------------------------------------

    def _total(self, name: str | None) -> int:
        """The most that a buffer of integers can sum up to."""
        return sum(header.largest.get(name or "", 0) for header in self.headers)

    def _leaves(self, name: str) -> bool:
        """Whether a sum may leave 64 bits, or has done so on some process."""
        half = self.layout.halves.get(name)
        return self._total(name) >= 2**63 or self._total(half) > 0

    def _require_fit(self, name: str) -> None:
        if name in self.layout.halves:
            require_reach(self._total(self.layout.halves[name]) + len(self.headers))
        elif any(bool(high.any()) for _, _, high in self._wide_sums(name)):
            self.memory._refuse_overflow(name)

    def _add_words(self, name: str) -> None:
        memory, half = self.memory, self.layout.halves.get(name)
        low = memory._buffer(name).view(-1)
        if half is not None and memory._half(name) is None:
            setattr(memory, half, torch.zeros_like(memory._buffer(name)))
        for place, total, high in self._wide_sums(name):
            low[place] = total
            if half is not None:
                memory._buffer(half).view(-1)[place] = high

    def _wide_sums(self, name: str) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Blocks of a sum in two words, whatever its size."""
        low, half = self.memory._buffer(name).view(-1), self.memory._half(name)
        high = None if half is None else half.view(-1)
        for place in blocks(len(low), _WORDS):
            upper = torch.zeros_like(low[place]) if high is None else high[place]
            parts = torch.stack([low[place] & _MASK, low[place] >> _HALF, upper])
            sum_(parts, self.group)
            yield place, *_joined(*parts)

    # -- floating point ---------------------------------------------------------------------

    def _add_floats(self, name: str) -> None:
        """Add a sum in the order of ranks; its other half is made when it is first not zero."""
        memory, half = self.memory, self.layout.halves.get(name)
        high = memory._buffer(name).view(-1)
        for place in blocks(len(high), _PAIR * (3 * len(self.headers) + 4)):
            total, *others = gather(self._pair(name, place), self.group)
            for other in others:
                if half is None:
                    total[0].add_(other[0])
                else:
                    add_compensated_(total[0], total[1], other[0], other[1])
            high[place] = total[0]
            if half is not None and (memory._half(name) is not None or bool(total[1].any())):
                if memory._half(name) is None:
                    setattr(memory, half, torch.zeros_like(memory._buffer(name)))
                memory._buffer(half).view(-1)[place] = total[1]

    def _pair(self, name: str, place: slice) -> Tensor:
        """A block ``(2, n)`` of a sum and its other half."""
        value, half = self.memory._buffer(name).view(-1)[place], self.memory._half(name)
        return torch.stack(
            [value, torch.zeros_like(value) if half is None else half.view(-1)[place]]
        )


def _joined(lower: Tensor, upper: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """``lower + 2^32 upper + 2^64 high`` in its one form of two signed words."""
    upper = upper + (lower >> _HALF)
    sign = 1 << (_HALF - 1)
    carry = (upper + sign) >> _HALF
    return ((upper - (carry << _HALF)) << _HALF) | (lower & _MASK), high + carry
