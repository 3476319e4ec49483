"""What a memory stores: class ids, counts and sums, their documented form, what they must be."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Self, get_args

import torch
from torch import Tensor

from protocl.errors import DataError
from protocl.memory.batch import LEVELS, Level
from protocl.memory.buffers import outside_inference_mode, own_buffers, owned
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.kind import (
    Layout,
    Moments,
    StatisticsKind,
    SumForm,
    is_zero,
    layout_of,
)
from protocl.memory.limits.capacity import SMALL, require_bytes
from protocl.memory.summation import magnitude, require_reach
from protocl.memory.symmetric import pack_triangles, require_symmetric


class StoredStatistics(StatisticsKind):
    """Buffers of class ids, counts and sums.

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
        moments: Moments = "pairs",
        fingerprint: str | None = None,
        estimated: str = "",
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
        if moments not in get_args(Moments):
            raise ValueError(f"moments={moments!r}: expected 'pairs' or 'single'")
        self.feature_dim = feature_dim
        self.level: Level = level
        self.feature_map = feature_map or FeatureMap()
        self.width = self.feature_map.width(feature_dim)
        self.raw_means = raw_means
        self.exact = exact
        self.step = step
        self.fingerprint = fingerprint
        if estimated and level != "mean":  # means are sums of samples all the same
            self.estimated = estimated
        self.moments: Moments = moments
        self._layout = self._layout_at(level)
        self.rounded = False
        """Whether fixed point may have moved a feature; statistics from elsewhere do not tell."""
        for name, value in self._empty().items():
            self.register_buffer(name, value)
        self._touch()

    # -- what is stored ---------------------------------------------------------------------

    def parts(self) -> dict[str, Tensor]:
        """All that is stored, by name; read it, do not change it.

        =============== ========================================== ============================
        name            content                                    type
        =============== ========================================== ============================
        ``class_ids``   ``(C,)`` ascending                         int64
        ``count``       ``(C,)`` samples of each class             int64
        ``sum``         ``(C, W)`` of the mapped features          float64, int64 if ``exact``
        ``raw``         ``(C, D)`` before the map, with raw_means  the same
        ``second``      second moments: ``(C, W)`` for             the same
                        ``diagonal``, the upper triangles of
                        ``W (W + 1) / 2`` for ``shared`` and
                        ``(C, W (W + 1) / 2)`` for ``full``
        ``..._low``     the other half of a sum, which is the      float64, absent if ``exact``
                        value of both together
        ``second_high`` upper words of second moments, which are   int64, only if ``exact``
                        ``second + 2^64 second_high``
        =============== ========================================== ============================

        ``second_low`` and ``second_high`` are absent where all of them are zero. In fixed point a
        value is an integer times ``step``, or ``step ** 2`` for ``second``.
        """
        return {
            name: buffer
            for name, buffer in self.named_buffers(recurse=False)
            if name not in self._layout.lazy or buffer.shape[-1]
        }

    def _hold(self, parts: Mapping[str, Tensor]) -> Self:
        """Take over what :meth:`parts` gave, without a copy where there is no need for one.

        Whole matrices are taken as well, and halves that are zero may be left out. A memory with
        ``moments="single"`` takes the nearest single numbers of pairs in floating point.

        Raises:
            DataError: a part is missing, has the wrong shape or type, or impossible values.
        """
        whole = self._as_buffers(parts)
        self._require_statistics(whole)
        for name, tensor in whole.items():
            setattr(self, name, tensor.to(self.device))
        self._drop_zero_halves()
        own_buffers(self)
        self.rounded = self.exact
        return self

    def _as_buffers(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parts as buffers have them: triangles for matrices, zeros for halves left out."""
        if self.exact and "second_high" in parts and "second_high" not in self._layout.owners:
            raise DataError(
                "the second moments have upper words, which a memory of level "
                f"'{self.level}' with moments='{self.moments}' has no place for"
            )
        buffers = {}
        for name, buffer in self.named_buffers(recurse=False):
            owner = self._layout.owners.get(name, name)
            if name in parts:
                buffers[name] = self._as_triangles(name, parts[name])
            elif owner in parts:
                main = self._as_triangles(owner, parts[owner])
                empty = name.startswith("second") and main.ndim > 0
                size = (*main.shape[:-1], 0) if empty else main.shape
                buffers[name] = torch.zeros(size, dtype=buffer.dtype, device=main.device)
        return buffers

    def _as_triangles(self, name: str, part: Tensor) -> Tensor:
        """A part as it is, or the upper triangles where it is of whole matrices."""
        owner = self._layout.owners.get(name)
        form = self.forms[owner] if owner is not None else None
        if form is None or not form.symmetric or part.shape[-2:] != (self.width, self.width):
            return part
        if part.ndim != (2 if form.shared else 3):
            return part
        try:
            if name == owner:  # what rounding left of a sum is unlike its transpose
                require_symmetric(f"array '{name}'", part)
        except ValueError as error:
            raise DataError(str(error)) from error
        return pack_triangles(part)

    @property
    def forms(self) -> dict[str, SumForm]:
        """How :meth:`parts` gives each sum."""
        return self._layout.forms

    def bytes_for(
        self, classes: int, level: Level | None = None, moments: Moments | None = None
    ) -> int:
        """The most bytes that statistics like these take for a number of classes.

        Second moments in pairs take half of theirs until the first rounding of a sum is to be
        kept. Upper words in fixed point, which only sums beyond 64 bits have, do not count.

        Args:
            classes: their number.
            level: in place of this memory's own.
            moments: in place of this memory's own.
        """
        each, shared = self._layout_at(level or self.level, moments or self.moments).numbers
        return 8 * (each * classes + shared) + 16 * classes

    def _layout_at(self, level: Level, moments: Moments | None = None) -> Layout:
        raw = self.feature_dim if self.raw_means else 0
        return layout_of(level, self.width, raw, self.exact, self.step, moments or self.moments)

    def _require(self, needed: int, classes: int, device: torch.device) -> None:
        if needed < SMALL:  # a message would be made for nothing
            return
        require_bytes(
            needed,
            device,
            f"statistics of level '{self.level}' of {classes:,} classes x {self.width} features",
            lambda: self._alternatives(classes),
        )

    def _alternatives(self, classes: int) -> dict[str, int]:
        levels = {f"level '{name}'": self.bytes_for(classes, name) for name in get_args(Level)}
        if self.exact or self.level not in ("shared", "full") or self.moments == "single":
            return levels
        single = f"level '{self.level}' with moments='single'"
        return levels | {single: self.bytes_for(classes, moments="single")}

    @property
    def device(self) -> torch.device:
        """Where the statistics are."""
        return self.count.device

    def _empty(self) -> dict[str, Tensor]:
        """Buffers without classes, if a class would fit in memory: they are made to be filled."""
        self._require(self.bytes_for(1), 1, torch.get_default_device())
        values = {name: torch.zeros(0, dtype=torch.int64) for name in ("class_ids", "count")}
        for name, size in self._layout.empty.items():
            values[name] = torch.zeros(size, dtype=self._layout.kind)
        return values

    def _buffer(self, name: str) -> Tensor:
        # torch's get_buffer takes a name for a path: 4 microseconds, as long as a small sum.
        buffer: Tensor = getattr(self, name)
        return buffer

    # -- what changed -----------------------------------------------------------------------

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

    def keyed_rows(self) -> Iterator[tuple[Tensor, list[str]]]:
        """See :class:`protocl.io.pieces.KeyedRows`: classes that have not changed are kept."""
        revisions = self.class_revisions().items()
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.numel() and name not in self._layout.shared:
                yield buffer, [f"{revision} {class_id} {name}" for class_id, revision in revisions]

    def other_half(self, name: str) -> str | None:
        """Name of the part that holds the other half of a sum, or None if it has none."""
        return self._layout.halves.get(name)

    def _half(self, name: str) -> Tensor | None:
        """The other half of a sum; None where it has none, or all of it is zero."""
        half = self.other_half(name)
        buffer = None if half is None else self._buffer(half)
        return None if buffer is None or (buffer.shape[-1] == 0 and name == "second") else buffer

    def _drop_zero_halves(self) -> None:
        """Give back the memory of a half that is zero: equal statistics have equal buffers."""
        half = self._half("second")
        if half is not None and is_zero(half):
            setattr(self, self._layout.halves["second"], half.new_zeros(*half.shape[:-1], 0))

    def _take_over(self, other: StoredStatistics) -> None:
        """Hold a copy of the statistics of ``other``."""
        self.rounded = other.rounded
        for name, buffer in other.named_buffers(recurse=False):
            setattr(self, name, owned(buffer))

    # -- what is loaded ---------------------------------------------------------------------

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickling and deep copies end here."""
        super().__setstate__(state)
        own_buffers(self)

    def get_extra_state(self) -> dict[str, Any]:
        """What ``state_dict`` holds besides the buffers."""
        return {**self.describe(), "fingerprint": self.fingerprint}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Adopt the fingerprint of loaded statistics."""
        self.fingerprint = state["fingerprint"]

    @outside_inference_mode
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state", self.describe())
        self._require_described(saved)
        names = [name for name, _ in self.named_buffers(recurse=False)]
        given = {n: state_dict[f"{prefix}{n}"] for n in names if f"{prefix}{n}" in state_dict}
        if given:
            given = self._as_buffers(given)
            self._require_statistics(given)
            state_dict = state_dict | {f"{prefix}{n}": value for n, value in given.items()}
        for name, value in given.items():
            # The number of classes is part of the state, so buffers take the saved shape.
            empty = torch.empty(value.shape, dtype=value.dtype, device=self.count.device)
            setattr(self, name, empty)
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, value in given.items():
            if self._buffer(name) is value:  # load_state_dict(..., assign=True)
                setattr(self, name, owned(value))
        self._drop_zero_halves()
        self.rounded = self.exact
        self._touch()

    def _require_described(self, saved: Mapping[str, Any]) -> None:
        difference = self.difference(saved)
        if difference is not None:
            name, mine, theirs = difference
            raise ValueError(
                f"cannot load statistics: {name} is {mine} in this memory, "
                f"{theirs} in the saved one"
            )

    def _require_statistics(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse buffers that no samples could have given.

        Raises:
            DataError: one is missing, has the wrong shape or type, or impossible values.
        """
        self._layout.require(tensors)
        high = tensors.get("second_high")
        if high is not None and high.numel():
            try:
                require_reach(magnitude(high))
            except OverflowError as error:
                raise DataError(f"array 'second_high' cannot be: {error}") from error
        ids, counts = tensors["class_ids"], tensors["count"]
        ascending = bool((ids[1:] > ids[:-1]).all()) and bool((ids[:1] >= 0).all())
        if not ascending or bool((counts < 1).any()):
            raise DataError(
                "the statistics hold class ids out of order, negative, or without samples"
            )
