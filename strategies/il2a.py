"""IL2A: mixed-up classes and semantic augmentation of prototypes, without exemplars.

Mixtures of two classes are classes of their own while an experience is learned, which leaves room
between the real ones. Old classes are replayed as their means; that they stand for a Gaussian of
samples is added to their logits in closed form, and the features are held to those of the model
before the experience (Zhu et al., NeurIPS 2021).

Stored between experiences, for ``D`` features: a row of the classifier (``4 D + 4`` bytes), count,
mean and covariance of each class (``16 D^2 + 16 D + 8`` bytes in double-double); no samples.

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
from protocl.memory.precision import in_full_precision
from protocl.strategies.exemplar_free.linear_classifier import (
    NOT_COUNTED,
    LinearExemplarFreePlugin,
    LinearRows,
)
from protocl.strategies.exemplar_free.mixup import MixedViews, mixed_rows
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


class IL2APlugin(LinearExemplarFreePlugin):
    """IL2A in any Avalanche strategy, whose criterion its loss replaces.

    Args:
        temperature: of the softmax in training.
        augmentation_weight: of the cross-entropy of replayed prototypes.
        distillation_weight: of the features of the model before the experience; tied to the size
            of a batch, see :func:`.feature_distillation`.
        ratio: strength of the semantic augmentation; 0 replays plain means.
        mixes: mixtures of each image; 0 for none.
        concentration: both parameters of the Beta distribution of the shares of a mixture.
        **settings: ``num_workers``, ``drift`` and those of :class:`.FeatureLossPlugin` but
            ``views``.

    Attributes:
        auxiliary: the classifier's rows of mixed classes, ``K (K - 1) / 2`` for the ``K`` classes
            of the present experience; dropped when it ends.
    """

    level = "full"

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        augmentation_weight: float = 10.0,
        distillation_weight: float = 10.0,
        ratio: float = 2.5,
        mixes: int = 4,
        concentration: float = 20.0,
        **settings: Any,
    ) -> None:
        if ratio < 0:
            raise ValueError(f"ratio={ratio}: expected 0 or more")
        self.mixed = MixedViews(mixes, concentration)
        super().__init__(
            views=self.mixed if mixes else None,
            rows_per_class=1,
            temperature=temperature,
            augmentation_weight=augmentation_weight,
            distillation_weight=distillation_weight,
            **settings,
        )
        self.ratio = ratio
        self.auxiliary: LinearRows | None = None
        self._rows_here = torch.zeros(0, dtype=torch.int64)
        self._covariances: Tensor | None = None

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        super().begin_experience(strategy, class_ids)
        self.auxiliary = self._covariances = None
        self._rows_here = self.rows(class_ids).sort().values

    def grow(self, feature_dim: int) -> None:
        super().grow(feature_dim)
        classes = len(self._rows_here)
        self.auxiliary = LinearRows()
        device = self.rows.ids.device
        self.auxiliary.append(classes * (classes - 1) // 2, feature_dim, device)
        if len(self.old_rows) and self.memory is not None:
            self._covariances = self._old_covariances()

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        extra = [] if self.auxiliary is None else list(self.auxiliary.parameters())
        return [*super().trained_parameters(), *extra]

    def class_loss(self, features: Tensor, rows: Tensor) -> Tensor:
        loss = self._mixed_cross_entropy(features, rows)
        if not len(self.old_rows):
            return loss
        assert self._covariances is not None
        prototypes, old = self.old_samples(len(rows))
        weight = self.parameters.weight
        logits = self.logits(prototypes)
        if self.ratio:
            variances = logit_variances(weight, self.old_rows, self._covariances)
            places = torch.searchsorted(self.old_rows, old)
            logits = logits + self.ratio / 2 * variances[places]
        return loss + self.augmentation_weight * self.loss_of_logits(logits, old)

    def _mixed_cross_entropy(self, features: Tensor, rows: Tensor) -> Tensor:
        """Of images ``(B, D)`` and mixtures ``(mixes B, D)``, over real and mixed classes."""
        logits = self.logits(features)
        if len(features) == len(rows) or self.auxiliary is None or not len(self.auxiliary.weight):
            return self.loss_of_logits(logits[: len(rows)], rows)
        logits = torch.cat([logits, self.logits(features, self.auxiliary)], dim=1)
        places = torch.searchsorted(self._rows_here, rows)
        partners = self.mixed.partners
        between = mixed_rows(places.repeat(len(partners)), places[partners].flatten())
        # Neither two images of one class make a class of their own, nor replayed ones of others.
        here = torch.isin(rows, self._rows_here)
        counted = (between >= 0) & here.repeat(len(partners)) & here[partners].flatten()
        labels = torch.where(counted, len(self.rows) + between, NOT_COUNTED)
        return self.loss_of_logits(logits, torch.cat([rows, labels]))

    def _old_covariances(self) -> Tensor:
        """``(O, D, D)`` of the classes of :attr:`old_rows`; zeros for a class of one sample."""
        assert self.memory is not None
        places = torch.searchsorted(self.memory.classes, self.rows.ids[self.old_rows])
        freedom = (self.memory.counts[places] - 1).clamp(min=1)
        return (self.memory.scatter()[places] / freedom[:, None, None]).to(self.parameters.weight)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        self.auxiliary = self._covariances = None
        self.mixed.forget()


class IL2A(ExemplarFree):
    """IL2A as a ready-made strategy.

    Args:
        method: :class:`IL2APlugin` with its defaults if None.
        **settings: those of :class:`.ExemplarFree`.
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
        bytes_per_class="16 D^2 + 20 D + 28",
    )

    name: str = "il2a"
    plugin: Part = part(IL2APlugin)
