"""What kind of statistics a memory keeps: level, width, feature map, arithmetic, backbone.

======== ============================ ======================================================
moments  floating point               fixed point
======== ============================ ======================================================
pairs    value ``second + second_low``  ``second + 2^64 second_high``, both int64
single   ``second`` alone             ``second`` alone; a sum beyond 64 bits is refused
======== ============================ ======================================================

The other half of a second moment takes no memory until a number in it is not zero: without one it
has no columns. That of other sums, which are small, is always there in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor

from protocl.errors import DataError, FingerprintError
from protocl.memory.batch import LEVELS, Level
from protocl.memory.buffers import FollowsDevice
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.feature_maps import feature_map as build_map
from protocl.memory.symmetric import triangle_size

_REDUCES_TO: dict[Level, tuple[Level, ...]] = {
    "mean": ("mean",),
    "diagonal": ("mean", "diagonal"),
    "shared": ("mean", "shared"),
    "full": ("mean", "diagonal", "shared", "full"),
}
"""What follows from each level."""

_USUAL = {"moments": "pairs", "estimated": "", "order_of_samples": "free"}
"""What a description leaves out."""


Moments = Literal["pairs", "single"]


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


@dataclass(frozen=True)
class Layout:
    """The tensors of one kind of memory.

    Attributes:
        level, width, exact, step, moments: of the memory.
        raw: how many features before the map are summed as well; 0 for none.
    """

    level: Level
    width: int
    raw: int
    exact: bool
    step: float
    moments: Moments

    @cached_property
    def forms(self) -> dict[str, SumForm]:
        """Each sum by name."""
        unit = self.step if self.exact else 1.0
        forms = {"sum": SumForm((self.width,), False, False, unit)}
        if self.raw:
            forms["raw"] = SumForm((self.raw,), False, False, unit)
        second = LEVELS[self.level](self.width)
        if second is not None:
            matrices = second.count(self.width) == 2
            row = (triangle_size(self.width),) if matrices else (self.width,)
            forms["second"] = SumForm(row, -1 not in second, matrices, unit**2)
        return forms

    @cached_property
    def halves(self) -> dict[str, str]:
        """For each sum that has another half the name of that."""
        names = {name: f"{name}_low" for name in self.forms if not self.exact}
        if "second" in self.forms:
            names["second"] = "second_high" if self.exact else "second_low"
            if self.moments == "single":
                del names["second"]
        return names

    @cached_property
    def owners(self) -> dict[str, str]:
        """Name of each tensor of numbers, in the order in which they are kept, to that of its sum.

        Those that come and go (``second_low``, ``second_high``) are among them.
        """
        owners: dict[str, str] = {}
        for name in self.forms:
            owners |= {name: name} | ({self.halves[name]: name} if name in self.halves else {})
        return owners

    @cached_property
    def shared(self) -> frozenset[str]:
        """Names of the tensors that all classes share."""
        return frozenset(name for name, owner in self.owners.items() if self.forms[owner].shared)

    @cached_property
    def lazy(self) -> frozenset[str]:
        """Names of the halves that have no columns while all of them is zero."""
        return frozenset({"second_low", "second_high"} & self.owners.keys())

    @cached_property
    def empty(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of numbers while there are no classes."""
        return {name: self.size(name, 0, whole=name not in self.lazy) for name in self.owners}

    def size(self, name: str, classes: int, *, whole: bool = True) -> tuple[int, ...]:
        """Shape of a tensor, with the columns that a lazy half may lack if ``whole``."""
        if name not in self.owners:
            return (classes,)
        rows = () if name in self.shared else (classes,)
        row = self.forms[self.owners[name]].shape
        return (*rows, *(row if whole else (0,)))

    def require(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse tensors that are not as they are stored, whatever the number of classes.

        Raises:
            DataError: one is missing, has another shape or type, or holds NaN or infinite values.
        """
        for name in ("class_ids", "count", *self.owners):
            if name not in tensors:
                raise DataError(f"the statistics lack the array '{name}'")
            self._require(name, tensors[name], tensors["class_ids"])

    def _require(self, name: str, array: Tensor, ids: Tensor) -> None:
        shape, classes = tuple(array.shape), ids.shape[0] if ids.ndim else 0
        expected = self.size(name, classes)
        kind = self.kind if name in self.owners else torch.int64
        empty = name in self.lazy and shape == self.size(name, classes, whole=False)
        if (shape != expected and not empty) or array.dtype != kind:
            raise DataError(f"array '{name}' is {shape} {array.dtype}, expected {expected} {kind}")
        if array.is_floating_point() and not bool(torch.isfinite(array).all()):
            raise DataError(f"array '{name}' holds NaN or infinite values")

    @cached_property
    def numbers(self) -> tuple[int, int]:
        """The most numbers that the sums take: of one class, and of what all classes share.

        A second word in fixed point, which only sums beyond 64 bits need, does not count.
        """
        each = shared = 0
        for name, form in self.forms.items():
            numbers = form.shape[0] * (2 if name in self.halves and not self.exact else 1)
            each, shared = (each, shared + numbers) if form.shared else (each + numbers, shared)
        return each, shared

    @cached_property
    def kind(self) -> torch.dtype:
        """Of the numbers."""
        return torch.int64 if self.exact else torch.float64


@lru_cache(maxsize=256)
def layout_of(
    level: Level, width: int, raw: int, exact: bool, step: float, moments: Moments
) -> Layout:
    """The layout of these settings: one for all memories of a kind, of which there are many."""
    return Layout(level, width, raw, exact, step, moments)


def is_zero(half: Tensor) -> bool:
    """Whether all of a half ``(..., T)`` is zero; ends at the first row that is not."""
    rows = half.reshape(-1, half.shape[-1]) if half.numel() else ()
    return not any(bool(row.any()) for row in rows)


def differing(
    here: Mapping[str, str], there: Mapping[str, str], *, stated: bool = False
) -> tuple[str, str, str] | None:
    """The first thing in which two descriptions differ.

    Args:
        here, there: see :meth:`StatisticsKind.describe`.
        stated: whether a step counts that no arithmetic uses.

    Returns:
        its name, what it is here, and there; None if there is none.
    """
    floating = {"False"} == {here["exact"], there["exact"]}
    there = _USUAL | dict(there)
    for name, value in (_USUAL | dict(here)).items():
        if there[name] != value and (stated or name != "step" or not floating):
            return name, value, there[name]
    return None


class StatisticsKind(FollowsDevice):
    """What the statistics of a memory are, and which others can be added to them."""

    feature_dim: int
    level: Level
    feature_map: FeatureMap
    width: int
    raw_means: bool
    exact: bool
    step: float
    moments: Moments
    fingerprint: str | None
    estimated: str = ""
    """How the second moment was estimated; empty where it was summed from samples."""
    ordered: ClassVar[bool] = False
    """Whether new samples go on from all before, in their order, and are not summed apart."""

    def provides(self, level: Level) -> bool:
        """Whether the statistics of ``level`` follow from these."""
        return level in _REDUCES_TO[self.level]

    def require_level(self, level: Level) -> None:
        """Refuse what takes statistics of a level that do not follow from these.

        Raises:
            ValueError: they do not.
        """
        if not self.provides(level):
            raise ValueError(
                f"level '{level}' does not follow from level '{self.level}', which gives "
                f"{', '.join(_REDUCES_TO[self.level])}; build the memory with level='{level}'"
            )

    def describe(self) -> dict[str, str]:
        """What must agree before two memories are added, as text (also the header of a file)."""
        described = {
            "feature_dim": str(self.feature_dim),
            "level": self.level,
            "feature_map": self.feature_map.spec,
            "raw_means": str(self.raw_means),
            "exact": str(self.exact),
            "step": repr(self.step),
        }
        # Memories of before there was a choice are in pairs, and so are descriptions without one.
        if self.moments != _USUAL["moments"] and self.level != "mean":
            described["moments"] = self.moments
        if self.estimated:
            described["estimated"] = self.estimated
        return described

    def difference(self, described: Mapping[str, str]) -> tuple[str, str, str] | None:
        """The first thing in which these statistics differ from those of a description.

        Returns:
            its name, what it is here, and there; None if there is none.
        """
        return differing(self.describe(), described, stated=True)

    def require_summed(self) -> None:
        """Refuse to add samples to an estimate.

        Raises:
            ValueError: the second moment is one.
        """
        if self.estimated:
            raise ValueError(
                f"the second moment is an estimate ({self.estimated}), to which no samples can be "
                "added: update the exact statistics that it was made of, and estimate again"
            )

    @classmethod
    def described(
        cls, description: Mapping[str, str], *, feature_map: FeatureMap | None = None
    ) -> Self:
        """A memory without samples of the kind that :meth:`describe` tells of.

        Args:
            description: with the ``fingerprint`` if there is one.
            feature_map: the map, if it has given weights that the description does not hold.

        Raises:
            ConfigError: the feature map cannot be built from its description.
            DataError: the description is damaged.
        """
        try:
            spec, level = description["feature_map"], cast(Level, description["level"])
            feature_dim, step = int(description["feature_dim"]), float(description["step"])
            raw_means, exact = description["raw_means"] == "True", description["exact"] == "True"
            moments = cast(Moments, description.get("moments", _USUAL["moments"]))
        except (KeyError, ValueError) as error:
            raise DataError(f"the description of the statistics is damaged: {error}") from error
        feature_map = feature_map or build_map(spec)
        if feature_map.spec != spec:
            raise DataError(f"the statistics were summed under '{spec}', not '{feature_map.spec}'")
        try:
            if "rank" in description:
                from protocl.memory.estimates.eigenpairs import LowRankMemory

                return cast(Self, LowRankMemory.from_description(description, feature_map))
            if description.get("order_of_samples") == "kept":
                from protocl.memory.estimates.streaming import StreamingMemory

                return cast(Self, StreamingMemory.from_description(description))
            return cls(
                feature_dim, level, feature_map=feature_map, raw_means=raw_means, exact=exact,
                step=step, moments=moments, fingerprint=description.get("fingerprint"),
                estimated=description.get("estimated", ""),
            )  # fmt: skip
        except (KeyError, ValueError) as error:
            raise DataError(f"the description of the statistics is damaged: {error}") from error

    def require_compatible(self, other: StatisticsKind) -> None:
        """Refuse statistics that cannot be added to these.

        Raises:
            FingerprintError: they come from another backbone.
            ValueError: they differ in level, width, feature map or arithmetic, or one is an
                estimate, of which the other is none.
            TypeError: they are none.
        """
        if not isinstance(other, StatisticsKind):
            raise TypeError(f"the other is a {type(other).__name__}: expected a PrototypeMemory")
        if self.estimated != other.estimated:
            here, there = (of.estimated or "none" for of in (self, other))
            raise ValueError(
                f"cannot combine memories: estimate of the second moment: {here} here, {there} in "
                "the other; what is estimated is never mixed with exact sums"
            )
        difference = differing(self.describe(), other.describe())
        if difference is not None:
            name, value, other_value = difference
            raise ValueError(
                f"cannot combine memories: {name} is {value} here, {other_value} in the other"
            )
        if (
            None not in (self.fingerprint, other.fingerprint)
            and self.fingerprint != other.fingerprint
        ):
            raise FingerprintError(
                f"cannot combine memories of different backbones: {self.fingerprint} here, "
                f"{other.fingerprint} in the other; statistics add up under one backbone only"
            )
