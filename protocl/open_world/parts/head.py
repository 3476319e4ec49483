"""A head over parts: a class is as near as the nearest of its parts."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor

from protocl.heads.base import Head
from protocl.heads.nearest_mean import NearestMean
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.subsamples import SubSamples
from protocl.memory.feature_maps import FeatureMap


class PartsHead(Head):
    """The best of the logits that another head gives the parts of a class.

    It also tells unknown samples: :meth:`known` is the largest logit.

    Args:
        parts: ``J``, most parts of a class; ids of parts are ``J c + j`` (:class:`.Codebook`).
        head: over the rows of parts; its map is that of the statistics. By default
            :class:`.NearestMean`.

    Example:
        >>> from protocl.open_world.parts.codebook import learn_codebook
        >>> x, y = torch.tensor([[0.0], [8.0], [4.0], [4.2]]), torch.tensor([0, 0, 1, 1])
        >>> head = PartsHead(2)
        >>> memory = head.new_memory(1)
        >>> memory = learn_codebook(memory, x, y, 2).update(memory, x, y)
        >>> head.fit(memory).predict(torch.tensor([[7.0], [4.5], [1.0]])).tolist()
        [0, 1, 0]
    """

    keeps_digits: ClassVar[bool] = True  # the other head casts them as it needs
    _columns: Tensor

    def __init__(self, parts: int = 16, head: Head | None = None) -> None:
        inner = NearestMean() if head is None else head
        super().__init__(dtype=inner.dtype)
        self.groups = SubSamples(parts)
        self.head = inner
        self.required_level = inner.required_level
        self.raw_means = inner.raw_means

    def feature_map(self, feature_dim: int) -> FeatureMap:
        return self.head.feature_map(feature_dim)

    @torch.no_grad()
    def fit(self, memory: PrototypeMemory) -> Self:
        """See :meth:`.Head.fit`; the rows of the memory are parts."""
        super().fit(memory)
        self._set(_classes=self.groups.parents(memory.classes).unique())
        return self

    @torch.no_grad()
    def known(self, features: Tensor) -> Tensor:
        """The largest logit ``(N,)``: the lower, the less is a sample like any part."""
        return self(features).amax(1)

    def calibrate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: virtual and left-out samples would be of parts, not of classes.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "PartsHead gives no probabilities: calibrate a head on the statistics by class, "
            "codebook.whole(memory)"
        )

    calibration_table = calibrate

    def _fit(self, memory: PrototypeMemory) -> None:
        self.head.fit(memory)
        self._set(_columns=self.groups.parents(memory.classes).unique(return_inverse=True)[1])

    def _logits(self, features: Tensor) -> Tensor:
        logits = self.head.mapped_logits(features)
        best = logits.new_full((len(logits), len(self._classes)), -torch.inf)
        return best.scatter_reduce(1, self._columns.expand(len(logits), -1), logits, "amax")
