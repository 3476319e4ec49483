"""Sums by class, and the one operation on them: adding."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from protocl.errors import DataError, FingerprintError
from protocl.memory.batch import LEVELS, Level
from protocl.memory.device import FollowsDevice
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.file import require_array
from protocl.memory.limits.capacity import require_bytes
from protocl.memory.owned import outside_inference_mode, own_buffers, owned
from protocl.memory.summation import add_compensated_, overflows


class AdditiveStatistics(FollowsDevice):
    """Buffers of class ids, counts and sums, to which the sums of others are added.

    The arguments are those of :class:`protocl.PrototypeMemory`, which is what users meet. Rows are
    kept in ascending order of class id, so equal statistics have equal buffers however they came.
    """

    class_ids: Tensor
    count: Tensor
    sum: Tensor
    second: Tensor

    @outside_inference_mode
    def __init__(
        self,
        feature_dim: int,
        level: Level = "mean",
        *,
        feature_map: FeatureMap | None = None,
        raw_means: bool = False,
        exact: bool = False,
        step: float = 2.0**-16,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(feature_dim, "__index__") or feature_dim < 1:
            raise ValueError(f"feature_dim={feature_dim!r}: expected a positive number of features")
        if not isinstance(feature_map, FeatureMap | None):
            raise TypeError(
                f"feature_map={feature_map!r}: expected a FeatureMap; "
                "protocl.memory.feature_maps.feature_map makes one of its text"
            )
        if level not in LEVELS:
            raise ValueError(f"level='{level}': expected one of {', '.join(LEVELS)}")
        if not 0 < step < math.inf:
            raise ValueError(f"step={step}: expected a positive quantisation step")
        self.feature_dim = feature_dim
        self.level: Level = level
        self.feature_map = feature_map or FeatureMap()
        self.width = self.feature_map.width(feature_dim)
        self.raw_means = raw_means
        self.exact = exact
        self.step = step
        self.fingerprint = fingerprint
        self.rounded = False
        """Whether fixed point may have moved a feature; statistics from elsewhere do not tell."""
        for name, value in self._empty(0).items():
            self.register_buffer(name, value)
        self._touch()

    # -- what is stored ---------------------------------------------------------------------

    def bytes_for(self, classes: int, level: Level | None = None) -> int:
        """Bytes that statistics like these take for a number of classes.

        Args:
            classes: their number.
            level: in place of this memory's own.
        """
        numbers = sum(
            math.prod(classes if n == -1 else n for n in shape)
            for shape in self._shapes_at(level or self.level).values()
        )
        return 8 * numbers * (1 if self.exact else 2) + 16 * classes

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each sum, with -1 for the number of classes."""
        return self._shapes_at(self.level)

    def _shapes_at(self, level: Level) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"sum": (-1, self.width)}
        if self.raw_means:
            shapes["raw"] = (-1, self.feature_dim)
        second = LEVELS[level](self.width)
        return shapes if second is None else shapes | {"second": second}

    def _empty(self, classes: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Zero buffers for ``classes`` classes, if they fit in memory."""
        least = max(1, classes)  # an empty memory is made to be filled
        self._require(self.bytes_for(least), least, device or torch.get_default_device())
        values = {
            "class_ids": torch.zeros(classes, dtype=torch.int64, device=device),
            "count": torch.zeros(classes, dtype=torch.int64, device=device),
        }
        kind = torch.int64 if self.exact else torch.float64
        for name, shape in self._shapes.items():
            size = [classes if n == -1 else n for n in shape]
            values[name] = torch.zeros(size, dtype=kind, device=device)
            if not self.exact:
                values[f"{name}_low"] = torch.zeros(size, dtype=kind, device=device)
        return values

    def _buffer(self, name: str) -> Tensor:
        # torch's get_buffer takes a name for a path: 4 microseconds, as long as a small sum.
        buffer: Tensor = getattr(self, name)
        return buffer

    def _touch(self, classes: Tensor | None = None) -> None:
        """Note that the statistics of ``classes``, or of all, have changed."""
        self.revision = uuid.uuid4().hex
        """Changes whenever the statistics do; equal revisions mean equal statistics."""
        if classes is None:
            self._changed_all, self._changed = self.revision, dict[int, str]()
        else:
            self._changed |= dict.fromkeys(classes.tolist(), self.revision)

    def class_revisions(self) -> dict[int, str]:
        """For each class what changes whenever its own statistics do.

        A head can keep what it derived from a class whose revision is still the same.
        """
        ids = self.class_ids.tolist()
        return {class_id: self._changed.get(class_id, self._changed_all) for class_id in ids}

    def _value(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A sum in float64: both halves of the pair, or the fixed-point value in feature units."""
        buffer = self._buffer(name)[rows]
        if not self.exact:
            return buffer + self._buffer(f"{name}_low")[rows]
        unit = self.step**2 if name == "second" else self.step
        return buffer.to(torch.float64) * unit

    # -- the one operation ------------------------------------------------------------------

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
            elif not self._is_shared(name.removesuffix("_low")):
                setattr(self, name, buffer.new_zeros(len(ids), *buffer.shape[1:]))
        self.class_ids, self.count = ids, counts
        return torch.arange(len(ids), device=ids.device)

    def _add(self, name: str, rows: Tensor, term: Tensor, term_low: Tensor | None) -> None:
        """Add ``term`` to ascending rows of one sum (to all of it, when classes share it)."""
        total = self._buffer(name)
        whole = self._is_shared(name) or len(rows) == len(total)
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

    def _is_shared(self, name: str) -> bool:
        return name == "second" and self.level == "shared"

    def _require_room(self, name: str, ids: Tensor, term: Tensor, known: Tensor) -> None:
        total = self._buffer(name)
        if not self._is_shared(name):
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
                if not self._is_shared(name.removesuffix("_low")):
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

    def _require(self, needed: int, classes: int, device: torch.device) -> None:
        require_bytes(
            needed,
            device,
            f"statistics of level '{self.level}' of {classes:,} classes x {self.width} features",
            lambda: {f"level '{name}'": self.bytes_for(classes, name) for name in get_args(Level)},
        )

    def _take_over(self, other: AdditiveStatistics) -> None:
        """Hold a copy of the statistics of ``other``."""
        self.rounded = other.rounded
        for name, buffer in other.named_buffers(recurse=False):
            setattr(self, name, owned(buffer))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickling and deep copies end here."""
        super().__setstate__(state)
        own_buffers(self)

    def _keep(self, mask: Tensor) -> None:
        """Drop the rows of all classes outside ``mask``."""
        if bool(mask.all()):
            return
        for name, buffer in self.named_buffers(recurse=False):
            if not self._is_shared(name.removesuffix("_low")):
                setattr(self, name, buffer[mask])
            elif not bool(mask.any()):
                # No samples are left, so what remains of the pooled moment is rounding.
                buffer.zero_()

    # -- what fits together -----------------------------------------------------------------

    def describe(self) -> dict[str, str]:
        """What must agree before two memories are added, as text (also the header of a file)."""
        return {
            "feature_dim": str(self.feature_dim),
            "level": self.level,
            "feature_map": self.feature_map.spec,
            "raw_means": str(self.raw_means),
            "exact": str(self.exact),
            "step": repr(self.step),
        }

    def _require_compatible(self, other: AdditiveStatistics) -> None:
        if not isinstance(other, AdditiveStatistics):
            raise TypeError(f"the other is a {type(other).__name__}: expected a PrototypeMemory")
        mine, theirs = self.describe(), other.describe()
        if not self.exact and not other.exact:
            mine["step"] = theirs["step"]
        for name, value in mine.items():
            if theirs[name] != value:
                raise ValueError(
                    f"cannot combine memories: {name} is {value} here, {theirs[name]} in the other"
                )
        if (
            None not in (self.fingerprint, other.fingerprint)
            and self.fingerprint != other.fingerprint
        ):
            raise FingerprintError(
                f"cannot combine memories of different backbones: {self.fingerprint} here, "
                f"{other.fingerprint} in the other; statistics add up under one backbone only"
            )

    def get_extra_state(self) -> dict[str, Any]:
        """What ``state_dict`` holds besides the buffers."""
        return {**self.describe(), "fingerprint": self.fingerprint}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Adopt the fingerprint of loaded statistics."""
        self.fingerprint = state["fingerprint"]

    @outside_inference_mode
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state", self.describe())
        for name, value in self.describe().items():
            if saved[name] != value:
                raise ValueError(
                    f"cannot load statistics: {name} is {value} in this memory, "
                    f"{saved[name]} in the saved one"
                )
        names = [name for name, _ in self.named_buffers(recurse=False)]
        given = {n: state_dict[f"{prefix}{n}"] for n in names if f"{prefix}{n}" in state_dict}
        if given:
            self._require_statistics(given)
        for name, value in given.items():
            # The number of classes is part of the state, so buffers take the saved shape.
            empty = torch.empty(value.shape, dtype=value.dtype, device=self.count.device)
            setattr(self, name, empty)
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, value in given.items():
            if self._buffer(name) is value:  # load_state_dict(..., assign=True)
                setattr(self, name, owned(value))
        self.rounded = self.exact
        self._touch()

    def _require_statistics(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse buffers that no samples could have given.

        Raises:
            DataError: one is missing, has the wrong shape or type, or impossible values.
        """
        for name, buffer in self.named_buffers(recurse=False):
            per_class = not self._is_shared(name.removesuffix("_low"))
            require_array(name, tensors, buffer, per_class=per_class)
        ids, counts = tensors["class_ids"], tensors["count"]
        ascending = bool((ids[1:] > ids[:-1]).all()) and bool((ids[:1] >= 0).all())
        if not ascending or bool((counts < 1).any()):
            raise DataError(
                "the statistics hold class ids out of order, negative, or without samples"
            )
