"""Nearest class mean, in the forms that the literature uses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from protocl.config.validation import require_choice
from protocl.errors import PrecisionWarning
from protocl.heads.centred import CentredHead
from protocl.heads.distances import write_negative_distances
from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import FeatureMap, UnitNorm, unit

_RESOLVED = 256
"""Least mean squared distance of unit vectors, in roundings, at which cosines rank them."""


class NearestMean(CentredHead):
    """A sample belongs to the class whose mean is nearest.

    The three switches are independent; published methods are points among them:

    =================================== =============== ============== =========
    method                              normalize_input normalize_mean metric
    =================================== =============== ============== =========
    prototypical networks, FedRecon     no              no             euclidean
    NMC (Janson et al. 2022)            yes             no             euclidean
    iCaRL's NME (Rebuffi et al. 2017)   yes             yes            euclidean
    SimpleCIL (Zhou et al. 2023)        no              no             cosine
    =================================== =============== ============== =========

    Logits are ``-|f - m_c|^2`` or ``cos(f, m_c)``. A zero vector has cosine 0 to everything.

    Args:
        metric: ``"euclidean"`` or ``"cosine"``.
        normalize_input: divide each sample by its norm, in the statistics and in queries.
        normalize_mean: divide each class mean by its norm.
        map: see :class:`.Head`; not beside ``normalize_input``.
        dtype: precision of the parameters and logits.

    Example:
        >>> head = NearestMean()
        >>> memory = head.new_memory(2).update(torch.eye(2), torch.tensor([4, 9]))
        >>> head.fit(memory).predict(torch.tensor([[0.2, 0.9]])).tolist()
        [9]
    """

    _means: Tensor
    _squares: Tensor

    def __init__(
        self,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        *,
        normalize_input: bool = False,
        normalize_mean: bool = False,
        map: FeatureMap | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype, map=map)
        if normalize_input:
            self._require_no_map("normalize_input=True", "normalize_input=False")
        require_choice("metric", metric, ("euclidean", "cosine"))
        self.metric = metric
        self.normalize_input = normalize_input
        self.normalize_mean = normalize_mean

    def feature_map(self, feature_dim: int) -> FeatureMap:
        return UnitNorm() if self.normalize_input else super().feature_map(feature_dim)

    def _fit(self, memory: PrototypeMemory) -> None:
        means = torch.empty(len(memory), memory.width, dtype=self.dtype, device=memory.device)
        squares = means.new_empty(len(means), dtype=torch.float64)
        centre = means.new_zeros(memory.width, dtype=torch.float64)
        for _, block in self._prototypes(memory):
            centre += block.sum(0)
        centre /= len(means)
        if self.metric == "cosine":
            self._warn_of_one_direction(centre, len(means))
            centre.zero_()
        self._set(_centre=centre)
        for rows, block in self._prototypes(memory):
            block = block - self._centre
            means[rows], squares[rows] = block, block.square().sum(1)
        self._set(_means=means, _squares=squares)

    def _prototypes(self, memory: PrototypeMemory) -> Iterator[tuple[slice, Tensor]]:
        for rows, block in memory.mean_blocks():
            yield rows, unit(block) if self.normalize_mean or self.metric == "cosine" else block

    def _warn_of_one_direction(self, centre: Tensor, classes: int) -> None:
        """Warn where cosines are so alike that the head's precision cannot rank them."""
        spread = 1 - float(centre.square().sum())  # the mean of |u - centre|^2 over unit vectors
        if classes > 1 and 0 < spread < _RESOLVED * torch.finfo(self.dtype).eps:
            warnings.warn(
                f"NearestMean: the class means differ in direction by {spread**0.5:.1g} only, and "
                f"cosines in {self.dtype} do not rank them; subtract the mean of all features, "
                "or use metric='euclidean' or dtype=torch.float64",
                PrecisionWarning,
                stacklevel=5,
            )

    def _queries(self, features: Tensor) -> Tensor:
        if self.metric != "cosine":
            return self._moved(features)
        return (features if self.normalize_input else unit(features)).to(self.dtype)

    def _scores(self, queries: Tensor, chosen: slice, out: Tensor) -> None:
        means = self._means[chosen]
        if self.metric == "cosine":
            torch.mm(queries, means.T, out=out)
        else:
            write_negative_distances(queries, means, self._squares[chosen], out)
