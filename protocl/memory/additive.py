"""Sums by class, and the one operation on them: adding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from protocl.memory.stored import StoredStatistics
from protocl.memory.summation import add_compensated_, overflows


class AdditiveStatistics(StoredStatistics):
    """Statistics to which the sums of others are added."""

    def _combine(self, other: AdditiveStatistics, sign: int) -> None:
        self.require_compatible(other)
        terms = {
            name: buffer.to(self.device) for name, buffer in other.named_buffers(recurse=False)
        }
        # A merge adds the other's own tensors: they can be gigabytes.
        signed = terms if sign > 0 else {name: -term for name, term in terms.items()}
        sums = {name: signed[name] for name in self._shapes}
        lows = None if self.exact else {name: signed[f"{name}_low"] for name in self._shapes}
        self._add_all(terms["class_ids"], terms["count"], sums, lows, sign)
        self.fingerprint = self.fingerprint or other.fingerprint
        self.rounded |= other.rounded
        self._touch(terms["class_ids"])

    def _add_all(
        self,
        ids: Tensor,
        counts: Tensor,
        sums: Mapping[str, Tensor],
        lows: Mapping[str, Tensor] | None,
        sign: int,
    ) -> Tensor:
        """Add counts and sums of the classes ``ids`` and return their rows."""
        if self.exact:
            known = torch.isin(ids, self.class_ids)
            for name, term in sums.items():
                self._require_room(name, ids, term, known)
        rows = self._rows_for(ids)
        self.count.index_add_(0, rows, counts * sign)
        for name, term in sums.items():
            self._add(name, rows, term, None if lows is None else lows[name])
        return rows

    def _begin(self, ids: Tensor, counts: Tensor, sums: Mapping[str, Tensor]) -> Tensor:
        """Take over the first sums as they lie, without a copy, and return their rows."""
        self._require_bytes(len(ids))
        for name, buffer in self.named_buffers(recurse=False):
            if name in sums:
                setattr(self, name, sums[name])
            elif name not in self._shared:
                setattr(self, name, buffer.new_zeros(len(ids), *buffer.shape[1:]))
        self.class_ids, self.count = ids, counts
        return torch.arange(len(ids), device=ids.device)

    def _add(self, name: str, rows: Tensor, term: Tensor, term_low: Tensor | None) -> None:
        """Add ``term`` to ascending rows of one sum (to all of it, when classes share it)."""
        total = self._buffer(name)
        whole = name in self._shared or len(rows) == len(total)
        if self.exact:
            total.add_(term) if whole else total.index_add_(0, rows, term)
            return
        low = self._buffer(f"{name}_low")
        if whole:
            add_compensated_(total, low, term, term_low)
            return
        picked, picked_low = total[rows], low[rows]
        add_compensated_(picked, picked_low, term, term_low)
        total[rows], low[rows] = picked, picked_low

    def _require_room(self, name: str, ids: Tensor, term: Tensor, known: Tensor) -> None:
        total = self._buffer(name)
        if name not in self._shared:
            total = total[torch.searchsorted(self.class_ids, ids[known])]
            term = term[known]
        if overflows(total, term):
            self._refuse_overflow()

    def _require_bound(self, bound: int) -> None:
        second = self.second
        largest = int(second.abs().max()) if second.numel() else 0
        if largest + bound >= 2**63:
            self._refuse_overflow()

    def _refuse_overflow(self) -> None:
        raise OverflowError(
            f"a fixed-point sum exceeds 64 bits with step {self.step:g}; use a larger step"
        )

    def _rows_for(self, ids: Tensor) -> Tensor:
        """Rows of the classes ``ids`` (ascending), with rows made for those not seen before."""
        known = self.class_ids
        merged = torch.unique(torch.cat([known, ids]))
        if len(merged) > len(known):
            self._require_bytes(len(merged))
            places = torch.searchsorted(merged, known)
            for name, buffer in self.named_buffers(recurse=False):
                if name not in self._shared:
                    grown = buffer.new_zeros(len(merged), *buffer.shape[1:])
                    grown[places] = buffer
                    setattr(self, name, grown)
            self.class_ids = merged
        return torch.searchsorted(merged, ids)

    def _require_bytes(self, classes: int) -> None:
        """Refuse to grow to ``classes`` classes where the statistics would not fit in memory."""
        # One buffer after the other is replaced by a longer one.
        moved = max(buffer.nbytes for buffer in self.buffers(recurse=False))
        grown = self.bytes_for(classes) - self.bytes_for(len(self.class_ids))
        self._require(grown + moved, classes, self.count.device)

    def _keep(self, mask: Tensor) -> None:
        """Drop the rows of all classes outside ``mask``."""
        if bool(mask.all()):
            return
        for name, buffer in self.named_buffers(recurse=False):
            if name not in self._shared:
                setattr(self, name, buffer[mask])
            elif not bool(mask.any()):
                # No samples are left, so what remains of the pooled moment is rounding.
                buffer.zero_()
