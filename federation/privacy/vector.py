"""Where the statistics of a fixed list of classes stand in one vector of integers.

Noise and masks are added to vectors that all parties lay out alike, so the classes are agreed on
beforehand. That list is public; which of its classes a client holds is not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from protocl.memory import PrototypeMemory
from protocl.memory.rows import class_id_tensor

COUNT_SCALE = 2**16
"""Counts are multiplied by this in a vector, so that noise on them can be finer than one sample
until it is rounded at the end."""


class StatisticsLayout:
    """Packs fixed-point memories of fixed classes into vectors, and sums of vectors back.

    The parts follow each other: counts ``C``, sums ``C x W``, sums before the feature map ``C x D``
    (if kept), and second moments, of which symmetric matrices give their upper triangles.

    Args:
        template: a memory of the kind to be packed; its statistics are not used.
        classes: all class ids that any party may hold.

    Raises:
        ValueError: the memory is not in fixed point, or the class list is empty or has ids below 0.

    Example:
        >>> memory = PrototypeMemory(2, exact=True)
        >>> layout = StatisticsLayout(memory, classes=[4, 9])
        >>> memory.update(torch.ones(3, 2), torch.tensor([9, 9, 9])).counts.tolist()
        [3]
        >>> layout.unpack(2 * layout.pack(memory)).counts.tolist()
        [6]
    """

    def __init__(self, template: PrototypeMemory, classes: Iterable[int]) -> None:
        if not template.exact:
            raise ValueError(
                "a memory in floating point has no integers to add noise or masks to; "
                "make it with exact=True"
            )
        if isinstance(classes, int):
            raise TypeError(f"classes={classes}: expected their ids, such as range({classes})")
        self.classes = tuple(sorted(set(class_id_tensor(classes).tolist())))
        if not self.classes or self.classes[0] < 0:
            raise ValueError(f"classes {list(self.classes)}: expected ids of 0 or greater")
        self._template = template.empty_like().cpu()
        self._forms = self._template.forms
        self.parts = {"count": slice(0, len(self.classes))}
        for name, form in self._forms.items():
            rows = 1 if form.shared else len(self.classes)
            self.parts[name] = slice(self.size, self.size + rows * math.prod(form.shape))

    @property
    def size(self) -> int:
        """Number of integers in a vector."""
        return max((part.stop for part in self.parts.values()), default=0)

    @property
    def feature_dim(self) -> int:
        """Features of a sample, before the feature map."""
        return self._template.feature_dim

    @property
    def step(self) -> float:
        """Quantisation step of the memories."""
        return self._template.step

    @property
    def digest(self) -> str:
        """Equal for parties that agree on classes, kind of memory and backbone."""
        agreed = [self.classes, self._template.describe(), self._template.fingerprint, COUNT_SCALE]
        return hashlib.sha256(json.dumps(agreed).encode()).hexdigest()

    def empty_memory(self) -> PrototypeMemory:
        """A memory without samples of the kind that is packed."""
        return self._template.empty_like()

    def pack(self, memory: PrototypeMemory) -> NDArray[np.int64]:
        """The statistics of ``memory`` as a vector ``(size,)``; zeros for classes it lacks.

        Raises:
            ValueError: the memory is of another kind, or holds a class outside the list.
            FingerprintError: it comes from another backbone.
            OverflowError: a count exceeds 2^47, or a second moment 64 bits.
        """
        self._template.require_compatible(memory)
        rows = self._rows(memory)
        if memory.total >= 2**63 // COUNT_SCALE:
            raise OverflowError(f"{memory.total} samples: a vector holds fewer than 2^47")
        vector = np.zeros(self.size, dtype=np.int64)
        stored = memory.parts()
        if "second_high" in stored:
            raise OverflowError(
                f"second moments of {memory.total} samples exceed 64 bits with step "
                f"{memory.step:g}, and a vector holds one word a number; use a larger step"
            )
        vector[self.parts["count"]][rows] = COUNT_SCALE * stored["count"].cpu().numpy()
        for name, form in self._forms.items():
            value = stored[name].cpu().numpy()
            if form.shared:
                vector[self.parts[name]] = value
            else:
                self._rows_of(vector, name)[rows] = value
        return vector

    def unpack(self, vector: NDArray[np.int64], minimum_count: float = 1.0) -> PrototypeMemory:
        """The memory of a sum of vectors.

        Args:
            vector: ``(size,)`` int64.
            minimum_count: classes of fewer samples than this are left out.

        Raises:
            ValueError: the vector has another size or type, or the minimum is below half a sample.
        """
        if vector.shape != (self.size,) or vector.dtype != np.int64:
            raise ValueError(
                f"a vector of shape {vector.shape} and type {vector.dtype}: "
                f"expected ({self.size},) int64"
            )
        if minimum_count < 0.5:
            raise ValueError(f"minimum_count={minimum_count}: expected at least half a sample")
        count = vector[self.parts["count"]]
        kept = count >= minimum_count * COUNT_SCALE
        stored = {
            "class_ids": np.asarray(self.classes)[kept],
            # An integer division that rounds, also beyond 2^53.
            "count": (count[kept] + COUNT_SCALE // 2) // COUNT_SCALE,
        }
        for name, form in self._forms.items():
            if form.shared:
                # Without a class there are no samples, and what is left of the moment is noise.
                stored[name] = vector[self.parts[name]] * kept.any()
            else:
                stored[name] = self._rows_of(vector, name)[kept]
        parts = {name: torch.from_numpy(array) for name, array in stored.items()}
        return PrototypeMemory.from_parts(self._template, parts)

    def _rows_of(self, vector: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        """A sum as rows of classes, on the bytes of the vector."""
        return vector[self.parts[name]].reshape(len(self.classes), -1)

    def _rows(self, memory: PrototypeMemory) -> NDArray[np.intp]:
        ids = memory.classes.cpu().numpy()
        outside = ids[~np.isin(ids, self.classes)]
        if len(outside):
            raise ValueError(
                f"classes {outside.tolist()} are not in the agreed list of {len(self.classes)} "
                "classes; leave their samples out, or agree on a longer list"
            )
        return np.searchsorted(self.classes, ids)

    def __repr__(self) -> str:
        kind: dict[str, Any] = self._template.describe()
        return f"StatisticsLayout({len(self.classes)} classes, {self.size} integers, {kind})"
