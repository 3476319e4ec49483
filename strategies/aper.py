"""APER (first called ADAM): SimpleCIL on a backbone as pre-trained and as adapted, side by side.

The backbone is adapted to the first experience under a cosine classifier, then frozen. From then
on features are those of both, ``2 D`` wide (Zhou et al., IJCV 2024).

Stored between experiences: count and mean of each class; no samples. Each sample passes through
two networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from protocl.config import Setup, StrategyInfo
from protocl.strategies.frozen.base import FrozenBackbone, FrozenBackboneConfig
from protocl.strategies.simplecil import SimpleCIL


class APER(SimpleCIL):
    """SimpleCIL with two branches.

    The authors train with SGD (momentum 0.9, weight decay 5e-4) and a learning rate that falls to
    zero: ``plugins=[EpochSchedule(cosine=True)]``.

    Args:
        adapt, adapt_classifier, two_branches: as for :class:`.FrozenBackbone`.
        **settings: its others but ``head``.
    """

    def __init__(
        self,
        *,
        adapt: str | None = "adapter",
        adapt_classifier: Literal["linear", "cosine"] = "cosine",
        two_branches: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(
            adapt=adapt, adapt_classifier=adapt_classifier, two_branches=two_branches, **settings
        )


@dataclass
class APERConfig(FrozenBackboneConfig):
    """Settings of :class:`APER`; those of the authors for ``adapt=adapter`` on CIFAR-100."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="APER",
        paper="Zhou et al., IJCV 2024",
        stored_between_experiences="count and mean of each class, of both branches",
        keeps_data=False,
        bytes_per_class="32 D + 16",
    )

    name: str = "aper"
    first_experience_epochs: int = 20
    adapt: str | None = "adapter"
    adapt_classifier: str = "cosine"
    two_branches: bool = True
    cosine_schedule: bool = True
    train_mb_size: int = 48
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def build(self, setup: Setup) -> FrozenBackbone:
        return self._build(APER, setup)
