"""What a memory stores: class ids, counts and sums, their documented form, what they must be."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Self, get_args

import torch
from torch import Tensor

from protocl.errors import DataError
from protocl.memory.batch import LEVELS, Level
from protocl.memory.buffers import outside_inference_mode, own_buffers, owned
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.kind import StatisticsKind
from protocl.memory.limits.capacity import SMALL, require_bytes
from protocl.memory.symmetric import pack_triangles, triangle_size, unpack_triangles


class SumForm(NamedTuple):
    """How :meth:`protocl.PrototypeMemory.parts` gives a sum.

    Attributes:
        shape: of a class, or of the whole where classes share it.
        shared: whether all classes share it.
        symmetric: whether its rows are upper triangles of symmetric matrices.
        unit: what 1 stands for, in features or their products; 1.0 in floating point.
    """

    shape: tuple[int, ...]
    shared: bool
    symmetric: bool
    unit: float


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
        self._shapes = self._shapes_at(level)
        """Shape of each sum as a buffer, with -1 for the number of classes."""
        moment = frozenset({"second", "second_low"})
        self._shared = moment if level == "shared" else frozenset()
        self._symmetric = moment if level in ("shared", "full") else frozenset()
        self.rounded = False
        """Whether fixed point may have moved a feature; statistics from elsewhere do not tell."""
        for name, value in self._empty().items():
            self.register_buffer(name, value)
        self._touch()

    # -- what is stored ---------------------------------------------------------------------

    def parts(self) -> dict[str, Tensor]:
        """All that is stored, by name; read it, do not change it.

        ============= ============================================ ============================
        name          content                                      type
        ============= ============================================ ============================
        ``class_ids`` ``(C,)`` ascending                           int64
        ``count``     ``(C,)`` samples of each class               int64
        ``sum``       ``(C, W)`` of the mapped features            float64, int64 if ``exact``
        ``raw``       ``(C, D)`` before the map, with raw_means    the same
        ``second``    second moments: ``(C, W)`` for ``diagonal``, the same
                      upper triangles of ``W (W + 1) / 2`` for
                      ``shared`` and ``(C, W (W + 1) / 2)`` for
                      ``full``
        ``..._low``   the other half of a sum, which is the value  float64, absent if ``exact``
                      of both together
        ============= ============================================ ============================

        In fixed point a value is an integer times ``step``, or ``step ** 2`` for ``second``.
        """
        return {
            name: pack_triangles(buffer) if name in self._symmetric else buffer
            for name, buffer in self.named_buffers(recurse=False)
        }

    def _hold(self, parts: Mapping[str, Tensor]) -> Self:
        """Take over what :meth:`parts` gave, without a copy where there is no need for one.

        Whole matrices are taken as well, and halves that are zero may be left out.

        Raises:
            DataError: a part is missing, has the wrong shape or type, or impossible values.
        """
        whole = {
            name: self._whole(name, buffer, parts)
            for name, buffer in self.named_buffers(recurse=False)
            if name in parts or name.removesuffix("_low") in parts
        }
        self._require_statistics(whole)
        for name, _ in list(self.named_buffers(recurse=False)):
            setattr(self, name, whole[name].to(self.device))
        own_buffers(self)
        self.rounded = self.exact
        return self

    def _whole(self, name: str, buffer: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """A part as its buffer has it; zeros for a half that was left out."""
        part = parts[name] if name in parts else torch.zeros_like(parts[name.removesuffix("_low")])
        is_triangle = name in self._symmetric and part.ndim == buffer.ndim - 1
        if is_triangle and part.shape[-1] == triangle_size(self.width):
            return unpack_triangles(part, self.width)
        return part

    @cached_property
    def forms(self) -> dict[str, SumForm]:
        """How :meth:`parts` gives each sum."""
        return {name: self._form(name, shape) for name, shape in self._shapes.items()}

    def _form(self, name: str, shape: tuple[int, ...]) -> SumForm:
        symmetric = name in self._symmetric
        row = (triangle_size(self.width),) if symmetric else shape[1:]
        unit = (self.step**2 if name == "second" else self.step) if self.exact else 1.0
        return SumForm(row, name in self._shared, symmetric, unit)

    def bytes_for(self, classes: int, level: Level | None = None) -> int:
        """Bytes that statistics like these take for a number of classes.

        Args:
            classes: their number.
            level: in place of this memory's own.
        """
        shapes = self._shapes if level is None else self._shapes_at(level)
        numbers = sum(
            math.prod(classes if n == -1 else n for n in shape) for shape in shapes.values()
        )
        return 8 * numbers * (1 if self.exact else 2) + 16 * classes

    def _shapes_at(self, level: Level) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"sum": (-1, self.width)}
        if self.raw_means:
            shapes["raw"] = (-1, self.feature_dim)
        second = LEVELS[level](self.width)
        return shapes if second is None else shapes | {"second": second}

    def _require(self, needed: int, classes: int, device: torch.device) -> None:
        if needed < SMALL:  # a message would be made for nothing
            return
        require_bytes(
            needed,
            device,
            f"statistics of level '{self.level}' of {classes:,} classes x {self.width} features",
            lambda: {f"level '{name}'": self.bytes_for(classes, name) for name in get_args(Level)},
        )

    @property
    def device(self) -> torch.device:
        """Where the statistics are."""
        return self.count.device

    def _empty(self) -> dict[str, Tensor]:
        """Buffers without classes, if a class would fit in memory: they are made to be filled."""
        self._require(self.bytes_for(1), 1, torch.get_default_device())
        values = {name: torch.zeros(0, dtype=torch.int64) for name in ("class_ids", "count")}
        kind = torch.int64 if self.exact else torch.float64
        for name, shape in self._shapes.items():
            size = [max(n, 0) for n in shape]
            values[name] = torch.zeros(size, dtype=kind)
            if not self.exact:
                values[f"{name}_low"] = torch.zeros(size, dtype=kind)
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
            if name not in self._shared:
                yield buffer, [f"{revision} {class_id} {name}" for class_id, revision in revisions]

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
        mine, theirs = ({"estimated": "", **kind} for kind in (self.describe(), saved))
        for name, value in mine.items():
            if theirs[name] != value:
                raise ValueError(
                    f"cannot load statistics: {name} is {value} in this memory, "
                    f"{theirs[name]} in the saved one"
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
            _require_array(name, tensors, buffer, per_class=name not in self._shared)
        ids, counts = tensors["class_ids"], tensors["count"]
        ascending = bool((ids[1:] > ids[:-1]).all()) and bool((ids[:1] >= 0).all())
        if not ascending or bool((counts < 1).any()):
            raise DataError(
                "the statistics hold class ids out of order, negative, or without samples"
            )


def _require_array(
    name: str, tensors: Mapping[str, Tensor], expected: Tensor, *, per_class: bool
) -> None:
    """Refuse the array ``name`` unless it is like ``expected`` but for its number of classes.

    Raises:
        DataError: it is missing, has another shape or type, or holds NaN or infinite values.
    """
    if name not in tensors:
        raise DataError(f"the statistics lack the array '{name}'")
    array, ids = tensors[name], tensors["class_ids"]
    classes = ids.shape[0] if ids.ndim else 0
    shape = (classes, *expected.shape[1:]) if per_class else tuple(expected.shape)
    if tuple(array.shape) != shape or array.dtype != expected.dtype:
        raise DataError(
            f"array '{name}' is {tuple(array.shape)} {array.dtype}, "
            f"expected {shape} {expected.dtype}"
        )
    if array.is_floating_point() and not bool(torch.isfinite(array).all()):
        raise DataError(f"array '{name}' holds NaN or infinite values")
