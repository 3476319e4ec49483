"""iCaRL: exemplars chosen by herding, whose means classify under the backbone of the moment.

The network learns from new samples and exemplars by a binary cross-entropy for each class, in which
the outputs for old classes are held to those of the model before the experience. Its own classifier
only trains the features: a sample belongs to the class whose exemplars have the nearest mean
(Rebuffi et al., CVPR 2017). The means are a prototype memory, computed anew with each experience.

Stored between experiences: ``mem_size`` samples in all, count and mean of their features for each
class (``16 D + 8`` bytes in double-double), and the model itself. During training also a frozen
copy of the model from before the experience.

Where this differs from Avalanche's own (``icarl``): exemplars are herded from all samples without
a cap, a class may come back, the teacher runs in evaluation mode, and classes never seen cannot
win.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from avalanche.models import avalanche_forward
from torch import Tensor
from torch.nn import functional

from protocl.config import Setup, StrategyInfo
from protocl.config.validation import AT_LEAST_0, ranged
from protocl.heads import NearestMean
from protocl.memory.precision import in_full_precision
from protocl.strategies.baselines import BaselineConfig
from protocl.strategies.exemplars.exemplar_sets import ExemplarSets
from protocl.strategies.exemplars.herding import herd
from protocl.strategies.plugin.extraction import classes_of, features_of, labels_of
from protocl.strategies.plugin.model_output import scores_of
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin
from protocl.strategies.plugin.task_classes import tasks_of
from protocl.strategies.training.ready_made import ReadyMade
from protocl.strategies.training.teacher import Teacher


@in_full_precision
def distilled_binary_loss(
    logits: Tensor, labels: Tensor, old_logits: Tensor | None, old_classes: Tensor
) -> Tensor:
    """Binary cross-entropy to labels or teacher, a scalar: mean over samples and outputs.

    Args:
        logits: ``(B, M)``.
        labels: ``(B,)``, columns of the true classes.
        old_logits: ``(B, M)`` of the model before the experience, or None.
        old_classes: ``(K,)`` columns whose targets are the teacher's probabilities.

    Source: Rebuffi et al. 2017, algorithm 3.
    """
    targets = functional.one_hot(labels, logits.shape[1]).to(logits)
    if old_logits is not None:
        targets[:, old_classes] = old_logits.detach()[:, old_classes].sigmoid()
    return functional.binary_cross_entropy_with_logits(logits, targets)


class ICaRLPlugin(PrototypePlugin):
    """iCaRL inside any Avalanche strategy whose model has one output for each class id.

    The strategy's criterion is replaced. Use it without another replay plugin.

    Args:
        mem_size: exemplars of all classes together.
        **settings: ``layer``, ``num_workers``, ``floor``, ``fingerprint``, ``exact`` and ``step``
            of :class:`.PrototypePlugin`.

    Attributes:
        exemplars: the stored samples by class, best first.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> model, plugin = toy.model(), ICaRLPlugin(mem_size=12)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> settings = dict(train_epochs=3, train_mb_size=12, plugins=[plugin])
        >>> toy.learn(Naive(model=model, optimizer=optimizer, **settings))[0]
        1.0
    """

    def __init__(self, mem_size: int = 2000, **settings: Any) -> None:
        head = NearestMean(normalize_input=True, normalize_mean=True)
        super().__init__(head, **settings)
        self.exemplars = ExemplarSets(mem_size)
        self._teacher: Teacher | None = None
        self._old_classes = torch.zeros(0, dtype=torch.int64)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        present = classes_of(strategy.experience.dataset)
        stored = torch.tensor(sorted(self.exemplars.sets), dtype=torch.int64)
        self._old_classes = stored[~torch.isin(stored, present)].to(strategy.device)
        self._teacher = Teacher(strategy.model, self.layer) if len(self._old_classes) else None

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        strategy.adapted_dataset = self.exemplars.beside(strategy.adapted_dataset)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        old_logits = None
        if self._teacher is not None:
            with torch.no_grad():
                tasks = tasks_of(strategy)
                old_logits = scores_of(avalanche_forward(self._teacher.model, strategy.mb_x, tasks))
        labels = strategy.mb_y.to(torch.int64)
        strategy.loss = distilled_binary_loss(
            scores_of(strategy.mb_output), labels, old_logits, self._old_classes
        )

    def after_training_exp(self, strategy: Any, num_workers: int = 0, **kwargs: Any) -> None:
        self._teacher = None
        self.exemplars.put(self._chosen(strategy, num_workers))
        self.refresh(strategy, list(self.exemplars.sets.values()))

    def _chosen(self, strategy: Any, num_workers: int) -> dict[int, Any]:
        """Herded samples of the experience's classes, those stored before among the candidates."""
        dataset = strategy.adapted_dataset
        labels = labels_of(dataset)
        here = classes_of(strategy.experience.dataset)
        rows = torch.isin(labels, here).nonzero().flatten()
        candidates, labels = dataset.subset(rows.tolist()), labels[rows]
        passed = features_of(strategy, candidates, self.layer, num_workers)
        features = torch.cat([functional.normalize(part, dim=1) for _, part, _, _ in passed])
        new = sum(class_id not in self.exemplars.sets for class_id in here.tolist())
        share = self.exemplars.share(new)
        chosen = {}
        for class_id in here.tolist():
            mine = (labels == class_id).nonzero().flatten()
            best = herd(features[mine.to(features.device)], share)
            chosen[class_id] = candidates.subset(mine[best.cpu()].tolist())
        return chosen


class ICaRL(ReadyMade):
    """iCaRL as a ready-made strategy, whose model has one output for each class id of the stream.

    Args:
        mem_size: exemplars of all classes together.
        **settings: those of :class:`.ReadyMade` but ``own``.

    Example:
        >>> from protocl.checks import toy
        >>> model = toy.model()
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> strategy = ICaRL(model=model, optimizer=sgd, mem_size=12, train_mb_size=12)
        >>> toy.learn(strategy)[0]  # accuracy on the first three classes
        1.0
    """

    def __init__(self, *, mem_size: int = 2000, **settings: Any) -> None:
        self.icarl = ICaRLPlugin(mem_size)
        super().__init__(own=[self.icarl], **settings)


@dataclass
class ICaRLNMEConfig(BaselineConfig):
    """Settings of :class:`ICaRL`.

    Attributes:
        mem_size: exemplars of all classes together.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="iCaRL (NME)",
        paper="Rebuffi et al., CVPR 2017",
        stored_between_experiences="samples, at most mem_size, and the means of their features",
        keeps_data=True,
        bytes_per_class="16 D + 16",
    )

    name: str = "icarl_nme"
    mem_size: int = ranged(200, AT_LEAST_0)

    @property
    def old_prototypes(self) -> str:
        return "refreshed"

    def build(self, setup: Setup) -> ICaRL:
        return self._build(ICaRL, setup, mem_size=self.mem_size)
