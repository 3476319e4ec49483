"""IL2A: mixed-up classes and semantic augmentation of prototypes, without exemplars.

Mixtures of two classes are classes of their own while an experience is learned, which leaves room
between the real ones. Old classes are replayed as their means; that they stand for a Gaussian of
samples is added to their logits in closed form, and the features are held to those of the model
before the experience (Zhu et al., NeurIPS 2021).

Stored between experiences, for ``D`` features: a row of the classifier (``4 D + 4`` bytes), count,
mean and covariance of each class (``8 D^2 + 24 D + 16`` bytes in double-double); no samples.

Where this differs from the released code: the classifier is trained by an optimizer of its own, of
the kind and with the settings of the strategy's; prototypes are of the images as they are; the
closed form is computed once for each old class, not as a ``(B, C, D)`` product for each sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.memory import PrototypeMemory
from protocl.memory.precision import in_full_precision
from protocl.model.answers import LinearAnswer
from protocl.strategies.drift.compensation import DriftEstimator
from protocl.strategies.exemplar_free.kept_classes import KeptClasses
from protocl.strategies.exemplar_free.linear_classifier import (
    NOT_COUNTED,
    LinearClassifier,
    LinearRows,
    drawn_prototypes,
)
from protocl.strategies.exemplar_free.mixup import MixedViews, mixed_rows
from protocl.strategies.exemplar_free.plugin import ExemplarFreePlugin
from protocl.strategies.exemplar_free.strategy import ExemplarFree, ExemplarFreeConfig


@in_full_precision
def logit_variances(weight: Tensor, anchors: Tensor, covariances: Tensor) -> Tensor:
    """``v_kc = (w_c - w_k)^T S_k (w_c - w_k)``, ``(K, C)``, with a gradient to the weights.

    The variance of the difference of two logits when the features of class ``k`` vary with ``S_k``.

    Args:
        weight: ``(C, D)``, a row for each class.
        anchors: ``(K,)`` rows of the classes that vary.
        covariances: ``(K, D, D)``, symmetric.

    Source: Zhu et al. 2021, section 3.3.
    """
    projected = weight @ covariances  # (K, C, D)
    own = weight[anchors]
    squares = (projected * weight).sum(2)
    crossed = (projected * own[:, None]).sum(2)
    anchored = (own[:, None] @ covariances @ own[:, :, None]).flatten(1)
    return squares - 2 * crossed + anchored


class IL2APlugin(ExemplarFreePlugin):
    """IL2A in any Avalanche strategy, whose criterion its loss replaces.

    Args:
        temperature: of the softmax in training.
        augmentation_weight: of the cross-entropy of replayed prototypes.
        distillation_weight: of the features of the model before the experience; tied to the size
            of a batch, see :func:`.feature_distillation`.
        ratio: strength of the semantic augmentation; 0 replays plain means.
        mixes: mixtures of each image; 0 for none.
        concentration: both parameters of the Beta distribution of the shares of a mixture.
        drift: how prototypes of old classes are carried over after each experience.
        **settings: those of :class:`.FeatureLossPlugin` but ``views``.

    Attributes:
        classifier: one output for each class.
        auxiliary: its rows of mixed classes, ``K (K - 1) / 2`` for the ``K`` classes of the present
            experience; dropped when it ends.
        kept: classes, their prototypes, the teacher.
        old_rows, new_rows: ``(O,)`` and ``(K,)`` rows of classes out of and in the present
            experience.
        table: ``(R, D)`` prototypes at the start of an experience with old classes.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> model, plugin = toy.model(), IL2APlugin()
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> settings = dict(train_epochs=2, train_mb_size=12, plugins=[plugin])
        >>> toy.learn(Naive(model=model, optimizer=optimizer, **settings))[0]
        1.0
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        augmentation_weight: float = 10.0,
        distillation_weight: float = 10.0,
        ratio: float = 2.5,
        mixes: int = 4,
        concentration: float = 20.0,
        drift: DriftEstimator | None = None,
        **settings: Any,
    ) -> None:
        self.mixed = MixedViews(mixes, concentration)
        super().__init__(views=self.mixed if mixes else None, **settings)
        if augmentation_weight < 0:
            raise ValueError(f"augmentation_weight={augmentation_weight}: expected 0 or more")
        if ratio < 0:
            raise ValueError(f"ratio={ratio}: expected 0 or more")
        self.augmentation_weight = augmentation_weight
        self.ratio = ratio
        self.classifier = LinearClassifier(1, temperature)
        rows = self.classifier.rows
        self.kept = KeptClasses(self, rows, distillation_weight, drift, level="full")
        self.auxiliary: LinearRows | None = None
        self.old_rows = self.new_rows = torch.zeros(0, dtype=torch.int64)
        self.table: Tensor | None = None
        self._covariances: Tensor | None = None

    def class_loss(self, features: Tensor, rows: Tensor) -> Tensor:
        """Scalar loss of a mini-batch, distillation apart.

        Args:
            features: ``((1 + mixes) B, D)`` of images and of their mixtures.
            rows: ``(B,)`` rows of the images' classes.
        """
        loss = self._mixed_cross_entropy(features, rows)
        if self.table is None or self._covariances is None:
            return loss
        prototypes, old = drawn_prototypes(self.table, self.old_rows, len(rows))
        logits = self.classifier.logits(prototypes)
        if self.ratio:
            weight = self.classifier.rows.weight
            variances = logit_variances(weight, self.old_rows, self._covariances)
            places = torch.searchsorted(self.old_rows, old)
            logits = logits + self.ratio / 2 * variances[places]
        return loss + self.augmentation_weight * self.classifier.loss_of_logits(logits, old)

    def _mixed_cross_entropy(self, features: Tensor, rows: Tensor) -> Tensor:
        """Of images ``(B, D)`` and mixtures ``(mixes B, D)``, over real and mixed classes."""
        logits, loss = self.classifier.logits(features), self.classifier.loss_of_logits
        if len(features) == len(rows) or self.auxiliary is None or not len(self.auxiliary.weight):
            return loss(logits[: len(rows)], rows)
        logits = torch.cat([logits, self.classifier.logits(features, self.auxiliary)], dim=1)
        places = torch.searchsorted(self.new_rows, rows)
        partners = self.mixed.partners
        between = mixed_rows(places.repeat(len(partners)), places[partners].flatten())
        # Neither two images of one class make a class of their own, nor replayed ones of others.
        here = self.new_rows[places.clamp(max=len(self.new_rows) - 1)] == rows
        counted = (between >= 0) & here.repeat(len(partners)) & here[partners].flatten()
        labels = torch.where(counted, len(self.kept.rows) + between, NOT_COUNTED)
        return loss(logits, torch.cat([rows, labels]))

    # -- wiring -----------------------------------------------------------------------------

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        self.old_rows = self.kept.begin(strategy, class_ids)
        self.new_rows = self.kept.rows(class_ids).sort().values
        self._forget_experience()

    def _forget_experience(self) -> None:
        self.classifier.rest()
        self.auxiliary = self.table = self._covariances = None

    def feature_loss(
        self, strategy: Any, features: Tensor, labels: Tensor, inputs: Tensor
    ) -> Tensor:
        if self.auxiliary is None:  # only now is the width of the features known
            self.auxiliary = self.begin_steps(features.shape[1])
            self.classifier.train(strategy.optimizer, self.auxiliary)
        loss = self.class_loss(features, self.kept.rows(labels))
        return loss + self.kept.distillation(strategy, features, inputs)

    def begin_steps(self, feature_dim: int) -> LinearRows:
        """Prepare for an experience's first mini-batch; the rows of mixed classes."""
        self._grow(feature_dim)
        classes, mixed = len(self.new_rows), LinearRows()
        mixed.append(classes * (classes - 1) // 2, feature_dim, self.new_rows.device)
        if len(self.old_rows) and self.memory is not None:
            self.table = self.kept.prototypes()
            self._covariances = self._old_covariances(self.memory)
        return mixed

    def _grow(self, feature_dim: int) -> None:
        self.classifier.grow(len(self.kept.rows), feature_dim, self.kept.rows.ids.device)

    def _old_covariances(self, memory: PrototypeMemory) -> Tensor:
        """``(O, D, D)`` of the classes of :attr:`old_rows`; zeros for a class of one sample."""
        places = torch.searchsorted(memory.classes, self.kept.rows.ids[self.old_rows])
        freedom = (memory.counts[places] - 1).clamp(min=1)
        covariances = memory.scatter()[places] / freedom[:, None, None]
        return covariances.to(self.classifier.rows.weight)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.classifier.step(strategy.optimizer)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.kept.end(strategy)
        if self.memory is not None and not self.classifier.trains:
            self._grow(self.memory.feature_dim)  # there was no step, as with zero epochs
        self._forget_experience()
        self.mixed.forget()

    def class_logits(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        return self.kept.answer(features, self.classifier.answer)

    def final_answer(self) -> LinearAnswer | None:
        """What a model on disk keeps of it; None where nothing was learned."""
        return self.classifier.kept(self.kept.rows.ids) if len(self.kept.rows) else None


class IL2A(ExemplarFree):
    """IL2A as a ready-made strategy.

    Args:
        method: :class:`IL2APlugin` with its defaults if None.
        **settings: those of :class:`.ExemplarFree`.

    Example:
        >>> from protocl.checks import toy
        >>> model = toy.model()
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> strategy = IL2A(model=model, optimizer=optimizer, train_epochs=3, train_mb_size=12)
        >>> toy.learn(strategy)[0]  # accuracy on the first three classes
        1.0
    """

    def __init__(self, *, method: IL2APlugin | None = None, **settings: Any) -> None:
        super().__init__(method=IL2APlugin() if method is None else method, **settings)


@dataclass
class IL2AConfig(ExemplarFreeConfig):
    """Settings of IL2A; the authors' for CIFAR-100: ``train_epochs=101 milestones=[44,89]``."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="IL2A",
        paper="Zhu et al., NeurIPS 2021",
        stored_between_experiences="mean and covariance of each class, a linear classifier",
        keeps_data=False,
        bytes_per_class="8 D^2 + 28 D + 28",
    )

    name: str = "il2a"
    plugin: Part = part(IL2APlugin)
