"""What kind of statistics a memory keeps: level, width, feature map, arithmetic, backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

from protocl.errors import DataError, FingerprintError
from protocl.memory.batch import Level
from protocl.memory.buffers import FollowsDevice
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.feature_maps import feature_map as build_map
from protocl.memory.moments.layout import Moments

_REDUCES_TO: dict[Level, tuple[Level, ...]] = {
    "mean": ("mean",),
    "diagonal": ("mean", "diagonal"),
    "shared": ("mean", "shared"),
    "full": ("mean", "diagonal", "shared", "full"),
}
"""What follows from each level."""

_USUAL = {"moments": "pairs"}
"""What a description leaves out."""


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
        return described

    def difference(self, described: Mapping[str, str]) -> tuple[str, str, str] | None:
        """The first thing in which these statistics differ from those of a description.

        Returns:
            its name, what it is here, and there; None if there is none.
        """
        mine = _USUAL | self.describe()
        for name, value in mine.items():
            theirs = described[name] if name not in _USUAL else described.get(name, _USUAL[name])
            if theirs != value:
                return name, value, theirs
        return None

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
            return cls(
                feature_dim, level, feature_map=feature_map, raw_means=raw_means, exact=exact,
                step=step, moments=moments, fingerprint=description.get("fingerprint"),
            )  # fmt: skip
        except ValueError as error:
            raise DataError(f"the description of the statistics is damaged: {error}") from error

    def require_compatible(self, other: StatisticsKind) -> None:
        """Refuse statistics that cannot be added to these.

        Raises:
            FingerprintError: they come from another backbone.
            ValueError: they differ in level, width, feature map or arithmetic.
            TypeError: they are none.
        """
        if not isinstance(other, StatisticsKind):
            raise TypeError(f"the other is a {type(other).__name__}: expected a PrototypeMemory")
        theirs = other.describe()
        if not self.exact and not other.exact:
            theirs["step"] = repr(self.step)
        difference = self.difference(theirs)
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
