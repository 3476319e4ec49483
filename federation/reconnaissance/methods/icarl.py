"""iCaRL in a federation, as in the code of the paper on federated reconnaissance.

A mission trains on its samples and the pooled exemplars, with sigmoid targets and the outputs of
before distilled; the server averages the weights, takes the mission's samples into the pool and
trains on the pool. Samples leave the client.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from protocl.config.validation import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, ranged
from protocl.federation.config import MethodInfo
from protocl.federation.reconnaissance.config import LearnerSetup
from protocl.federation.reconnaissance.methods.layer import Layer, Objective
from protocl.federation.reconnaissance.methods.linear import (
    FedAvgLearner,
    FedAvgLearnerConfig,
    scaled,
)
from protocl.heads import NearestMean
from protocl.memory import PrototypeMemory


@dataclass
class ICaRLLearnerConfig(FedAvgLearnerConfig):
    """Settings of :class:`ICaRLLearner`; those of the code of Hendryx et al. 2021.

    Attributes:
        pool_epochs: passes over the exemplars on the server after each merge.
        temperature: of the distillation.
        distillation: its weight.
        answer: ``layer`` classifies by the trained layer, as that code; ``exemplar_means`` by the
            nearest mean of exemplars, as iCaRL does.
    """

    info: ClassVar[MethodInfo] = MethodInfo(title="iCaRL", stored="one linear layer and exemplars")
    keeps_data: ClassVar[bool] = True

    name: str = "icarl"
    exemplars: int = ranged(4000, AT_LEAST_1)
    local_epochs: int = 30
    lr: float = 0.01
    weight_decay: float = 1e-3
    pool_epochs: int = ranged(50, AT_LEAST_1)
    temperature: float = ranged(2.0, POSITIVE)
    distillation: float = ranged(1.0, NOT_NEGATIVE)
    answer: Literal["layer", "exemplar_means"] = "layer"

    def build(self, setup: LearnerSetup) -> ICaRLLearner:
        """See :class:`protocl.federation.reconnaissance.config.LearnerConfig`."""
        self.check()
        return ICaRLLearner(self, setup)


class ICaRLLearner(FedAvgLearner):
    """Exemplars, distillation and averaged weights.

    Args:
        config: settings.
        setup: number of clients, width of the features, classes, seed.
    """

    config: ICaRLLearnerConfig

    def __init__(self, config: ICaRLLearnerConfig, setup: LearnerSetup) -> None:
        super().__init__(config, setup)
        self._feature_dim = setup.feature_dim

    def train(self, layer: Layer, x: Tensor, y: Tensor) -> None:
        """See :class:`FedAvgLearner`."""
        objective = distilled(layer, x, y, self.config.temperature, self.config.distillation)
        layer.train(self.config, x, y, self.generator, objective)

    def consolidate(self, layer: Layer) -> None:
        """Train the averaged layer on the exemplars, by cross-entropy."""
        settings = dataclasses.replace(self.config, local_epochs=self.config.pool_epochs)
        layer.train(settings, *self._pool(), self.generator)

    def predict(self, node: int, features: Tensor) -> Tensor:
        """See :class:`Learner`."""
        if self.config.answer == "layer":
            return super().predict(node, features)
        memory = PrototypeMemory(self._feature_dim).update(*self._pool())
        return NearestMean().fit(memory).predict(scaled(features, self.config.scale))

    def _pool(self) -> tuple[Tensor, Tensor]:
        return self.exemplars.joined_with(
            torch.empty(0, self._feature_dim), torch.empty(0, dtype=torch.int64)
        )


def distilled(layer: Layer, x: Tensor, y: Tensor, temperature: float, weight: float) -> Objective:
    """iCaRL's objective for a layer that is about to learn samples ``(N, D)``.

    A binary cross-entropy for each class, summed over classes: of all known classes against the
    labels, and of those known before against what the layer gives now, both logits divided by
    ``temperature``. Written for classes that may come back with new samples, which distillation
    alone would not learn.

    Source: Rebuffi et al., CVPR 2017, section 3.2, with a temperature as in Hendryx et al. 2021.

    Args:
        layer: as it is before; remembered.
        x: samples, by row number.
        y: their class ids ``(N,)``.
        temperature: of the distillation.
        weight: of the distillation.
    """
    before = layer.known.clone()
    known = before.clone()
    known[y] = True
    old = before[known]  # which of the columns
    targets = torch.sigmoid(layer.logits(x)[:, before] / temperature)

    def objective(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        loss = _binary(logits, functional.one_hot(labels, logits.shape[1]))
        if weight:
            loss = loss + weight * _binary(logits[:, old] / temperature, targets[rows])
        return loss

    return objective


def _binary(logits: Tensor, targets: Tensor) -> Tensor:
    losses = functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), reduction="none"
    )
    return losses.sum(1).mean()
