"""Sums by class on a device, made without asking it for a number."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from protocl.memory.limits.digits import LARGEST
from protocl.memory.memory import PrototypeMemory
from protocl.memory.summation import EXACT_INTEGER_BITS, add_compensated_
from protocl.memory.symmetric import add_upper_products_, pack_triangles

_ROWS = 32
"""Rows of one product in fixed point, which bounds what features it may hold."""


class PendingSums(ABC):
    """Counts and sums of batches, and what was wrong with them.

    Args:
        like: the memory that they are for.
        ids: ``(K,)`` ascending ids of the classes that may come.
    """

    def __init__(self, like: PrototypeMemory, ids: Tensor) -> None:
        self.level, self.map, self.step = like.level, like.feature_map, like.step
        self.ids = ids
        self.device = like.device
        kind = torch.int64 if like.exact else torch.float64
        classes, width = len(ids), like.width
        self.count = torch.zeros(classes, dtype=torch.int64, device=self.device)
        self.sums = {"sum": torch.zeros(classes, width, dtype=kind, device=self.device)}
        if like.raw_means:
            shape = (classes, like.feature_dim)
            self.sums["raw"] = torch.zeros(shape, dtype=kind, device=self.device)
        if like.level != "mean":
            rows = classes if like.level == "diagonal" else width
            self.sums["second"] = torch.zeros(rows, width, dtype=kind, device=self.device)
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)
        self.known = torch.ones((), dtype=torch.bool, device=self.device)
        self.largest = torch.zeros((), dtype=torch.float64, device=self.device)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add features ``(N, D)`` and labels ``(N,)`` int64, both on the device."""
        if not len(self.ids):
            self.known = torch.zeros_like(self.known)
            return
        rows = torch.searchsorted(self.ids, labels).clamp(max=len(self.ids) - 1)
        self.known &= (self.ids[rows] == labels).all()
        self.count.index_add_(0, rows, torch.ones_like(rows))
        self._add(features, rows)

    @abstractmethod
    def _add(self, features: Tensor, rows: Tensor) -> None: ...

    def _mapped(self, features: Tensor) -> Tensor:
        if self.map.spec == "identity":
            return features
        with torch.autocast(features.device.type, enabled=False):
            return self.map(features)

    def _by_class(self, name: str) -> bool:
        return name != "second" or self.level == "diagonal"

    def grow(self, ids: Tensor) -> None:
        """Make room for further classes; ``ids`` holds those there are as well."""
        places = torch.searchsorted(ids, self.ids)
        self.count = _spread(self.count, places, len(ids))
        for name, total in self.sums.items():
            if self._by_class(name):
                self.sums[name] = _spread(total, places, len(ids))
        self.ids = ids

    def as_memory(self, like: PrototypeMemory) -> PrototypeMemory:
        """All of it as a memory of the kind of ``like``: here the host waits.

        Raises:
            ValueError, OverflowError: see :meth:`.PendingUpdates.flush`.
        """
        self._require_sound()
        seen = self.count > 0
        parts = {"class_ids": self.ids[seen], "count": self.count[seen]}
        for name, total in self.sums.items():
            parts[name] = total[seen] if self._by_class(name.removesuffix("_low")) else total
        if self.level == "shared":
            for name in ("second", "second_low"):
                if name in parts:
                    parts[name] = pack_triangles(parts[name])
        half = like.other_half("second")
        if "second_low" in parts and half is None:
            parts["second"] = parts["second"] + parts.pop("second_low")
        return PrototypeMemory.from_parts(like, parts)

    def _require_sound(self) -> None:
        flags = torch.stack([self.known.double(), self.finite.double(), self.largest]).tolist()
        known, finite, largest = flags
        if not known:
            raise ValueError(
                "a label is not among the classes that were declared, or negative; none of the "
                "batches since the last flush was added"
            )
        if not finite:
            raise ValueError(
                "a feature is NaN or infinite, or its map is: expected finite numbers; none of the "
                "batches since the last flush was added"
            )
        self._require_range(largest)

    @abstractmethod
    def _require_range(self, largest: float) -> None: ...


class FloatingSums(PendingSums):
    """Compensated sums in float64."""

    def __init__(self, like: PrototypeMemory, ids: Tensor) -> None:
        super().__init__(like, ids)
        self.sums |= {f"{name}_low": torch.zeros_like(v) for name, v in self.sums.items()}

    def _by_class(self, name: str) -> bool:
        return super()._by_class(name.removesuffix("_low"))

    def _add(self, features: Tensor, rows: Tensor) -> None:
        # Half precision is mapped after conversion, as in an update.
        features = features if features.dtype == torch.float64 else features.to(torch.float32)
        mapped = self._mapped(features).to(torch.float64)
        self.finite &= torch.isfinite(mapped).all()
        self.largest = torch.maximum(self.largest, mapped.abs().amax())
        terms = {"sum": mapped, "raw": features.to(torch.float64)}
        for name, values in terms.items():
            if name in self.sums:
                self._put(name, torch.zeros_like(self.sums[name]).index_add_(0, rows, values))
        if self.level == "diagonal":
            squares = torch.zeros_like(self.sums["second"]).index_add_(0, rows, mapped.square())
            self._put("second", squares)
        elif self.level == "shared":
            product = torch.zeros_like(self.sums["second"])
            add_upper_products_(product[None], mapped[None])
            self._put("second", product)

    def _put(self, name: str, term: Tensor) -> None:
        add_compensated_(self.sums[name], self.sums[f"{name}_low"], term)

    def _require_range(self, largest: float) -> None:
        if largest > LARGEST:
            raise OverflowError(
                f"a feature of magnitude {largest:g} is beyond {LARGEST:g}; scale the features down"
            )


class FixedPointSums(PendingSums):
    """Sums of whole multiples of a step, in int64."""

    def __init__(self, like: PrototypeMemory, ids: Tensor) -> None:
        super().__init__(like, ids)
        self.moved = torch.zeros((), dtype=torch.bool, device=self.device)
        self.rows = 0

    def _add(self, features: Tensor, rows: Tensor) -> None:
        self.rows += len(rows)
        self.finite &= torch.isfinite(features).all()
        raw = torch.round(features.to(torch.float64) / self.step)
        self.moved |= (raw * self.step != features).any()
        mapped = raw
        if self.map.spec != "identity":
            image = self._mapped(raw * self.step)
            self.finite &= torch.isfinite(image).all()
            mapped = torch.round(image.to(torch.float64) / self.step)
            self.moved = torch.ones_like(self.moved)
        self.largest = torch.maximum(self.largest, torch.maximum(raw.abs().amax(),
                                                                 mapped.abs().amax()))  # fmt: skip
        whole = mapped.to(torch.int64)
        self.sums["sum"].index_add_(0, rows, whole)
        if "raw" in self.sums:
            self.sums["raw"].index_add_(0, rows, raw.to(torch.int64))
        if self.level == "diagonal":
            self.sums["second"].index_add_(0, rows, whole * whole)
        elif self.level == "shared":
            for part in mapped.split(_ROWS):
                self.sums["second"] += (part.mT @ part).to(torch.int64)

    def _require_range(self, largest: float) -> None:
        power = 1 if self.level == "mean" else 2
        each = 2**EXACT_INTEGER_BITS // (_ROWS if self.level == "shared" else 1)
        if largest**power > each or largest**power * self.rows >= 2**63:
            raise OverflowError(
                f"{self.rows} features of magnitude up to {largest * self.step:g} do not fit "
                f"64-bit fixed point with step {self.step:g} unseen; flush more often, use "
                "memory.update, or a larger step; none since the last flush was added"
            )

    def as_memory(self, like: PrototypeMemory) -> PrototypeMemory:
        """See :meth:`.PendingSums.as_memory`."""
        memory = super().as_memory(like)
        memory.rounded = bool(self.moved)
        return memory


def _spread(values: Tensor, places: Tensor, size: int) -> Tensor:
    """Rows of ``values`` at ``places`` of ``size`` rows, the others zero."""
    return values.new_zeros(size, *values.shape[1:]).index_copy_(0, places, values)
