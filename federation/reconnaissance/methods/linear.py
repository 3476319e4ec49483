"""Methods that train a linear layer: FedAvg with or without exemplars, fine-tuning, joint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from protocl.errors import ConfigError
from protocl.federation.config import MethodInfo
from protocl.federation.methods.local_steps import LocalSteps
from protocl.federation.reconnaissance.config import Learner, LearnerConfig, LearnerSetup
from protocl.federation.reconnaissance.methods.exemplars import Exemplars
from protocl.federation.reconnaissance.methods.layer import Layer
from protocl.federation.reconnaissance.scenario import SERVER


@dataclass
class LinearConfig(LocalSteps, LearnerConfig):
    """Settings of the local training.

    Attributes:
        scale: features are divided by their norm and multiplied by this.
    """

    local_epochs: int = 10
    batch_size: int = 32
    momentum: float = 0.9
    scale: float = 10.0


@dataclass
class FedAvgLearnerConfig(LinearConfig):
    """Settings of :class:`FedAvgLearner`.

    Attributes:
        exemplars: samples that every node keeps of all classes together, 0 for none.
    """

    info: ClassVar[MethodInfo] = MethodInfo(title="FedAvg", stored="one linear layer")

    name: str = "fedavg"
    exemplars: int = 0

    def build(self, setup: LearnerSetup) -> FedAvgLearner:
        """See :class:`protocl.federation.reconnaissance.config.LearnerConfig`."""
        self.check()
        return FedAvgLearner(self, setup)


@dataclass
class ExemplarsLearnerConfig(FedAvgLearnerConfig):
    """FedAvg with a pooled budget of exemplars; without the distillation of iCaRL."""

    info: ClassVar[MethodInfo] = MethodInfo(
        title="FedAvg, exemplars", stored="one linear layer and exemplars"
    )

    keeps_data: ClassVar[bool] = True

    name: str = "exemplars"
    exemplars: int = 4000


class FedAvgLearner(Learner):
    """Local SGD on each mission from the averaged weights; the server averages.

    Exemplars, where kept, are features. A mission trains on them besides its own samples, and
    uploads its samples for the pool.

    Args:
        config: settings.
        setup: number of clients, width of the features, classes, seed.
    """

    def __init__(self, config: FedAvgLearnerConfig, setup: LearnerSetup) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(setup.seed)
        self.layers = {
            node: Layer(setup.n_classes, setup.feature_dim)
            for node in (SERVER, *range(setup.clients))
        }
        self.exemplars = Exemplars(config.exemplars)
        self._missions: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def learn(self, node: int, features: Tensor, labels: Tensor) -> None:
        """See :class:`Learner`."""
        features = scaled(features, self.config.scale)
        x, y = self.exemplars.joined_with(features, labels)
        self.train(self.layers[node], x, y)
        if node == SERVER:
            self.exemplars.add(features, labels)
        else:
            self._missions.setdefault(node, []).append((features, labels))

    def train(self, layer: Layer, x: Tensor, y: Tensor) -> None:
        """Local training of one node's layer on samples ``(N, D)`` of classes ``(N,)``."""
        layer.train(self.config, x, y, self.generator)

    def consolidate(self, layer: Layer) -> None:
        """What the server does with the averaged layer before it passes it on: nothing here."""

    def merge(self, meetings: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """See :class:`Learner`.

        Raises:
            ConfigError: a meeting is without the server.
        """
        require_server(meetings, self.config.name)
        active = [a for a, b in meetings if b == SERVER and a in self._missions]
        told = [b for a, b in meetings if a == SERVER]
        if not active:
            return 0, 0
        server = self.layers[SERVER]
        counts = [sum(len(y) for _, y in self._missions[node]) for node in active]
        up = sum(self.layers[node].nbytes for node in active)
        server.average([self.layers[node] for node in active], counts)
        down = server.nbytes * len(told)
        for x, y in (mission for node in active for mission in self._missions.pop(node)):
            sent = self.exemplars.add(x, y)
            up += sent
            down += sent * (len(told) - 1)
        self.consolidate(server)
        for node in told:
            self.layers[node].copy_from(server)
        return up, down

    def publish(self, clients: int) -> int:
        """See :class:`Learner`."""
        for node in range(clients):
            self.layers[node].copy_from(self.layers[SERVER])
        return self.layers[SERVER].nbytes + self.exemplars.nbytes

    def predict(self, node: int, features: Tensor) -> Tensor:
        """See :class:`Learner`."""
        return self.layers[node].predict(scaled(features, self.config.scale))

    def state_bytes(self, node: int) -> int:
        """See :class:`Learner`."""
        return self.layers[node].nbytes + self.exemplars.nbytes


@dataclass
class FineTuneLearnerConfig(LinearConfig):
    """Settings of :class:`CentralLearner` without memory: the lower bound."""

    info: ClassVar[MethodInfo] = MethodInfo(title="Fine-tuning", stored="one linear layer")
    learns_alone: ClassVar[bool] = False

    name: str = "finetune"

    def build(self, setup: LearnerSetup) -> CentralLearner:
        """See :class:`protocl.federation.reconnaissance.config.LearnerConfig`."""
        self.check()
        return CentralLearner(self, setup)


@dataclass
class JointLearnerConfig(FineTuneLearnerConfig):
    """Settings of :class:`CentralLearner` on all data of all clients: the upper bound."""

    info: ClassVar[MethodInfo] = MethodInfo(title="Joint", stored="all samples")
    keeps_data: ClassVar[bool] = True

    name: str = "joint"


class CentralLearner(Learner):
    """Missions send their samples to a server, which trains one layer on them.

    It trains on the newest samples from where it stood, or anew on all of them.

    Args:
        config: settings.
        setup: width of the features, classes, seed.
    """

    def __init__(self, config: FineTuneLearnerConfig, setup: LearnerSetup) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(setup.seed)
        self.layer = Layer(setup.n_classes, setup.feature_dim)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._new: list[tuple[int, Tensor, Tensor]] = []

    def learn(self, node: int, features: Tensor, labels: Tensor) -> None:
        """See :class:`Learner`; nothing is trained before the samples reach the server."""
        self._new.append((node, scaled(features, self.config.scale), labels))
        if node == SERVER:
            self._train()

    def merge(self, meetings: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """See :class:`Learner`.

        Raises:
            ConfigError: a meeting is without the server.
        """
        require_server(meetings, self.config.name)
        if not meetings or not self._new:
            return 0, 0
        up = sum(x.nbytes + y.nbytes for _, x, y in self._new)
        self._train()
        return up, self.layer.nbytes * sum(a == SERVER for a, _ in meetings)

    def publish(self, clients: int) -> int:
        """See :class:`Learner`."""
        return self.layer.nbytes

    def predict(self, node: int, features: Tensor) -> Tensor:
        """See :class:`Learner`."""
        return self.layer.predict(scaled(features, self.config.scale))

    def state_bytes(self, node: int) -> int:
        """See :class:`Learner`."""
        return self.layer.nbytes + sum(x.nbytes + y.nbytes for x, y in self._kept)

    def _train(self) -> None:
        data = [(x, y) for _, x, y in self._new]
        self._new = []
        if self.config.keeps_data:
            self._kept += data
            data = self._kept
            self.layer.reset()
        x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
        self.layer.train(self.config, x, y, self.generator)


def require_server(meetings: Sequence[tuple[int, int]], method: str) -> None:
    """Refuse gossip.

    Raises:
        ConfigError: a meeting is without the server.
    """
    if any(SERVER not in pair for pair in meetings):
        raise ConfigError(f"method={method} needs a server: set scenario.merge=star")


def scaled(features: Tensor, scale: float) -> Tensor:
    """Features ``(N, D)`` of length ``scale``."""
    return scale * functional.normalize(features.float(), dim=1)
