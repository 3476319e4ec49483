"""Mahalanobis distance with one covariance for each class, over a frozen backbone: FeCAM.

Classes differ in shape, not only in place, so each has its own covariance, shrunk and normalised to
correlations to be comparable (Goswami et al., NeurIPS 2023).

Stored between experiences: count and two means of each class and one ``(D, D)`` matrix a class;
no samples. For 512 features that is 4 MiB a class (with the rounding errors kept alongside).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from protocl.config import Setup, StrategyInfo
from protocl.heads import Mahalanobis
from protocl.heads.mahalanobis import Covariance
from protocl.strategies.frozen.base import FrozenBackbone, FrozenBackboneConfig


class FeCAM(FrozenBackbone):
    """Mahalanobis distance per class.

    Args:
        shrinkage: multiples of the mean variance and of the mean covariance that are added to each
            covariance; None for no shrinkage.
        shrink_passes: how many times that is done.
        tukey: power of Tukey's transform, which needs features >= 0; None for none.
        covariance, rank: what is kept of the covariances, as for
            :class:`~protocl.heads.Mahalanobis`; ``"shared"`` for many classes.
        **settings: those of :class:`FrozenBackbone` but ``head``.
    """

    def __init__(
        self,
        *,
        shrinkage: tuple[float, float] | None = (1.0, 1.0),
        shrink_passes: int = 2,
        tukey: float | None = 0.5,
        covariance: Covariance = "class",
        rank: int = 16,
        **settings: Any,
    ) -> None:
        head = Mahalanobis(
            shrinkage, shrink_passes=shrink_passes, tukey=tukey, covariance=covariance, rank=rank
        )
        super().__init__(head=head, **settings)


@dataclass
class FeCAMConfig(FrozenBackboneConfig):
    """Settings of :class:`FeCAM`, which explains them.

    Attributes:
        variance_shrinkage: first number of ``shrinkage``.
        covariance_shrinkage: second number of ``shrinkage``.
        covariance: ``class``, ``low_rank`` or ``shared``; with ``shared`` one matrix is stored for
            all classes.
        rank: directions a class of ``low_rank``.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="FeCAM",
        paper="Goswami et al., NeurIPS 2023",
        stored_between_experiences="count, mean and covariance of each class",
        keeps_data=False,
        bytes_per_class="16 D^2 + 32 D + 16",
    )

    name: str = "fecam"
    variance_shrinkage: float = 1.0
    covariance_shrinkage: float = 1.0
    shrink_passes: int = 2
    tukey: float | None = 0.5
    covariance: str = "class"
    rank: int = 16

    def build(self, setup: Setup) -> FrozenBackbone:
        return self._build(
            FeCAM,
            setup,
            shrinkage=(self.variance_shrinkage, self.covariance_shrinkage),
            shrink_passes=self.shrink_passes,
            tukey=self.tukey,
            covariance=self.covariance,
            rank=self.rank,
        )
