"""Nearest class mean, in the forms that the literature uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from protocl.heads.chunked import ChunkedHead
from protocl.heads.distances import write_negative_distances
from protocl.maps import FeatureMap, UnitNorm
from protocl.memory import PrototypeMemory


class NearestMean(ChunkedHead):
    """The class whose mean is nearest.

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
        dtype: precision of the parameters and logits.

    Example:
        >>> head = NearestMean()
        >>> memory = head.new_memory(2).update(torch.eye(2), torch.tensor([4, 9]))
        >>> head.fit(memory).predict(torch.tensor([[0.2, 0.9]])).tolist()
        [9]
    """

    _means: Tensor
    _centre: Tensor
    _squares: Tensor

    def __init__(
        self,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        *,
        normalize_input: bool = False,
        normalize_mean: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(dtype=dtype)
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric='{metric}': expected 'euclidean' or 'cosine'")
        self.metric = metric
        self.normalize_input = normalize_input
        self.normalize_mean = normalize_mean

    def feature_map(self, feature_dim: int) -> FeatureMap:
        return UnitNorm() if self.normalize_input else FeatureMap()

    def _fit(self, memory: PrototypeMemory) -> None:
        means = torch.empty(len(memory), memory.width, dtype=self.dtype, device=memory.device)
        squares = means.new_empty(len(means), dtype=torch.float64)
        centre = means.new_zeros(memory.width, dtype=torch.float64)
        if self.metric == "euclidean":
            # Distances do not change when all points move, but their expansion loses fewer digits
            # the nearer the means are to the origin.
            for _, block in self._prototypes(memory):
                centre += block.sum(0)
            centre /= len(means)
        for rows, block in self._prototypes(memory):
            block = block - centre
            means[rows], squares[rows] = block, block.square().sum(1)
        self._set(_means=means, _centre=centre, _squares=squares)

    def _prototypes(self, memory: PrototypeMemory) -> Iterator[tuple[slice, Tensor]]:
        for rows, block in memory.mean_blocks():
            unit = self.normalize_mean or self.metric == "cosine"
            yield rows, functional.normalize(block, dim=1) if unit else block

    def _queries(self, features: Tensor) -> Tensor:
        if self.normalize_input or self.metric == "cosine":
            features = functional.normalize(features, dim=1)
        return features if self.metric == "cosine" else features - self._centre

    def _scores(self, queries: Tensor, chosen: slice, out: Tensor) -> None:
        means = self._means[chosen]
        if self.metric == "cosine":
            torch.mm(queries, means.T, out=out)
        else:
            write_negative_distances(queries, means, self._squares[chosen], out)
