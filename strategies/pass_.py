"""PASS: prototype augmentation and self-supervision by rotated labels, without exemplars.

Every class in every orientation is a class of a linear classifier. Old classes are replayed as
their mean plus Gaussian noise of one radius for all, and the features are held to those of the
model before the experience (Zhu et al., CVPR 2021).

Stored between experiences, for ``D`` features: four rows of the classifier (``16 D + 16`` bytes),
count, mean and variances of each class (``32 D + 16`` bytes in double-double); no samples.

Where this differs from the authors' code: the classifier is trained by an optimizer of its own, of
the kind and with the settings of the strategy's; prototypes are means over the images as they are,
not augmented ones; the radius is a mean over classes of the variance per feature, as the paper
says, with ``n - 1`` in the denominator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.memory import PrototypeMemory
from protocl.model.answers import LinearAnswer
from protocl.strategies.drift.compensation import DriftEstimator
from protocl.strategies.exemplar_free.kept_classes import KeptClasses
from protocl.strategies.exemplar_free.linear_classifier import LinearClassifier, drawn_prototypes
from protocl.strategies.exemplar_free.plugin import ExemplarFreePlugin
from protocl.strategies.exemplar_free.rotations import ROTATIONS, rotated, rotated_rows
from protocl.strategies.exemplar_free.strategy import ExemplarFree, ExemplarFreeConfig


def mean_variance(memory: PrototypeMemory) -> Tensor:
    """``mean_k tr(S_k) / D``, a float64 scalar; classes of one sample have variance 0.

    Args:
        memory: of level ``diagonal`` or more.

    Source: Zhu et al. 2021, section 3.3 (the square of its radius).
    """
    freedom = (memory.counts - 1).clamp(min=1)
    scatter = memory.at_level("diagonal").scatter() if memory.level == "full" else memory.scatter()
    return (scatter / freedom[:, None]).mean()


def augmented_prototypes(prototypes: Tensor, noise: Tensor, radius: Tensor) -> Tensor:
    """``mu + r e``: features ``(R, D)`` around prototypes ``(R, D)``.

    Args:
        prototypes: ``(R, D)``.
        noise: ``(R, D)`` from a standard normal.
        radius: scalar ``r``.

    Source: Zhu et al. 2021, equation 5.
    """
    return prototypes + radius * noise


class PASSPlugin(ExemplarFreePlugin):
    """PASS in any Avalanche strategy, whose criterion its loss replaces.

    Args:
        temperature: of the softmax in training.
        augmentation_weight: of the cross-entropy of augmented prototypes.
        distillation_weight: of the features of the model before the experience; tied to the size
            of a batch, see :func:`.feature_distillation`.
        radius: ``"first"`` keeps the radius of the first experience, ``"all"`` computes it over
            all classes after each.
        drift: how prototypes of old classes are carried over after each experience.
        **settings: those of :class:`.FeatureLossPlugin` but ``views``.

    Attributes:
        classifier: one output for each class in each orientation.
        kept: classes, their prototypes, the teacher.
        old_rows: ``(O,)`` rows of classes that are not in the present experience.
        table: ``(R, D)`` prototypes at the start of an experience with old classes.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> model, plugin = toy.model(), PASSPlugin()
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> settings = dict(train_epochs=3, train_mb_size=12, plugins=[plugin])
        >>> toy.learn(Naive(model=model, optimizer=optimizer, **settings))[0]
        1.0
        >>> plugin.memory.means.shape  # of six classes, 16 features
        torch.Size([6, 16])
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        augmentation_weight: float = 10.0,
        distillation_weight: float = 10.0,
        radius: Literal["first", "all"] = "first",
        drift: DriftEstimator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(views=rotated, **settings)
        if augmentation_weight < 0:
            raise ValueError(f"augmentation_weight={augmentation_weight}: expected 0 or more")
        if radius not in ("first", "all"):
            raise ValueError(f"radius='{radius}': expected 'first' or 'all'")
        self.augmentation_weight = augmentation_weight
        self.radius = radius
        self.classifier = LinearClassifier(ROTATIONS, temperature)
        rows = self.classifier.rows
        self.kept = KeptClasses(self, rows, distillation_weight, drift, level="diagonal")
        self.old_rows = torch.zeros(0, dtype=torch.int64)
        self.table: Tensor | None = None

    def class_loss(self, features: Tensor, rows: Tensor) -> Tensor:
        """Scalar loss of a mini-batch, distillation apart.

        Args:
            features: ``(4 B, D)`` of all orientations, those of images as they are first.
            rows: ``(B,)`` rows of the samples' classes.
        """
        loss = self.classifier.cross_entropy(features, rotated_rows(rows))
        if self.table is None:
            return loss
        prototypes, old = drawn_prototypes(self.table, self.old_rows, len(rows))
        noise = torch.randn_like(prototypes)
        made = augmented_prototypes(prototypes, noise, self.classifier.rows.radius)
        replayed = self.classifier.cross_entropy(made, ROTATIONS * old)
        return loss + self.augmentation_weight * replayed

    # -- wiring -----------------------------------------------------------------------------

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        self.old_rows = self.kept.begin(strategy, class_ids)
        self.classifier.rest()

    def feature_loss(
        self, strategy: Any, features: Tensor, labels: Tensor, inputs: Tensor
    ) -> Tensor:
        if not self.classifier.trains:  # only now is the width of the features known
            self._grow(features.shape[1])
            self.table = self.kept.prototypes() if len(self.old_rows) else None
            self.classifier.train(strategy.optimizer)
        loss = self.class_loss(features, self.kept.rows(labels))
        return loss + self.kept.distillation(strategy, features, inputs)

    def _grow(self, feature_dim: int) -> None:
        self.classifier.grow(len(self.kept.rows), feature_dim, self.kept.rows.ids.device)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.classifier.step(strategy.optimizer)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        first = self.memory is None
        self.kept.end(strategy)
        if self.memory is not None and not self.classifier.trains:
            self._grow(self.memory.feature_dim)  # there was no step, as with zero epochs
        if self.memory is not None and (first or self.radius == "all"):
            self.classifier.rows.radius = mean_variance(self.memory).sqrt().float()
        self.classifier.rest()
        self.table = None

    def class_logits(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        return self.kept.answer(features, self.classifier.answer)

    def final_answer(self) -> LinearAnswer | None:
        """What a model on disk keeps of it; None where nothing was learned."""
        return self.classifier.kept(self.kept.rows.ids) if len(self.kept.rows) else None


class PASS(ExemplarFree):
    """PASS as a ready-made strategy.

    Args:
        method: :class:`PASSPlugin` with its defaults if None.
        **settings: those of :class:`.ExemplarFree`.

    Example:
        >>> from protocl.checks import toy
        >>> model = toy.model()
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> strategy = PASS(model=model, optimizer=optimizer, train_epochs=3, train_mb_size=12)
        >>> toy.learn(strategy)[0]  # accuracy on the first three classes
        1.0
    """

    def __init__(self, *, method: PASSPlugin | None = None, **settings: Any) -> None:
        super().__init__(method=PASSPlugin() if method is None else method, **settings)


@dataclass
class PASSConfig(ExemplarFreeConfig):
    """Settings of PASS; the authors' for CIFAR-100: ``train_epochs=101 milestones=[44,89]``."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="PASS",
        paper="Zhu et al., CVPR 2021",
        stored_between_experiences="mean and variances of each class, a linear classifier",
        keeps_data=False,
        bytes_per_class="48 D + 40",
    )

    name: str = "pass"
    plugin: Part = part(PASSPlugin)
