"""Avalanche's own prototype classifiers over a frozen backbone, unchanged, for comparison.

They are what a user of Avalanche has today: ``NCMClassifier``, ``StreamingLDA`` and
``FeCAMClassifier`` with the plugins that maintain them. Where they differ from ours on the same
features the reason is in their code: class means that are moving averages, a covariance that
depends on the order of the samples, covariances inverted anew for every mini-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from avalanche.models import FeCAMClassifier, NCMClassifier, TrainEvalModel
from avalanche.training import Naive, StreamingLDA
from avalanche.training.plugins import CurrentDataFeCAMUpdate, CurrentDataNCMUpdate
from torch import nn

from protocl.config import Setup, StrategyConfig, StrategyInfo
from protocl.config.validation import SHARE, ranged
from protocl.model.answers import Answer, LinearAnswer
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.avalanche.kept import nearest_means, streaming_lda
from protocl.strategies.avalanche.optimizers import build_optimizer


@dataclass
class AvalancheHeadConfig(StrategyConfig):
    """Settings that Avalanche's classifiers share; there is no gradient step."""

    @property
    def trains_backbone(self) -> bool:
        return False

    @property
    def unused(self) -> dict[str, str]:
        descent = ("train_epochs", "optimizer", "lr", "momentum", "weight_decay")
        return dict.fromkeys(descent, "there is no gradient step")

    def _naive(self, setup: Setup, classifier: nn.Module, update: Any) -> Naive:
        """Avalanche's recipe: a model with two classifiers and a plugin that fills the second."""
        model = TrainEvalModel(
            feature_extractor=setup.model.backbone,
            train_classifier=setup.model.classifier,
            eval_classifier=classifier,
        )
        return Naive(
            model=model,
            optimizer=build_optimizer(self, setup.model),
            criterion=nn.CrossEntropyLoss(),
            train_epochs=0,
            train_mb_size=self.train_mb_size,
            eval_mb_size=self.eval_mb_size,
            device=setup.device,
            plugins=[update, InMemory("model"), *setup.plugins],
            evaluator=setup.evaluator,
        )


@dataclass
class AvalancheNCMConfig(AvalancheHeadConfig):
    """Avalanche's nearest class mean, for comparison with ``nearest_mean``.

    Attributes:
        normalize: compare unit features with unit means.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(AvalancheNCMConfig())  # accuracy after each experience
        [1.0, 1.0, 0.972]
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="NCM (Avalanche)",
        paper="Mensink et al., TPAMI 2013",
        stored_between_experiences="mean of each class",
        keeps_data=False,
        bytes_per_class="4 D",
        trains_backbone=False,
    )

    name: str = "avalanche_ncm"
    normalize: bool = True

    def build(self, setup: Setup) -> Naive:
        return self._naive(setup, NCMClassifier(normalize=self.normalize), CurrentDataNCMUpdate())

    def kept_answer(self, strategy: Naive) -> Answer:
        return nearest_means(strategy.model.eval_classifier)


@dataclass
class AvalancheSLDAConfig(AvalancheHeadConfig):
    """Avalanche's streaming linear discriminant analysis, for comparison with ``slda``.

    It inverts its covariance for every training mini-batch, hence the large ones.

    Attributes:
        shrinkage: weight of the identity in the covariance.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(AvalancheSLDAConfig())  # accuracy after each experience
        [1.0, 1.0, 1.0]
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="SLDA (Avalanche)",
        paper="Hayes & Kanan, CVPR Workshops 2020",
        stored_between_experiences="count and mean of each class, one covariance",
        keeps_data=False,
        bytes_per_class="4 D",
        trains_backbone=False,
    )

    name: str = "avalanche_slda"
    train_mb_size: int = 1000
    shrinkage: float = ranged(1e-4, SHARE)

    def build(self, setup: Setup) -> StreamingLDA:
        return StreamingLDA(
            slda_model=setup.model.backbone,
            criterion=nn.CrossEntropyLoss(),
            input_size=setup.feature_dim,
            num_classes=setup.n_classes,
            shrinkage_param=self.shrinkage,
            train_mb_size=self.train_mb_size,
            eval_mb_size=self.eval_mb_size,
            device=setup.device,
            plugins=setup.plugins,
            evaluator=setup.evaluator,
        )

    def kept_answer(self, strategy: StreamingLDA) -> LinearAnswer:
        return streaming_lda(strategy)


@dataclass
class AvalancheFeCAMConfig(AvalancheHeadConfig):
    """Avalanche's Mahalanobis distance per class, for comparison with ``fecam``.

    It inverts every covariance for every mini-batch of an evaluation, hence the large ones:
    ``eval_mb_size`` samples cost as much as one.

    Example:
        >>> from protocl.checks import toy
        >>> toy.learn(AvalancheFeCAMConfig())  # accuracy after each experience
        [1.0, 1.0, 1.0]
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="FeCAM (Avalanche)",
        paper="Goswami et al., NeurIPS 2023",
        stored_between_experiences="mean and covariance of each class",
        keeps_data=False,
        bytes_per_class="4 D^2 + 4 D",
        trains_backbone=False,
    )

    name: str = "avalanche_fecam"
    eval_mb_size: int = 5000

    def build(self, setup: Setup) -> Naive:
        return self._naive(setup, FeCAMClassifier(), CurrentDataFeCAMUpdate())
