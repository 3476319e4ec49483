"""STSA and STSA-E: train at first, then ridge regression on random features, from statistics.

Statistics of all clients and all experiences add up to those of all samples, in space as in time
(STSA, arXiv 2506.01327). The second moment of random features is large; STSA-E sends means instead,
and estimates it from how they spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocl.config.sections import HeadChoice, head
from protocl.config.validation import AT_LEAST_1, NOT_NEGATIVE, ranged
from protocl.federation.config import FederationSetup, MethodInfo
from protocl.federation.methods.fedavg_prototypes import (
    FedAvgPrototypesConfig,
    FedAvgPrototypesMethod,
)
from protocl.federation.methods.group_means.fedcof import GroupMeansConfig


@dataclass
class STSAConfig(FedAvgPrototypesConfig):
    """STSA: a network trained at first, then ridge regression on random features from sums.

    Give ``partition.growth=stream``, and as many ``training_rounds`` as the first experience has.

    Attributes:
        head: ridge regression on ``head.projection`` random features (10,000 in the paper).

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(STSAConfig(training_rounds=1))  # trains once, then adds
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="STSA", stored="one network, sums of random features"
    )

    name: str = "stsa"
    head: HeadChoice = head("ridge", projection=2000)


@dataclass
class STSAEConfig(GroupMeansConfig, FedAvgPrototypesConfig):
    """STSA-E: as STSA, with the second moment estimated from means of parts of clients' samples.

    Attributes:
        head: as for ``stsa``, with the authors' strength; it has the unit of squared features, and
            cannot be chosen from an estimate.
        means: of each class and client.
        gamma: see :class:`.GroupMeansConfig`; the ridge's own strength serves here.

    Example:
        >>> from protocl.federation.runner import toy
        >>> toy.learn(STSAEConfig(training_rounds=1))  # trains once, then adds
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="STSA-E", stored="one network, each client's class means of random features"
    )

    name: str = "stsa_e"
    head: HeadChoice = head("ridge", projection=2000, regularization=1e6)
    means: int = ranged(5, AT_LEAST_1)
    gamma: float = ranged(0.0, NOT_NEGATIVE)

    def build(self, setup: FederationSetup) -> FedAvgPrototypesMethod:
        """See :class:`protocl.federation.config.MethodConfig`."""
        self.require_estimable(setup)
        return super().build(setup)
