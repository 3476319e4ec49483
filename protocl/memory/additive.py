"""Sums by class, and the one operation on them: adding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from protocl.memory.batch import BatchStatistics
from protocl.memory.buffers import LARGE, GrowingRows
from protocl.memory.stored import StoredStatistics
from protocl.memory.summation import (
    add_compensated_,
    add_words_,
    magnitude,
    negated_words,
    overflows,
    require_reach,
    sum_words,
)
from protocl.memory.symmetric import diagonal_places


class _Broken(dict[str, Any]):
    """In place of the buffers of a memory some of whose sums have samples that others have not."""

    def _refuse(self, *arguments: object) -> NoReturn:
        raise RuntimeError(
            "this memory was interrupted while samples were added: some of its sums have them, "
            "others have not; load it again, or build it anew"
        )

    __contains__ = __getitem__ = __iter__ = __len__ = items = keys = values = _refuse


class AdditiveStatistics(StoredStatistics):
    """Statistics to which the sums of others are added."""

    @contextmanager
    def _wholly(self) -> Iterator[None]:
        """Change sums in the block; who is interrupted there is left without any."""
        try:
            yield
        except BaseException:
            self._break()
            raise

    def _break(self) -> None:
        self._buffers = _Broken()

    def _combine(self, other: AdditiveStatistics, sign: int) -> None:
        self.require_compatible(other)
        terms = {
            name: buffer.to(self.device) for name, buffer in other.named_buffers(recurse=False)
        }
        # A merge adds the other's own tensors: they can be gigabytes.
        signed = terms if sign > 0 else self._negated(terms)
        sums = {name: signed[name] for name in self._layout.forms}
        halves = {name: signed[half] for name, half in self._layout.halves.items()}
        self._add_all(terms["class_ids"], terms["count"], sums, halves, sign)
        if self._layout.lazy:
            self._drop_zero_halves()
        self.fingerprint = self.fingerprint or other.fingerprint
        self.rounded |= other.rounded
        self._touch(terms["class_ids"])

    def _negated(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        signed = {name: -terms[name] for name in self._layout.owners}
        if "second_high" in terms:
            low, high = terms["second"], terms["second_high"]
            whole = high if high.numel() else torch.zeros_like(low)
            signed["second"], signed["second_high"] = negated_words(low, whole)
        return signed

    def _add_all(
        self,
        ids: Tensor,
        counts: Tensor,
        sums: Mapping[str, Tensor],
        halves: Mapping[str, Tensor],
        sign: int,
    ) -> Tensor:
        """Add counts and sums of the classes ``ids`` and return their rows.

        Args:
            ids: ascending.
            counts: of samples.
            sums: by name.
            halves: the other halves of sums that have some, by the name of the sum.
            sign: -1 if counts are to be subtracted; sums have their sign.
        """
        if self.exact:
            known = torch.isin(ids, self.class_ids)
            for name, term in sums.items():
                if name not in self._layout.halves:
                    self._require_room(name, ids, term, known)
            self._require_reach(halves.get("second"))
        rows = self._rows_for(ids)
        with self._wholly():
            self.count.index_add_(0, rows, counts * sign)
            for name, term in sums.items():
                self._add(name, rows, term, halves.get(name))
        return rows

    def _begin(self, ids: Tensor, counts: Tensor, sums: Mapping[str, Tensor]) -> Tensor:
        """Take over the first sums as they lie, without a copy, and return their rows."""
        self._require_bytes(len(ids))
        for name, buffer in self.named_buffers(recurse=False):
            if name in sums:
                setattr(self, name, sums[name])
            elif name not in self._layout.shared:
                setattr(self, name, buffer.new_zeros(len(ids), *buffer.shape[1:]))
        self.class_ids, self.count = ids, counts
        return torch.arange(len(ids), device=ids.device)

    def _add(self, name: str, rows: Tensor, term: Tensor, term_half: Tensor | None) -> None:
        """Add ``term`` to ascending rows of one sum (to all of it, when classes share it)."""
        total = self._buffer(name)
        whole = name in self._layout.shared or len(rows) == len(total)
        if name not in self._layout.halves:
            total.add_(term) if whole else total.index_add_(0, rows, term)
            return
        if term_half is not None and term_half.shape != term.shape:
            term_half = None  # all of it is zero
        half = self._half(name)
        picked = total if whole else total[rows]
        plain = half is None and term_half is None
        if self.exact and plain and not overflows(picked, term):
            picked.add_(term)
        else:
            changed = _rows_of(half, picked, None if whole else rows)
            (add_words_ if self.exact else add_compensated_)(picked, changed, term, term_half)
            self._put_half(name, None if whole else rows, changed)
        if not whole:
            total[rows] = picked

    def _put_half(self, name: str, rows: Tensor | None, changed: Tensor) -> None:
        """Keep rows of the other half of a sum, or all; it is made when it is first not zero."""
        half = self._half(name)
        if half is None and not bool(changed.any()):
            return
        if rows is not None:
            kept = torch.zeros_like(self._buffer(name)) if half is None else half
            kept[rows] = changed
            changed = kept
        setattr(self, self._layout.halves[name], changed)

    def _require_room(self, name: str, ids: Tensor, term: Tensor, known: Tensor) -> None:
        total = self._buffer(name)
        if name not in self._layout.shared:
            total = total[torch.searchsorted(self.class_ids, ids[known])]
            term = term[known]
        if overflows(total, term):
            self._refuse_overflow(name)

    def _require_reach(self, term: Tensor | None) -> None:
        """Refuse upper words whose sum no samples have, before anything is added."""
        half = self._half("second") if "second" in self._layout.forms else None
        if half is not None and term is not None and term.numel():
            require_reach(magnitude(half) + magnitude(term) + 1)

    def _require_bound(self, bound: int) -> None:
        """Refuse what one word an entry could not hold, before any of it is added."""
        if "second" in self._layout.halves:
            return
        second = self.second
        largest = int(second.abs().max()) if second.numel() else 0
        if largest + bound >= 2**63:
            self._refuse_overflow("second")

    def _refuse_overflow(self, name: str) -> None:
        """Refuse a sum of one word an entry; of second moments there may be two."""
        words = ', or moments="pairs"' if name == "second" else ""
        raise OverflowError(
            f"a fixed-point sum exceeds 64 bits with step {self.step:g}; use a larger step{words}"
        )

    def _add_moments(self, rows: Tensor, batch: BatchStatistics) -> None:
        """Add each class's second moment, of samples that are counted already in ``rows``."""
        fresh = self._buffer("count")[rows] == batch.counts
        for positions, moments in batch.second_moments():
            if bool(fresh[positions].all()):  # there is nothing yet to add to
                self._buffer("second")[rows[positions]] = moments
            else:
                self._add("second", rows[positions], moments, None)

    def _rows_for(self, ids: Tensor) -> Tensor:
        """Rows of the classes ``ids`` (ascending), with rows made for those not seen before."""
        known = self.class_ids
        merged = torch.unique(torch.cat([known, ids]))
        if len(merged) > len(known):
            self._require_bytes(len(merged))
            places = torch.searchsorted(merged, known)
            try:
                for name in list(self._buffers):
                    if name not in self._layout.shared:
                        self._grow(name, places, len(merged))
            except Exception:  # such as no room for the largest, when others have grown already
                self._shrink(places, len(merged))
                raise
            except BaseException:  # rows may be under way
                self._break()
                raise
            self.class_ids = merged
        return torch.searchsorted(merged, ids)

    def _grow(self, name: str, places: Tensor, rows: int) -> None:
        """Give a buffer ``rows`` rows, those of before at ``places``."""
        buffer = getattr(self, name)
        if buffer.nbytes < LARGE:
            grown = buffer.new_zeros(rows, *buffer.shape[1:])
            grown[places] = buffer
            setattr(self, name, grown)
        else:
            del buffer  # what has another name cannot be moved
            self._growing.spread(self, name, places, rows)

    def _shrink(self, places: Tensor, rows: int) -> None:
        """Take back what :meth:`_grow` did to some buffers, without asking for memory."""
        for name, buffer in self.named_buffers(recurse=False):
            if name not in self._layout.shared and len(buffer) == rows:
                for row, place in enumerate(places.tolist()):
                    buffer[row] = buffer[place]
                setattr(self, name, buffer[: len(places)])

    @cached_property
    def _growing(self) -> GrowingRows:
        return GrowingRows()

    def _reduce_moments(self, other: AdditiveStatistics) -> None:
        """Take over the diagonals of ``other``, of level ``full``, or their sum over classes."""
        second, half = other.second, other._half("second")
        if self.level == "diagonal":
            places = (..., diagonal_places(self.width).to(self.device))
            second, half = second[places], None if half is None else half[places]
        elif self.exact:
            second, half = sum_words(second, half)
        else:
            second, half = second.sum(0), None if half is None else half.sum(0)
        self.second = second
        if "second" in self._layout.halves:
            self._put_half("second", None, torch.zeros_like(second) if half is None else half)
            self._drop_zero_halves()
        elif half is not None and bool(half.any()):
            self._refuse_overflow("second")

    def _require_bytes(self, classes: int) -> None:
        """Refuse to grow to ``classes`` classes where the statistics would not fit in memory."""
        # One buffer after the other is replaced by a longer one, where it cannot grow in place.
        moved = max(buffer.nbytes for buffer in self.buffers(recurse=False))
        grown = self.bytes_for(classes) - self.bytes_for(len(self.class_ids))
        self._require(grown + moved, classes, self.count.device)

    def _keep(self, mask: Tensor) -> None:
        """Drop the rows of all classes outside ``mask``."""
        if bool(mask.all()):
            return
        for name, buffer in self.named_buffers(recurse=False):
            if name not in self._layout.shared:
                setattr(self, name, buffer[mask])
            elif not bool(mask.any()):
                # No samples are left, so what remains of the pooled moment is rounding.
                buffer.zero_()
        if self._layout.lazy:
            self._drop_zero_halves()


def _rows_of(half: Tensor | None, like: Tensor, rows: Tensor | None) -> Tensor:
    """Rows of a half, or all of it; zeros ``like`` those of the other where there is none."""
    if half is None:
        return torch.zeros_like(like)
    return half if rows is None else half[rows]
