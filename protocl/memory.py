"""The prototype memory: additive sufficient statistics of each class's features.

A memory is a commutative monoid with inverses. It is updated with a batch, merged with another
memory and has another memory subtracted from it, and all three are one operation: adding sums.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from protocl.accumulate import add_compensated_, overflows
from protocl.batch import LEVELS, BatchStatistics, Level
from protocl.device import FollowsDevice
from protocl.errors import FingerprintError
from protocl.maps import FeatureMap

_REDUCES_TO: dict[Level, tuple[Level, ...]] = {
    "mean": ("mean",),
    "diagonal": ("mean", "diagonal"),
    "shared": ("mean", "shared"),
    "full": ("mean", "diagonal", "shared", "full"),
}


class PrototypeMemory(FollowsDevice):
    """Count, sum and (by level) second moment of every class seen.

    =========== ======================================== ================================
    level       kept besides counts and sums             serves
    =========== ======================================== ================================
    ``mean``    nothing                                  nearest mean
    ``diagonal`` squares ``(C, W)``                      Gaussian heads, radii
    ``shared``  one second moment ``(W, W)``             linear discriminant, ridge
    ``full``    second moments ``(C, W, W)``             Mahalanobis (FeCAM), all the above
    =========== ======================================== ================================

    ``C`` classes, ``D`` features as the backbone gives them, ``W`` features after the map.

    Args:
        feature_dim: ``D``.
        level: one of the levels above.
        feature_map: map applied to every sample before it is summed; identity by default.
        raw_means: also keep the sums of the features before the map.
        exact: accumulate in fixed point, so that any order and grouping of updates and merges
            gives the same bits. Features are rounded to multiples of ``step``.
        step: quantisation step of ``exact``; a feature moves by at most ``step / 2``.
        fingerprint: identity of the backbone. Memories of different backbones refuse to merge.

    Example:
        >>> features = torch.tensor([[0.0, 2.0], [0.0, 4.0], [1.0, 1.0]])
        >>> labels = torch.tensor([7, 7, 3])
        >>> memory = PrototypeMemory(feature_dim=2).update(features, labels)
        >>> memory.classes.tolist(), memory.means.tolist()
        ([3, 7], [[1.0, 1.0], [0.0, 3.0]])
    """

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
        if feature_dim < 1:
            raise ValueError(f"feature_dim={feature_dim}: expected a positive number of features")
        if level not in LEVELS:
            raise ValueError(f"level='{level}': expected one of {', '.join(LEVELS)}")
        if step <= 0:
            raise ValueError(f"step={step}: expected a positive quantisation step")
        self.feature_dim = feature_dim
        self.level: Level = level
        self.feature_map = feature_map or FeatureMap()
        self.width = self.feature_map.width(feature_dim)
        self.raw_means = raw_means
        self.exact = exact
        self.step = step
        self.fingerprint = fingerprint
        for name, value in self._empty(0).items():
            self.register_buffer(name, value)
        self._touch()

    # -- what is stored ---------------------------------------------------------------------

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each sum, with -1 for the number of classes."""
        shapes: dict[str, tuple[int, ...]] = {"sum": (-1, self.width)}
        if self.raw_means:
            shapes["raw"] = (-1, self.feature_dim)
        second = LEVELS[self.level](self.width)
        return shapes if second is None else shapes | {"second": second}

    def _empty(self, classes: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Zero buffers for ``classes`` classes."""
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

    def _touch(self) -> None:
        self.revision = uuid.uuid4().hex
        """Changes whenever the statistics do; equal revisions mean equal statistics."""

    def _value(self, name: str) -> Tensor:
        """A sum in float64: both halves of the pair, or the fixed-point value in feature units."""
        buffer = self.get_buffer(name)
        if not self.exact:
            return buffer + self.get_buffer(f"{name}_low")
        unit = self.step**2 if name == "second" else self.step
        return buffer.to(torch.float64) * unit

    # -- what users read --------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the statistics are."""
        return self.get_buffer("count").device

    @property
    def classes(self) -> Tensor:
        """``(C,)`` int64 class ids, ascending."""
        return self.get_buffer("class_ids").clone()

    @property
    def counts(self) -> Tensor:
        """``(C,)`` int64 number of samples of each class."""
        return self.get_buffer("count").clone()

    @property
    def total(self) -> int:
        """Number of samples of all classes."""
        return int(self.get_buffer("count").sum())

    @property
    def sums(self) -> Tensor:
        """``(C, W)`` float64 sums of the mapped features."""
        return self._value("sum")

    @property
    def means(self) -> Tensor:
        """``(C, W)`` float64 class means of the mapped features: the prototypes."""
        return self.sums / self.get_buffer("count")[:, None]

    @property
    def unmapped_means(self) -> Tensor:
        """``(C, D)`` float64 class means of the features before the map.

        Raises:
            ValueError: the memory was made without ``raw_means=True`` and has a map.
        """
        if self.raw_means:
            return self._value("raw") / self.get_buffer("count")[:, None]
        if self.feature_map.spec != "identity":
            raise ValueError(
                "means before the feature map were not kept; make the memory with raw_means=True"
            )
        return self.means

    @property
    def second_moment(self) -> Tensor:
        """Sums of squares ``(C, W)``, or of outer products ``(W, W)`` or ``(C, W, W)``, float64.

        Raises:
            ValueError: the level is ``mean``.
        """
        if self.level == "mean":
            raise ValueError("a memory of level 'mean' keeps no second moment; use another level")
        return self._value("second")

    def scatter(self) -> Tensor:
        """Within-class scatter ``sum_i (f_i - mu_yi)(f_i - mu_yi)^T``, float64.

        Returns:
            ``(W, W)`` pooled over classes for level ``shared``, ``(C, W, W)`` for ``full``, and its
            diagonals ``(C, W)`` for ``diagonal``. Divide by the counts for covariances.
        """
        means, counts = self.means, self.get_buffer("count").to(torch.float64)
        if self.level == "diagonal":
            return (self.second_moment - counts[:, None] * means**2).clamp_(min=0.0)
        if self.level == "shared":
            return self.second_moment - (means * counts[:, None]).T @ means
        return torch.baddbmm(
            self.second_moment, (means * -counts[:, None])[:, :, None], means[:, None, :]
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the statistics occupy."""
        return sum(buffer.nbytes for buffer in self.buffers(recurse=False))

    def provides(self, level: Level) -> bool:
        """Whether the statistics of ``level`` follow from these."""
        return level in _REDUCES_TO[self.level]

    def __len__(self) -> int:
        return len(self.get_buffer("class_ids"))

    def __bool__(self) -> bool:
        """Always true: an empty memory is still a memory."""
        return True

    def __contains__(self, class_id: int) -> bool:
        return bool((self.get_buffer("class_ids") == class_id).any())

    def extra_repr(self) -> str:
        parts = [f"classes={len(self)}, samples={self.total}, feature_dim={self.feature_dim}"]
        parts += [f"level={self.level}", f"exact={self.exact}" if self.exact else ""]
        return ", ".join(part for part in parts if part)

    # -- arithmetic -------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Self:
        """Add the samples of a batch. Nothing changes if the batch is refused.

        Args:
            features: ``(N, D)`` floating point of any precision, on any device.
            labels: ``(N,)`` integer class ids, in any order, of any value >= 0.

        Raises:
            TypeError: features are not floating point, or labels not integers.
            ValueError: shapes do not fit, a feature is NaN or infinite, or a label is negative.
            OverflowError: in fixed point, a value or a sum does not fit.
        """
        batch = BatchStatistics(
            features, labels, feature_dim=self.feature_dim, feature_map=self.feature_map,
            level=self.level, raw=self.raw_means, step=self.step if self.exact else None,
            device=self.device,
        )  # fmt: skip
        if len(labels) == 0:
            return self
        sums = batch.sums()
        if self.exact and self.level == "full":
            self._require_bound(batch.second_moment_bound())
        rows = self._add_all(batch.class_ids, batch.counts, sums, None, sign=1)
        if self.level == "full":
            for positions, moments in batch.second_moments():
                self._add("second", rows[positions], moments, None)
        self._touch()
        return self

    @torch.no_grad()
    def merge(self, other: PrototypeMemory) -> Self:
        """Add the statistics of another memory, as if its samples had been seen here.

        Raises:
            FingerprintError: the memories come from different backbones.
            ValueError: they differ in level, width, feature map or arithmetic.
            OverflowError: in fixed point, a sum does not fit.
        """
        self._combine(other, sign=1)
        return self

    @torch.no_grad()
    def subtract(self, other: PrototypeMemory) -> Self:
        """Take away the statistics of another memory; classes left without samples disappear.

        Raises:
            FingerprintError: the memories come from different backbones.
            ValueError: they do not fit, or ``other`` holds what was never added here.
        """
        self._require_contains(other)
        self._combine(other, sign=-1)
        self._keep(self.get_buffer("count") > 0)
        return self

    def __add__(self, other: PrototypeMemory) -> PrototypeMemory:
        return self.copy().merge(other)

    def __sub__(self, other: PrototypeMemory) -> PrototypeMemory:
        return self.copy().subtract(other)

    def __iadd__(self, other: PrototypeMemory) -> Self:
        return self.merge(other)

    def __isub__(self, other: PrototypeMemory) -> Self:
        return self.subtract(other)

    def empty_like(self, level: Level | None = None) -> PrototypeMemory:
        """A memory without samples that otherwise fits this one."""
        return PrototypeMemory(
            self.feature_dim, level or self.level, feature_map=self.feature_map,
            raw_means=self.raw_means, exact=self.exact, step=self.step,
            fingerprint=self.fingerprint,
        ).to(self.device)  # fmt: skip

    def copy(self) -> PrototypeMemory:
        """An independent memory with the same statistics."""
        twin = self.empty_like()
        for name, buffer in self.named_buffers(recurse=False):
            setattr(twin, name, buffer.clone())
        twin.revision = self.revision
        return twin

    def subset(self, classes: Iterable[int] | Tensor) -> PrototypeMemory:
        """The statistics of some classes.

        Raises:
            KeyError: a class is not in the memory.
            ValueError: the level is ``shared``, whose second moment cannot be split by class.
        """
        if self.level == "shared":
            raise ValueError(
                "the pooled second moment of level 'shared' cannot be split by class; "
                "take memory.at_level('mean').subset(...), or use level 'full'"
            )
        wanted = torch.as_tensor(list(classes), dtype=torch.int64, device=self.device)
        missing = wanted[~torch.isin(wanted, self.get_buffer("class_ids"))]
        if len(missing):
            raise KeyError(f"classes {missing.tolist()} are not in the memory")
        part = self.copy()
        part._keep(torch.isin(self.get_buffer("class_ids"), wanted))
        part._touch()
        return part

    def forget(self, classes: Iterable[int] | Tensor) -> Self:
        """Remove whole classes; for level ``shared`` subtract a memory of those classes instead.

        Raises:
            KeyError, ValueError: as :meth:`subset`.
        """
        return self.subtract(self.subset(classes))

    def at_level(self, level: Level) -> PrototypeMemory:
        """A copy reduced to what ``level`` keeps.

        Raises:
            ValueError: the statistics of ``level`` do not follow from these.
        """
        if not self.provides(level):
            raise ValueError(
                f"level '{level}' does not follow from level '{self.level}', which gives "
                f"{', '.join(_REDUCES_TO[self.level])}; build the memory with level='{level}'"
            )
        if level == self.level:
            return self.copy()
        reduced = self.empty_like(level)
        reduced._rows_for(self.get_buffer("class_ids"))
        for name in reduced._buffers:
            source = self.get_buffer(name)
            if name.startswith("second"):
                source = (
                    source.diagonal(dim1=1, dim2=2).clone()
                    if level == "diagonal"
                    else source.sum(0)
                )
            setattr(reduced, name, source.clone())
        return reduced

    # -- the one operation ------------------------------------------------------------------

    def _combine(self, other: PrototypeMemory, sign: int) -> None:
        self._require_compatible(other)
        terms = {
            name: buffer.to(self.device) for name, buffer in other.named_buffers(recurse=False)
        }
        sums = {name: terms[name] * sign for name in self._shapes}
        lows = None if self.exact else {name: terms[f"{name}_low"] * sign for name in self._shapes}
        self._add_all(terms["class_ids"], terms["count"], sums, lows, sign)
        self.fingerprint = self.fingerprint or other.fingerprint
        self._touch()

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
            known = torch.isin(ids, self.get_buffer("class_ids"))
            for name, term in sums.items():
                self._require_room(name, ids, term, known)
        rows = self._rows_for(ids)
        self.get_buffer("count").index_add_(0, rows, counts * sign)
        for name, term in sums.items():
            self._add(name, rows, term, None if lows is None else lows[name])
        return rows

    def _add(self, name: str, rows: Tensor, term: Tensor, term_low: Tensor | None) -> None:
        """Add ``term`` to ascending rows of one sum (to all of it, when classes share it)."""
        total = self.get_buffer(name)
        whole = self._is_shared(name) or len(rows) == len(total)
        if self.exact:
            total.add_(term) if whole else total.index_add_(0, rows, term)
            return
        low = self.get_buffer(f"{name}_low")
        if whole:
            add_compensated_(total, low, term, term_low)
            return
        picked, picked_low = total[rows], low[rows]
        add_compensated_(picked, picked_low, term, term_low)
        total[rows], low[rows] = picked, picked_low

    def _is_shared(self, name: str) -> bool:
        return name == "second" and self.level == "shared"

    def _require_room(self, name: str, ids: Tensor, term: Tensor, known: Tensor) -> None:
        total = self.get_buffer(name)
        if not self._is_shared(name):
            total = total[torch.searchsorted(self.get_buffer("class_ids"), ids[known])]
            term = term[known]
        if overflows(total, term):
            self._refuse_overflow()

    def _require_bound(self, bound: int) -> None:
        second = self.get_buffer("second")
        largest = int(second.abs().max()) if second.numel() else 0
        if largest + bound >= 2**63:
            self._refuse_overflow()

    def _refuse_overflow(self) -> None:
        raise OverflowError(
            f"a fixed-point sum exceeds 64 bits with step {self.step:g}; use a larger step"
        )

    def _rows_for(self, ids: Tensor) -> Tensor:
        """Rows of the classes ``ids`` (ascending), with rows made for those not seen before."""
        known = self.get_buffer("class_ids")
        merged = torch.unique(torch.cat([known, ids]))
        if len(merged) > len(known):
            places = torch.searchsorted(merged, known)
            for name, buffer in self.named_buffers(recurse=False):
                if not self._is_shared(name.removesuffix("_low")):
                    grown = buffer.new_zeros(len(merged), *buffer.shape[1:])
                    grown[places] = buffer
                    setattr(self, name, grown)
            self.class_ids = merged
        return torch.searchsorted(merged, ids)

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

    def _require_compatible(self, other: PrototypeMemory) -> None:
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

    def _require_contains(self, other: PrototypeMemory) -> None:
        self._require_compatible(other)
        ids, theirs = other.get_buffer("class_ids").to(self.device), other.counts.to(self.device)
        missing = ids[~torch.isin(ids, self.get_buffer("class_ids"))]
        if len(missing):
            raise ValueError(
                f"cannot subtract classes {missing.tolist()}: they are not in this memory"
            )
        rows = torch.searchsorted(self.get_buffer("class_ids"), ids)
        mine = self.get_buffer("count")[rows]
        for class_id, here, there in zip(
            ids[theirs > mine], mine[theirs > mine], theirs[theirs > mine], strict=True
        ):
            raise ValueError(
                f"cannot subtract {int(there)} samples of class {int(class_id)}: "
                f"this memory has {int(here)}"
            )
        gone = theirs == mine
        sums, removed = self.sums[rows][gone], other.sums.to(self.device)[gone]
        if not torch.allclose(
            sums, removed, rtol=1e-9, atol=1e-9 * float(sums.abs().max() if sums.numel() else 0)
        ):
            raise ValueError(
                "cannot subtract: a class would lose all its samples but not its sum, "
                "so these samples were never added to this memory"
            )

    # -- persistence ------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a ``.safetensors`` file, whole or not at all."""
        from protocl.memory_file import save_memory

        save_memory(self, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        fingerprint: str | None = None,
        feature_map: FeatureMap | None = None,
    ) -> PrototypeMemory:
        """Read a memory written by :meth:`save`.

        Args:
            path: the file.
            fingerprint: of the backbone at hand; a memory of another one is refused.
            feature_map: the map, if it has given weights that the file does not hold.

        Raises:
            DataError: the file is absent, damaged or of an unknown format version.
            FingerprintError: the memory was built from another backbone.
        """
        from protocl.memory_file import load_memory

        return load_memory(path, fingerprint=fingerprint, feature_map=feature_map)

    def get_extra_state(self) -> dict[str, Any]:
        """What ``state_dict`` holds besides the buffers."""
        return {**self.describe(), "fingerprint": self.fingerprint}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Adopt the fingerprint of loaded statistics."""
        self.fingerprint = state["fingerprint"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state", self.describe())
        for name, value in self.describe().items():
            if saved[name] != value:
                raise ValueError(
                    f"cannot load statistics: {name} is {value} in this memory, "
                    f"{saved[name]} in the saved one"
                )
        for name, buffer in self.named_buffers(recurse=False):
            if f"{prefix}{name}" in state_dict:
                # The number of classes is part of the state, so buffers take the saved shape.
                setattr(
                    self,
                    name,
                    torch.empty_like(state_dict[f"{prefix}{name}"], device=buffer.device),
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._touch()
