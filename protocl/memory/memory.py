"""The prototype memory: additive sufficient statistics of each class's features.

A memory is a commutative monoid with inverses. It is updated with a batch, merged with another
memory and has another memory subtracted from it, and all three are one operation: adding sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor

from protocl.errors import DataError
from protocl.memory import file as memory_file
from protocl.memory.additive import AdditiveStatistics
from protocl.memory.batch import BatchStatistics, Level
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.feature_maps import feature_map as build_map
from protocl.memory.limits.removal import require_contained
from protocl.memory.limits.scatter import clear_rounding_, offset_ratios
from protocl.memory.owned import outside_inference_mode, own_buffers, owned
from protocl.memory.rows import class_id_tensor

_PIECE = 1 << 17
"""Elements of a block of means: 1 MiB."""

_REDUCES_TO: dict[Level, tuple[Level, ...]] = {
    "mean": ("mean",),
    "diagonal": ("mean", "diagonal"),
    "shared": ("mean", "shared"),
    "full": ("mean", "diagonal", "shared", "full"),
}


class PrototypeMemory(AdditiveStatistics):
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

    # -- what users read --------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the statistics are."""
        return self.count.device

    @property
    def classes(self) -> Tensor:
        """``(C,)`` int64 class ids, ascending."""
        return self.class_ids.clone()

    @property
    def counts(self) -> Tensor:
        """``(C,)`` int64 number of samples of each class."""
        return self.count.clone()

    @property
    def total(self) -> int:
        """Number of samples of all classes."""
        return int(self.count.sum())

    @property
    def sums(self) -> Tensor:
        """``(C, W)`` float64 sums of the mapped features."""
        return self._value("sum")

    @property
    def means(self) -> Tensor:
        """``(C, W)`` float64 class means of the mapped features: the prototypes."""
        return self.sums / self.count[:, None]

    def mean_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """:attr:`means` of a few classes at a time: rows and ``(n, W)`` float64.

        Temporaries stay in the processor's cache, whatever the number of classes.
        """
        count = self.count
        step = max(1, _PIECE // self.width)
        for start in range(0, len(count), step):
            rows = slice(start, min(start + step, len(count)))
            yield rows, self._value("sum", rows) / count[rows, None]

    @property
    def unmapped_means(self) -> Tensor:
        """``(C, D)`` float64 class means of the features before the map.

        Raises:
            ValueError: the memory was made without ``raw_means=True`` and has a map.
        """
        if self.raw_means:
            return self._value("raw") / self.count[:, None]
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
            diagonals ``(C, W)`` for ``diagonal``. Divide by the counts for covariances. It is zero
            for features that do not vary beyond the rounding of the sums.
        """
        second, means, counts = self.second_moment, self.means, self.count.to(torch.float64)
        if self.level == "diagonal":
            scatter = second - counts[:, None] * means**2
            return clear_rounding_(scatter, second, counts[:, None]).clamp_(min=0.0)
        if self.level == "shared":
            scatter = second - (means * counts[:, None]).T @ means
            return clear_rounding_(scatter, second.diagonal(), counts.sum())
        scatter = torch.baddbmm(second, (means * -counts[:, None])[:, :, None], means[:, None, :])
        return clear_rounding_(scatter, second.diagonal(dim1=1, dim2=2), counts[:, None])

    def offset_ratios(self) -> Tensor:
        """``(W,)`` how many standard deviations within classes each feature is from the origin.

        See :func:`protocl.memory.limits.scatter.offset_ratios`; the level must not be ``mean``.
        """
        squares = self.squares if self.level == "shared" else self.squares.sum(0)
        scatter = squares - (self.sums * self.means).sum(0)
        return offset_ratios(squares, self.means, scatter, self.count)

    @property
    def squares(self) -> Tensor:
        """Sums of each feature's squares, float64: ``(C, W)``, or ``(W,)`` for level ``shared``.

        Raises:
            ValueError: the level is ``mean``.
        """
        if self.level in ("mean", "diagonal"):
            return self.second_moment
        diagonal = self.second.diagonal(dim1=-2, dim2=-1)
        if self.exact:
            return diagonal.to(torch.float64) * self.step**2
        return diagonal + self._buffer("second_low").diagonal(dim1=-2, dim2=-1)

    @property
    def nbytes(self) -> int:
        """Bytes that the statistics occupy."""
        return sum(buffer.nbytes for buffer in self.buffers(recurse=False))

    def provides(self, level: Level) -> bool:
        """Whether the statistics of ``level`` follow from these."""
        return level in _REDUCES_TO[self.level]

    def __len__(self) -> int:
        return len(self.class_ids)

    def __bool__(self) -> bool:
        """Always true: an empty memory is still a memory."""
        return True

    def __contains__(self, class_id: object) -> bool:
        found: Tensor | bool = self.class_ids == class_id
        return isinstance(found, Tensor) and bool(found.any())

    def extra_repr(self) -> str:
        parts = [f"classes={len(self)}, samples={self.total}, feature_dim={self.feature_dim}"]
        parts += [f"level={self.level}", f"exact={self.exact}" if self.exact else ""]
        return ", ".join(part for part in parts if part)

    # -- arithmetic -------------------------------------------------------------------------

    @outside_inference_mode
    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Self:
        """Add the samples of a batch. Nothing changes if the batch is refused.

        Args:
            features: ``(N, D)`` floating point of any precision, on any device.
            labels: ``(N,)`` integer class ids, in any order, of any value >= 0.

        Raises:
            TypeError: they are no tensors, features not floating point, or labels not integers.
            ValueError: shapes do not fit, a feature is NaN or infinite, or a label is negative.
            OverflowError: a feature is beyond 1e150; in fixed point, a value or a sum does not fit.

        Warns:
            PrecisionWarning: a feature varies by less than squares in float64 resolve.
        """
        batch = BatchStatistics(
            features, labels, feature_dim=self.feature_dim, feature_map=self.feature_map,
            level=self.level, raw=self.raw_means, step=self.step if self.exact else None,
            device=self.device,
        )  # fmt: skip
        if len(labels) == 0:
            return self
        sums = batch.sums()
        self.rounded |= batch.rounded
        if self.exact and self.level == "full":
            self._require_bound(batch.second_moment_bound())
        if len(self):
            rows = self._add_all(batch.class_ids, batch.counts, sums, None, sign=1)
        else:
            rows = self._begin(batch.class_ids, batch.counts, sums)
        if self.level == "full":
            fresh = self.counts[rows] == batch.counts
            for positions, moments in batch.second_moments():
                if bool(fresh[positions].all()):  # there is nothing yet to add to
                    self.second[rows[positions]] = moments
                else:
                    self._add("second", rows[positions], moments, None)
        self._touch(batch.class_ids)
        return self

    @outside_inference_mode
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

    @outside_inference_mode
    @torch.no_grad()
    def subtract(self, other: PrototypeMemory) -> Self:
        """Take away the statistics of another memory; classes left without samples disappear.

        Raises:
            FingerprintError: the memories come from different backbones.
            ValueError: they do not fit, or ``other`` holds what was never added here, as far as
                counts, sums and squares tell.
        """
        self._require_compatible(other)
        require_contained(self, other)
        self._combine(other, sign=-1)
        self._keep(self.count > 0)
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Replace the statistics of every process by their sum, in the order of ranks.

        Keep the memory outside a module wrapped in ``DistributedDataParallel``, which would
        overwrite the buffers of all ranks by those of rank 0.

        Args:
            group: the processes that take part; all by default.
        """
        states: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(states, self.state_dict(), group)
        total = self.empty_like()
        for state in states:
            part = self.empty_like()
            part.load_state_dict(state)
            total.merge(part)
        self._take_over(total)
        self._touch()
        return self

    def __add__(self, other: PrototypeMemory) -> PrototypeMemory:
        return self.copy().merge(other)

    def __radd__(self, other: Literal[0]) -> PrototypeMemory:
        """``sum(memories)``, which begins with 0."""
        return self.copy() if other == 0 else NotImplemented

    def __sub__(self, other: PrototypeMemory) -> PrototypeMemory:
        return self.copy().subtract(other)

    def __iadd__(self, other: PrototypeMemory) -> Self:
        return self.merge(other)

    def __isub__(self, other: PrototypeMemory) -> Self:
        return self.subtract(other)

    @outside_inference_mode
    def empty_like(self, level: Level | None = None) -> PrototypeMemory:
        """A memory without samples that otherwise fits this one."""
        return PrototypeMemory(
            self.feature_dim, level or self.level, feature_map=self.feature_map,
            raw_means=self.raw_means, exact=self.exact, step=self.step,
            fingerprint=self.fingerprint,
        ).to(self.device)  # fmt: skip

    @outside_inference_mode
    def copy(self) -> PrototypeMemory:
        """An independent memory with the same statistics."""
        twin = self.empty_like()
        twin._take_over(self)
        twin.revision, twin._changed_all = self.revision, self._changed_all
        twin._changed = dict(self._changed)
        return twin

    @outside_inference_mode
    def subset(self, classes: int | Iterable[int] | Tensor) -> PrototypeMemory:
        """The statistics of some classes, or of one.

        Raises:
            TypeError: ``classes`` are no integers; a mask selects ``memory.classes[mask]``.
            KeyError: a class is not in the memory.
            ValueError: the level is ``shared``, whose second moment cannot be split by class.
        """
        if self.level == "shared":
            raise ValueError(
                "the pooled second moment of level 'shared' cannot be split by class; "
                "take memory.at_level('mean').subset(...), or use level 'full'"
            )
        wanted = class_id_tensor(classes).to(self.device)
        missing = wanted[~torch.isin(wanted, self.class_ids)]
        if len(missing):
            raise KeyError(f"classes {missing.tolist()} are not in the memory")
        part = self.empty_like()
        kept = torch.isin(self.class_ids, wanted)
        for name, buffer in self.named_buffers(recurse=False):
            setattr(part, name, buffer[kept])
        own_buffers(part)
        part.rounded = self.rounded
        return part

    def forget(self, classes: int | Iterable[int] | Tensor) -> Self:
        """Remove whole classes; for level ``shared`` subtract a memory of those classes instead.

        Raises:
            TypeError, KeyError, ValueError: as :meth:`subset`.
        """
        return self.subtract(self.subset(classes))

    @outside_inference_mode
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
        reduced.rounded = self.rounded
        reduced._rows_for(self.class_ids)
        for name in reduced._buffers:
            source = self._buffer(name)
            if name.startswith("second"):
                source = (
                    source.diagonal(dim1=1, dim2=2).clone()
                    if level == "diagonal"
                    else source.sum(0)
                )
            setattr(reduced, name, source.clone())
        return reduced

    def _combine(self, other: PrototypeMemory, sign: int) -> None:
        self._require_compatible(other)
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

    # -- persistence ------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a ``.safetensors`` file, whole or not at all."""
        description = self.describe()
        if self.fingerprint is not None:
            description["fingerprint"] = self.fingerprint
        memory_file.write(path, description, dict(self.named_buffers(recurse=False)))

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
        header, tensors = memory_file.read(path, fingerprint)
        try:
            return cls._adopt(header, tensors, feature_map)
        except DataError as error:
            raise DataError(f"{path} cannot be loaded: {error}") from error

    @classmethod
    def from_tensors(
        cls,
        description: Mapping[str, str],
        tensors: Mapping[str, Tensor],
        *,
        feature_map: FeatureMap | None = None,
    ) -> PrototypeMemory:
        """A memory from its description and its buffers, after checking that they fit.

        Args:
            description: what :meth:`describe` gave, and the ``fingerprint`` if there is one.
            tensors: the memory's buffers by name.
            feature_map: the map, if it has given weights that the description does not hold.

        Raises:
            ConfigError: the feature map cannot be built from its description.
            DataError: a buffer is missing, has the wrong shape or type, or impossible values.
        """
        return cls._adopt(
            description, {name: owned(tensor) for name, tensor in tensors.items()}, feature_map
        )

    @classmethod
    def _adopt(
        cls,
        description: Mapping[str, str],
        tensors: Mapping[str, Tensor],
        feature_map: FeatureMap | None,
    ) -> PrototypeMemory:
        """As :meth:`from_tensors`, without a copy of tensors that nobody else holds."""
        memory = cls._described(description, feature_map)
        memory._require_statistics(tensors)
        for name, _ in list(memory.named_buffers(recurse=False)):
            setattr(memory, name, tensors[name])
        own_buffers(memory)
        memory.rounded = memory.exact
        return memory

    @staticmethod
    def _described(
        description: Mapping[str, str], feature_map: FeatureMap | None
    ) -> PrototypeMemory:
        """An empty memory of this description."""
        try:
            spec, level = description["feature_map"], description["level"]
            feature_dim, step = int(description["feature_dim"]), float(description["step"])
            raw_means, exact = description["raw_means"] == "True", description["exact"] == "True"
        except (KeyError, ValueError) as error:
            raise DataError(f"the description of the statistics is damaged: {error}") from error
        feature_map = feature_map or build_map(spec)
        if feature_map.spec != spec:
            raise DataError(f"the statistics were summed under '{spec}', not '{feature_map.spec}'")
        try:
            return PrototypeMemory(
                feature_dim, cast(Level, level), feature_map=feature_map, raw_means=raw_means,
                exact=exact, step=step, fingerprint=description.get("fingerprint"),
            )  # fmt: skip
        except ValueError as error:
            raise DataError(f"the description of the statistics is damaged: {error}") from error
