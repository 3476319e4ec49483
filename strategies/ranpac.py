"""Ridge regression on random features of a frozen backbone: RanPAC.

A fixed random projection with ReLU makes classes more nearly separable; a ridge regression on it
follows from two sums, the Gram matrix and the class sums (McDonnell et al., NeurIPS 2023).

Stored between experiences: those sums, ``(M, M)`` and ``(C, M)``, and the seed of the projection;
no samples. M = 2000 takes 64 MiB, the paper's M = 10000 takes 1.6 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from protocl.config import Setup, StrategyInfo
from protocl.config.auto import auto_or_number
from protocl.heads import Ridge
from protocl.strategies.frozen.base import FrozenBackbone, FrozenBackboneConfig


class RanPAC(FrozenBackbone):
    """Ridge regression on random features.

    Args:
        projection: number of random features; None regresses on the features themselves.
        seed: seed of the projection. Memories merge only if theirs agree.
        regularization: weight of the penalty, or ``"auto"`` to choose it from the sums.
        **settings: those of :class:`FrozenBackbone` but ``head``.
    """

    def __init__(
        self,
        *,
        projection: int | None = 2000,
        seed: int = 0,
        regularization: float | Literal["auto"] = "auto",
        **settings: Any,
    ) -> None:
        head = Ridge(projection, seed=seed, regularization=regularization)
        super().__init__(head=head, **settings)


@dataclass
class RanPACConfig(FrozenBackboneConfig):
    """Settings of :class:`RanPAC`, which explains them; the projection's seed is the run's."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="RanPAC",
        paper="McDonnell et al., NeurIPS 2023",
        stored_between_experiences="Gram matrix and class sums of random features",
        keeps_data=False,
        bytes_per_class="16 M + 16",
    )

    name: str = "ranpac"
    projection: int | None = 2000
    regularization: float | str = "auto"

    def build(self, setup: Setup) -> FrozenBackbone:
        return self._build(
            RanPAC,
            setup,
            projection=self.projection,
            seed=setup.seed,
            regularization=auto_or_number("strategy.regularization", self.regularization),
        )
