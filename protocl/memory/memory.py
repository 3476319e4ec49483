"""The prototype memory: additive sufficient statistics of each class's features.

A memory is a commutative monoid with inverses. It is updated with a batch, merged with another
memory and has another memory subtracted from it, and all three are one operation: adding sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor

from protocl.errors import DataError
from protocl.memory import file as memory_file
from protocl.memory.batch import BatchStatistics, Level
from protocl.memory.buffers import outside_inference_mode, own_buffers, owned
from protocl.memory.derived import DerivedStatistics
from protocl.memory.feature_maps import FeatureMap
from protocl.memory.from_statistics import computed_parts
from protocl.memory.limits.removal import require_contained, warn_of_little_left
from protocl.memory.processes.reduction import all_reduce_
from protocl.memory.rows import class_id_tensor


class PrototypeMemory(DerivedStatistics):
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
        moments: numbers an entry of a second moment: ``"pairs"``, whose other half takes no memory
            until it is not zero, or ``"single"`` ones (:mod:`protocl.memory.kind`).
        fingerprint: identity of the backbone. Memories of different backbones refuse to merge.
        estimated: how the second moment was estimated; empty where samples are summed.

    Example:
        >>> features = torch.tensor([[0.0, 2.0], [0.0, 4.0], [1.0, 1.0]])
        >>> labels = torch.tensor([7, 7, 3])
        >>> memory = PrototypeMemory(feature_dim=2).update(features, labels)
        >>> memory.classes.tolist(), memory.means.tolist()
        ([3, 7], [[1.0, 1.0], [0.0, 3.0]])
    """

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
            ValueError: shapes do not fit, a feature is NaN or infinite, a label is negative, or
                the second moment is an estimate.
            OverflowError: a feature is beyond 1e150; in fixed point, a value or a sum does not fit.

        Warns:
            PrecisionWarning: a feature varies by less than squares in float64 resolve.
        """
        self.require_summed()
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
            rows = self._add_all(batch.class_ids, batch.counts, sums, {}, sign=1)
        else:
            rows = self._begin(batch.class_ids, batch.counts, sums)
        if self.level == "full":
            with self._wholly():
                self._add_moments(rows, batch)
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

        Warns:
            PrecisionWarning: second moments in single numbers have lost digits of what is left.
        """
        self.require_compatible(other)
        require_contained(self, other)
        before = None if self.keeps_rounding or self.level == "mean" else self.squares
        self._combine(other, sign=-1)
        if before is not None:
            warn_of_little_left(before, self.squares)
        self._keep(self.count > 0)
        return self

    @outside_inference_mode
    @torch.no_grad()
    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Replace the statistics of every process by their sum, the same on all.

        In fixed point they have the bits of one process; in floating point those of a merge in the
        order of ranks. A memory without a fingerprint takes that of the others. Keep it outside a
        module wrapped in ``DistributedDataParallel``, which would overwrite the buffers.

        Args:
            group: the processes that take part; all by default. gloo or NCCL.

        Raises:
            FingerprintError, ValueError, OverflowError: as :meth:`merge`, on all before any adds.
            PeerError: a process is gone or has no room; what is here is of no use any more.
        """
        all_reduce_(self, group)
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

    def empty_like(self, level: Level | None = None) -> PrototypeMemory:
        """A memory without samples that otherwise fits this one."""
        return PrototypeMemory(
            self.feature_dim, level or self.level, feature_map=self.feature_map,
            raw_means=self.raw_means, exact=self.exact, step=self.step, moments=self.moments,
            fingerprint=self.fingerprint, estimated=self.estimated,
        ).to(self.device)  # fmt: skip

    def copy(self) -> PrototypeMemory:
        """An independent memory with the same statistics."""
        twin = self.empty_like()
        twin._take_over(self)
        twin.revision, twin._changed_all = self.revision, self._changed_all
        twin._changed = dict(self._changed)
        return twin

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
        part._drop_zero_halves()
        own_buffers(part)
        part.rounded = self.rounded
        return part

    def relabelled(self, classes: Tensor) -> PrototypeMemory:
        """The same statistics under other class ids ``(C,)``, in the order of :attr:`classes`.

        Raises:
            DataError: an id comes twice, is negative, or there are not ``C``.
        """
        ids = class_id_tensor(classes).to(self.device)
        order = ids.argsort()
        parts = {
            name: part if name in self._layout.shared else part[order]
            for name, part in (self.parts() | {"class_ids": ids}).items()
        }
        return PrototypeMemory.from_parts(self, parts)

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
        self.require_level(level)
        if level == self.level:
            return self.copy()
        reduced = self.empty_like(level)
        reduced.rounded = self.rounded
        reduced._rows_for(self.class_ids)
        for name in reduced._buffers:
            if not name.startswith("second"):
                setattr(reduced, name, self._buffer(name).clone())
        if level != "mean":
            reduced._reduce_moments(self)
        return reduced

    # -- in and out -------------------------------------------------------------------------

    @classmethod
    def from_statistics(
        cls,
        like: PrototypeMemory,
        *,
        classes: Iterable[int] | Tensor,
        counts: Tensor,
        sums: Tensor | None = None,
        means: Tensor | None = None,
        raw_sums: Tensor | None = None,
        second_moment: Tensor | None = None,
        scatter: Tensor | None = None,
    ) -> PrototypeMemory:
        """A memory of the kind of ``like`` that holds the given statistics.

        Args:
            like: gives level, width, feature map, arithmetic, backbone and device; its own
                statistics play no part. ``like.empty_like(level)`` is one of another level.
            classes: ``(C,)`` distinct class ids, in any order.
            counts: ``(C,)`` integers, samples of each class, 1 or more.
            sums: ``(C, W)`` of the mapped features, or instead of them
            means: ``(C, W)``.
            raw_sums: ``(C, D)`` before the map, where ``like`` keeps them.
            second_moment: where the level keeps one, ``(C, W)``, ``(W, W)`` or ``(C, W, W)`` as
                :attr:`second_moment` gives it, or instead of it
            scatter: as :meth:`scatter` gives it, of samples around their class means.

        Raises:
            TypeError: what should be a tensor is none, or has the wrong type.
            ValueError: shapes do not fit, a value is NaN or infinite, a matrix is not symmetric,
                a class comes twice or without samples, or too much or too little is given.
            OverflowError: a value does not fit fixed point.

        Example:
            >>> memory = PrototypeMemory.from_statistics(
            ...     PrototypeMemory(2, "diagonal"), classes=[7, 3], counts=torch.tensor([4, 1]),
            ...     means=torch.tensor([[0.0, 2.0], [1.0, 1.0]]), scatter=torch.zeros(2, 2))
            >>> memory.sums.tolist()
            [[1.0, 1.0], [0.0, 8.0]]
        """
        parts = computed_parts(
            like, classes=classes, counts=counts, sums=sums, means=means, raw_sums=raw_sums,
            second_moment=second_moment, scatter=scatter,
        )  # fmt: skip
        return like.empty_like()._hold(parts)

    @classmethod
    def from_parts(cls, like: PrototypeMemory, parts: Mapping[str, Tensor]) -> PrototypeMemory:
        """A memory of the kind of ``like`` that holds a copy of what :meth:`parts` gave.

        Args:
            like: gives all that is not in the parts; its own statistics play no part.
            parts: see :meth:`parts`; whole matrices are taken as well as triangles, and halves
                that are zero may be left out.

        Raises:
            DataError: a part is missing, has the wrong shape or type, or impossible values.
        """
        return like.empty_like()._hold({name: owned(part) for name, part in parts.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a ``.safetensors`` file, whole or not at all."""
        memory_file.write(path, memory_file.description_of(self), memory_file.arrays_of(self))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        fingerprint: str | None = None,
        feature_map: FeatureMap | None = None,
    ) -> PrototypeMemory:
        """Read a memory written by :meth:`save`, of this version or an earlier one.

        Args:
            path: the file.
            fingerprint: of the backbone at hand; a memory of another one is refused.
            feature_map: the map, if it has given weights that the file does not hold.

        Raises:
            DataError: the file is absent, damaged or of an unknown format version.
            FingerprintError: the memory was built from another backbone.
        """
        header, arrays = memory_file.read(path, fingerprint)
        try:
            return PrototypeMemory.described(header, feature_map=feature_map)._hold(arrays)
        except DataError as error:
            raise DataError(f"{path} cannot be loaded: {error}") from error
