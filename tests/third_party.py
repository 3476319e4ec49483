"""A package of somebody else's, as pip would install it: parts of every kind."""

from __future__ import annotations

from pathlib import Path

MODULE = '''
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from protocl.backbones.adaptation import Adaptation
from protocl.config import Setup, StrategyConfig, StrategyInfo
from protocl.heads import NearestMean
from protocl.memory.feature_maps import FeatureMap


@dataclass
class AcmeReplay(StrategyConfig):
    info: ClassVar[StrategyInfo] = StrategyInfo("Acme Replay", "Acme 2026", "exemplars", True)

    name: str = "acme_replay"
    train_epochs: int = 2
    mem_size: int = 60
    mixture: float | str = "auto"
    window: tuple[float, float] = (0.0, 1.0)
    layers: list[int] | None = None
    fail_in_experience: int | None = None

    def build(self, setup: Setup) -> Any:
        from avalanche.training import Replay

        if self.mem_size < 1:
            raise ValueError(f"mem_size is {self.mem_size}; expected at least 1")
        return Replay(
            model=setup.model,
            optimizer=torch.optim.SGD(setup.model.parameters(), lr=self.lr, momentum=0.9),
            criterion=torch.nn.CrossEntropyLoss(),
            mem_size=self.mem_size,
            train_mb_size=self.train_mb_size,
            train_epochs=self.train_epochs,
            eval_mb_size=self.eval_mb_size,
            device=setup.device,
            plugins=[Bomb(self.fail_in_experience), *setup.plugins],
            evaluator=setup.evaluator,
        )


class SharpMean(NearestMean):
    """Nearest mean with scores of any scale."""

    def __init__(
        self, sharpness: float = 2.0, *, weights: "Tensor | None" = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        if not sharpness > 0:
            raise ValueError(f"sharpness={sharpness}: expected a number > 0")
        self.sharpness = sharpness


class Cube(FeatureMap):
    """Features to some power, with their sign."""

    def __init__(self, power: float = 3.0) -> None:
        super().__init__()
        self.power = power
        self.spec = f"acme_cube:{power!r}"

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.sign() * features.abs() ** self.power


class NormTuning(Adaptation):
    """The weights of layer norms."""

    def applies(self, module: torch.nn.Module) -> bool:
        return any(isinstance(layer, torch.nn.LayerNorm) for layer in module.modules())

    def insert(self, module: torch.nn.Module) -> list[torch.nn.Parameter]:
        layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.LayerNorm)]
        return [parameter for layer in layers for parameter in layer.parameters()]


class Bomb:
    """Raises in one experience."""

    def __init__(self, experience: int | None) -> None:
        self.experience = experience

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.experience.current_experience == self.experience:
            raise ZeroDivisionError("the bomb went off")
'''


def install(folder: Path) -> None:
    """Lay the package out in ``folder``, which becomes usable once it is on ``sys.path``."""
    (folder / "acme_continual.py").write_text(MODULE)
    info = folder / "acme_continual-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-continual\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[protocl.strategies]\n"
        "acme_replay = acme_continual:AcmeReplay\n"
        "acme_broken = acme_continual:Missing\n"
        "[protocl.heads]\n"
        "acme_sharp = acme_continual:SharpMean\n"
        "[protocl.maps]\n"
        "acme_cube = acme_continual:Cube\n"
        "[protocl.adaptations]\n"
        "acme_norms = acme_continual:NormTuning\n"
        "acme_broken = acme_continual:Missing\n"
    )
