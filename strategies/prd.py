"""Prototype-sample relation distillation: prototypes that follow a moving backbone, without data.

The backbone learns by a supervised contrastive loss alone; each class has one trainable prototype,
pulled to its samples. When later experiences move the backbone, old prototypes follow it: a loss
keeps, for each of them, which samples of the present batch are near to it.

Stored between experiences: the prototypes and the model itself. No samples, no statistics. During
training also a frozen copy of the model from before the experience.

Differences from the released code (``naderAsadi/Probing-Continual-Learning``): relations are a
softmax over samples, as the paper says, not over prototypes; the teacher runs in evaluation mode,
so that its BatchNorm statistics do not drift (:meth:`PRDPlugin.released` restores these two);
prototypes may have a learning rate of their own; only classes that were seen can be predicted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn, optim

from protocl.config import Setup, StrategyInfo
from protocl.config.sections import Part, part
from protocl.memory import PrototypeMemory
from protocl.strategies.avalanche.companion_optimizer import PlainCompanion
from protocl.strategies.avalanche.epoch_schedule import EpochSchedule, ScheduledConfig
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.avalanche.optimizers import build_optimizer
from protocl.strategies.plugin.task_classes import repeated, tasks_of
from protocl.strategies.training.answers import PrototypeAnswer
from protocl.strategies.training.base import FeatureLossPlugin
from protocl.strategies.training.contrastive import cosine_similarities
from protocl.strategies.training.prototype_table import PrototypeTable
from protocl.strategies.training.ready_made import ReadyMade
from protocl.strategies.training.relation_losses import PRDLoss, PRDTerms, Relations
from protocl.strategies.training.teacher import Teacher
from protocl.strategies.training.views import Views, named_views


def build_projector(inputs: int, hidden: int = 512, outputs: int = 128) -> nn.Sequential:
    """PRD's projector: three linear layers with ReLU between them, no normalisation.

    Raises:
        ValueError: a width is not positive.
    """
    if hidden < 1 or outputs < 1:
        raise ValueError(f"a projector of widths {hidden} and {outputs}: expected at least 1")
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


class PRDPlugin(FeatureLossPlugin):
    """PRD inside any Avalanche strategy.

    The projector joins the first parameter group of the strategy's optimizer in the first
    iteration. The prototypes have an optimizer of the same kind for themselves, without momentum
    and weight decay, whose learning rate follows that of the first group.

    A class that comes back in a later experience keeps its prototype, which is then both pulled to
    the new samples and held in its relation to them.

    Args:
        loss: weights, temperatures and forms of the three losses.
        views: two views of each sample; by default drawn on the device by
            :func:`.full_augmentation` for colour images, and copies of all other inputs.
            :class:`.DatasetViews` takes those that the data set made.
        projector: from features ``(N, D)`` to ``(N, P)``; by default :func:`build_projector`.
        teacher_mode: mode of the teacher; ``"train"`` normalises its batches by their own
            statistics, as the released code does.
        prototype_lr: learning rate of the prototypes, as long as that of the model is what it was
            at first; None for that of the model.
        prototype_init: where the prototypes of new classes start: ``"random"``, as in the authors'
            code, or ``"means"``: at the directions of the means of their features as the experience
            begins, for few steps an experience.
        layer, host_loss, mask_tasks, per_task: as in :class:`.FeatureLossPlugin`.

    Attributes:
        prototypes: the table of prototypes, or None before the first iteration.
        last_terms: the losses of the last mini-batch, detached.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> model, plugin = toy.model(), PRDPlugin()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        >>> settings = dict(train_epochs=4, train_mb_size=12, plugins=[plugin])
        >>> toy.learn(Naive(model=model, optimizer=optimizer, **settings))[0]
        1.0
    """

    def __init__(
        self,
        loss: PRDLoss | None = None,
        *,
        views: Views | None = None,
        projector: nn.Module | None = None,
        teacher_mode: Literal["eval", "train"] = "eval",
        prototype_lr: float | None = None,
        prototype_init: Literal["random", "means"] = "random",
        layer: str | None = None,
        host_loss: float = 0.0,
        mask_tasks: bool = True,
        per_task: bool = False,
    ) -> None:
        super().__init__(
            layer=layer,
            views=named_views("auto") if views is None else views,
            host_loss=host_loss,
            mask_tasks=mask_tasks,
            per_task=per_task,
        )
        if teacher_mode not in ("eval", "train"):
            raise ValueError(f"teacher_mode='{teacher_mode}': expected 'eval' or 'train'")
        if prototype_init not in ("random", "means"):
            raise ValueError(f"prototype_init='{prototype_init}': expected 'random' or 'means'")
        self.loss = PRDLoss() if loss is None else loss
        self.projector = projector
        self.teacher_mode = teacher_mode
        self.prototype_lr = prototype_lr
        self._optimizer = PlainCompanion(prototype_lr)
        self.prototype_init = prototype_init
        self.prototypes: PrototypeTable | None = None
        self.last_terms: PRDTerms | None = None
        self._teacher: Teacher | None = None
        self._old_prototypes: Tensor | None = None
        self._classes: Tensor | None = None
        self._starts: PrototypeMemory | None = None

    @classmethod
    def released(cls, **settings: Any) -> Self:
        """The plugin as the authors' code does it: see the module's docstring."""
        return cls(PRDLoss(relation="released"), teacher_mode="train", **settings)

    # -- training ---------------------------------------------------------------------------

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        self._classes = class_ids
        if self.prototype_init == "means":
            self._starts = self.statistics(strategy, strategy.experience.dataset)
        if self.prototypes is not None:
            self._teacher = Teacher(strategy.model, self.layer)
            self._teacher.model.train(self.teacher_mode == "train")
            self._old_prototypes = self.prototypes.table().detach().clone()

    def feature_loss(
        self, strategy: Any, features: Tensor, labels: Tensor, inputs: Tensor
    ) -> Tensor:
        if self._classes is not None:
            self._make_parameters(strategy, features, self._classes)
            self._classes = None
        assert self.projector is not None
        assert self.prototypes is not None
        labels = labels.repeat(len(features) // len(labels))
        table = self.prototypes.table()
        terms = self.loss(
            self.projector(features),
            features,
            labels,
            table[self.prototypes.rows(labels)],
            self._relations(strategy, inputs, table),
        )
        self.last_terms = PRDTerms(*(term.detach() for term in terms))
        return terms.total

    def _relations(self, strategy: Any, inputs: Tensor, table: Tensor) -> Relations | None:
        if self._teacher is None or self._old_prototypes is None or self.prototypes is None:
            return None
        known = len(self._old_prototypes)
        tasks = repeated(tasks_of(strategy), len(inputs))
        return Relations(
            table[:known],
            self._teacher.features(inputs, tasks),
            self._old_prototypes,
            self.prototypes.experiences[:known],
        )

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self._optimizer.step(strategy.optimizer)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._teacher = self._old_prototypes = None

    def _make_parameters(self, strategy: Any, features: Tensor, class_ids: Tensor) -> None:
        """Give new classes their prototypes, and the optimizer what it does not yet have."""
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32
        if self.prototypes is None:
            self.prototypes = PrototypeTable(features.shape[1], dtype=wide).to(features.device)
        if self.projector is None:
            self.projector = build_projector(features.shape[1]).to(features.device, wide)
        self.prototypes.add(class_ids, self._starts)
        self._starts = None
        self.projector.to(features.device).train()
        _add_parameters(strategy.optimizer, self.projector)
        self._optimizer.join(self.prototypes.parts, strategy.optimizer)

    # -- answering --------------------------------------------------------------------------

    def class_logits(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.prototypes is None:
            return None
        cosines = cosine_similarities(features, self.prototypes.table().detach())
        return cosines / self.loss.temperature, self.prototypes.rows.ids

    def final_answer(self) -> PrototypeAnswer | None:
        """What a model on disk keeps of it; None where nothing was learned."""
        if self.prototypes is None:
            return None
        return PrototypeAnswer("cosine", self.loss.temperature).hold(
            classes=self.prototypes.rows.ids, prototypes=self.prototypes.table()
        )

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Prototypes, projector and what is known of tasks; no moments of optimizers."""
        projector, table = self.projector, self.prototypes
        return {
            **super().state_dict(),
            "projector": None if projector is None else projector.state_dict(),
            "prototypes": None if table is None else table.state_dict(),
            "feature_dim": None if table is None else table.feature_dim,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave of a plugin with the same arguments."""
        super().load_state_dict(state)
        self._optimizer = PlainCompanion(self.prototype_lr)
        if state["prototypes"] is None:
            self.prototypes = None
            return
        self.prototypes = PrototypeTable(state["feature_dim"])
        self.prototypes.load_state_dict(state["prototypes"])
        if self.projector is None:
            self.projector = build_projector(state["feature_dim"])
        self.projector.load_state_dict(state["projector"])


def _add_parameters(optimizer: optim.Optimizer, module: nn.Module) -> None:
    """Let ``optimizer`` train what it does not yet train, with its first group's settings."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    new = [p for p in module.parameters() if id(p) not in known]
    optimizer.param_groups[0]["params"].extend(new)


class PRD(ReadyMade):
    """PRD as a ready-made strategy, whose model's classification layer is not used.

    Args:
        plugin: the method; :class:`PRDPlugin` with its defaults if None.
        schedule: epochs of the first experience and decay of the learning rate.
        **settings: those of :class:`.ReadyMade` but ``own``.

    Example:
        >>> from protocl.checks import toy
        >>> model = toy.model()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        >>> strategy = PRD(model=model, optimizer=optimizer, train_epochs=4, train_mb_size=12)
        >>> toy.learn(strategy)[0]  # accuracy on the first three classes
        1.0
    """

    def __init__(
        self,
        *,
        plugin: PRDPlugin | None = None,
        schedule: EpochSchedule | None = None,
        **settings: Any,
    ) -> None:
        self.prd = PRDPlugin() if plugin is None else plugin
        super().__init__(own=[self.prd, schedule], **settings)


@dataclass
class PRDConfig(ScheduledConfig):
    """Settings of :class:`PRD`; ``strategy=prd_released`` has the authors' for CIFAR-100.

    Attributes:
        loss: weights, temperatures and forms of the three losses.
        plugin: arguments of :class:`PRDPlugin`.
        projector: widths of its projector.
        views: ``auto`` (``augmented`` for colour images, else ``copies``), ``augmented`` (on the
            device), ``crop_flip``, ``dataset`` (made by its transform) or ``copies``.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="PRD",
        paper="Asadi et al., ICML 2023",
        stored_between_experiences="one trained prototype of each class",
        keeps_data=False,
        bytes_per_class="4 D + 16",
    )

    name: str = "prd"
    train_epochs: int = 10
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    loss: PRDLoss = field(default_factory=PRDLoss)
    plugin: Part = part(PRDPlugin, "layer", "host_loss", "mask_tasks", "per_task")
    projector: Part = part(build_projector, "inputs")
    views: Literal["auto", "augmented", "crop_flip", "dataset", "copies"] = "auto"

    @property
    def old_prototypes(self) -> str:
        return "trained"

    def build(self, setup: Setup) -> PRD:
        plugin = self.plugin.build(
            loss=self.loss,
            views=named_views(self.views),
            projector=self.projector.build(inputs=setup.feature_dim),
        )
        return PRD(
            model=setup.model,
            optimizer=build_optimizer(self, setup.model),
            plugin=plugin,
            schedule=self.schedule(),
            train_epochs=self.train_epochs,
            train_mb_size=self.train_mb_size,
            eval_mb_size=self.eval_mb_size,
            device=setup.device,
            plugins=[InMemory("model"), *setup.plugins],
            evaluator=setup.evaluator,
        )
