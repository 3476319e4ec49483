"""Linear discriminant analysis over a frozen backbone: SLDA, exact.

All classes share one covariance, so the boundaries are linear and follow from class means and one
matrix. Deep SLDA (Hayes & Kanan, CVPR Workshops 2020) keeps a running estimate of that matrix,
which depends on the order of the samples; here it is the covariance itself, whatever the order.

Stored between experiences: count and mean of each class and one ``(D, D)`` matrix; no samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from protocl.config import Setup, StrategyInfo
from protocl.config.auto import auto_or_number
from protocl.heads import LinearDiscriminant
from protocl.strategies.frozen.base import FrozenBackbone, FrozenBackboneConfig


class SLDA(FrozenBackbone):
    """Linear discriminant analysis.

    Args:
        shrinkage: weight of the identity in the covariance, in [0, 1], or ``"auto"``.
        priors: ``"uniform"``, or ``"empirical"`` for the classes' frequencies.
        **settings: those of :class:`FrozenBackbone` but ``head``.
    """

    def __init__(
        self,
        *,
        shrinkage: float | Literal["auto"] = 1e-4,
        priors: Literal["uniform", "empirical"] = "uniform",
        **settings: Any,
    ) -> None:
        super().__init__(head=LinearDiscriminant(shrinkage, priors=priors), **settings)


@dataclass
class SLDAConfig(FrozenBackboneConfig):
    """Settings of :class:`SLDA`, which explains them."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="SLDA",
        paper="Hayes & Kanan, CVPR Workshops 2020",
        stored_between_experiences="count and mean of each class, one covariance",
        keeps_data=False,
        bytes_per_class="16 D + 16",
    )

    name: str = "slda"
    shrinkage: float | str = 1e-4
    priors: str = "uniform"

    def build(self, setup: Setup) -> FrozenBackbone:
        shrinkage = auto_or_number("strategy.shrinkage", self.shrinkage)
        return self._build(SLDA, setup, shrinkage=shrinkage, priors=self.priors)
