"""Nearest class mean over a frozen backbone.

A class is the mean of its features, a sample belongs to the nearest mean. The switches give NMC
(Janson et al., 2022: normalised inputs), SimpleCIL (Zhou et al., IJCV 2024: cosine) and the rule
of prototypical networks (Snell et al., NeurIPS 2017: all off).

Stored between experiences: count and mean of each class, ``8 (D + 1)`` bytes a class and as many
again for the rounding errors; no samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from protocl import heads
from protocl.config import Setup, StrategyInfo
from protocl.strategies.frozen.base import FrozenBackbone, FrozenBackboneConfig


class NearestMean(FrozenBackbone):
    """Nearest class mean.

    Args:
        metric: ``"euclidean"`` or ``"cosine"``.
        normalize_input: divide each feature vector by its norm.
        normalize_mean: divide each class mean by its norm.
        **settings: those of :class:`FrozenBackbone` but ``head``.
    """

    def __init__(
        self,
        *,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        normalize_input: bool = False,
        normalize_mean: bool = False,
        **settings: Any,
    ) -> None:
        head = heads.NearestMean(
            metric, normalize_input=normalize_input, normalize_mean=normalize_mean
        )
        super().__init__(head=head, **settings)


@dataclass
class NearestMeanConfig(FrozenBackboneConfig):
    """Settings of :class:`NearestMean`, which explains them."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="Nearest mean",
        paper="Mensink et al., TPAMI 2013; Janson et al., 2022",
        stored_between_experiences="count and mean of each class",
        keeps_data=False,
        bytes_per_class="16 D + 16",
    )

    name: str = "nearest_mean"
    metric: str = "euclidean"
    normalize_input: bool = False
    normalize_mean: bool = False

    def build(self, setup: Setup) -> FrozenBackbone:
        return self._build(
            NearestMean,
            setup,
            metric=self.metric,
            normalize_input=self.normalize_input,
            normalize_mean=self.normalize_mean,
        )
