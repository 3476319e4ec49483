"""ProtoGCD: prototypes for named classes and unnamed categories alike, learned together.

Named samples and unlabelled ones, which are of named classes or of none, share one cosine
classifier. Each view of a sample is taught by the answer to the other, more of them by hard
pseudo-labels as training goes on; all prototypes are held to equal use and apart from each other
(Ma et al., TPAMI 2025). The number of categories is given.

Stored between experiences, for ``D`` features: count and mean of each class (``16 D + 16`` bytes in
double-double) and its prototype (``4 D + 16`` bytes), the same for each category; no samples.

After training the prototypes answer one question alone: to which category an unlabelled sample
belongs. Named classes are answered by heads on class statistics, as in all methods here, and the
unlabelled samples of each category are summed up apart (:attr:`.DiscoveryPlugin.discovered`).

In a stream each experience is a discovery of its own: its losses see the prototypes of its own
classes and categories (and of samples that a host replays), since equal use would otherwise push
samples to classes that are not there.

Where this differs from the authors' code (``mashijie1028/ProtoGCD``):

* the last state is kept. Theirs keeps the epoch of best accuracy on the unlabelled training
  samples, that is by their hidden labels;
* mini-batches hold ``ratio`` unlabelled samples for each labelled one, and an epoch is a pass over
  the labelled ones; theirs draws from both with replacement, half of each on average;
* the number of categories is not estimated: the criterion is not in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from protocl.config import Setup, StrategyInfo
from protocl.config.sections import Part, part
from protocl.config.validation import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    ranged,
    require_choice,
    require_declared,
)
from protocl.memory import PrototypeMemory
from protocl.strategies.open_world.discovery import DiscoveryPlugin
from protocl.strategies.open_world.representation import wide_type
from protocl.strategies.open_world.self_distillation import (
    certain_share,
    distillation,
    prototype_separation,
    uneven_use,
)
from protocl.strategies.open_world.strategy import DiscoveryConfig, DiscoveryStrategy
from protocl.strategies.training.contrastive import (
    contrastive,
    cosine_similarities,
    supervised_contrastive,
    unit_rows,
)
from protocl.strategies.training.prototype_table import PrototypeTable

_NO_ROW = -100
"""Of labels that are none of the present rows; a cross-entropy leaves them out."""


@dataclass(frozen=True)
class ProtoGCDLoss:
    """Weights and temperatures; the defaults are those of the authors' commands for CIFAR-100.

    Attributes:
        supervised_weight: of what labelled samples teach; the rest is for all samples.
        entropy_weight: of the even use of prototypes.
        separation_weight: of prototypes apart from each other.
        temperature: of logits and of the separation.
        teacher_temperature: of pseudo-labels.
        contrastive_temperature: of two views of a sample.
        supervised_temperature: of samples of a class.
        first_share: of samples with hard pseudo-labels in the first epoch.
    """

    supervised_weight: float = ranged(0.35, SHARE)
    entropy_weight: float = ranged(2.0, NOT_NEGATIVE)
    separation_weight: float = ranged(0.1, NOT_NEGATIVE)
    temperature: float = ranged(0.1, POSITIVE)
    teacher_temperature: float = ranged(0.05, POSITIVE)
    contrastive_temperature: float = ranged(1.0, POSITIVE)
    supervised_temperature: float = ranged(0.07, POSITIVE)
    first_share: float = ranged(0.0, SHARE)

    def __post_init__(self) -> None:
        require_declared(self)

    def of_all(
        self, logits: Tensor, projections: Tensor, prototypes: Tensor, share: float
    ) -> Tensor:
        """What all samples teach, a scalar.

        Args:
            logits: ``(2 N, K)`` cosines, all first views first.
            projections: ``(2 N, P)``.
            prototypes: ``(K, D)`` of unit length.
            share: of hard pseudo-labels.
        """
        taught = distillation(
            logits,
            share,
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
        )
        used = uneven_use(logits, self.temperature)
        apart = prototype_separation(prototypes, self.temperature)
        alike = contrastive(projections, temperature=self.contrastive_temperature)
        return taught + self.entropy_weight * used + self.separation_weight * apart + alike

    def of_labelled(
        self, logits: Tensor, targets: Tensor, projections: Tensor, labels: Tensor
    ) -> Tensor:
        """What labelled samples teach, a scalar.

        Args:
            logits: ``(2 B, K)``.
            targets: ``(2 B,)`` columns of their classes.
            projections: ``(2 B, P)``.
            labels: ``(2 B,)`` class ids.
        """
        answered = functional.cross_entropy(
            logits / self.temperature, targets, ignore_index=_NO_ROW
        )
        return answered + supervised_contrastive(
            projections, labels, temperature=self.supervised_temperature, base_temperature=None
        )


class ProtoGCDPlugin(DiscoveryPlugin):
    """ProtoGCD in any Avalanche strategy, whose criterion its loss replaces.

    It trains and sorts unlabelled samples; a :class:`.PrototypePlugin` beside it answers.

    Args:
        loss: weights and temperatures.
        ramp_epochs: in the last of so many epochs of an experience all pseudo-labels are hard;
            None for half of its epochs.
        prototype_init: where prototypes of named classes start: ``"random"``, as in the authors'
            code, or ``"means"``: at the directions of their labelled features.
        hidden: width between the layers of the projector; None for that of the features. The
            authors' is 2048.
        outputs: width of the projections.
        **settings: those of :class:`.DiscoveryPlugin` but ``projector``: ``unlabelled``, ``ratio``,
            ``new_categories`` and others.

    Attributes:
        table: the prototypes, by class id or number of a category; None before the first
            iteration.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> from protocl.strategies import PrototypePlugin
        >>> model, plugin = toy.model(), ProtoGCDPlugin(unlabelled=toy.unlabelled())
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        >>> plugins = [plugin, PrototypePlugin()]
        >>> settings = dict(train_epochs=8, train_mb_size=12, plugins=plugins)
        >>> toy.learn(Naive(model=model, optimizer=optimizer, **settings))[0]
        1.0
        >>> plugin.discovered.counts  # of the images of a class that nobody named
        tensor([12])
    """

    def __init__(
        self,
        loss: ProtoGCDLoss | None = None,
        *,
        ramp_epochs: int | None = None,
        prototype_init: Literal["random", "means"] = "random",
        hidden: int | None = None,
        outputs: int = 256,
        **settings: Any,
    ) -> None:
        projector = {"hidden": hidden, "outputs": outputs, "layers": 3, "gelu": True}
        super().__init__(projector, **settings)
        require_choice("prototype_init", prototype_init, ("random", "means"))
        if ramp_epochs is not None and ramp_epochs < 0:
            raise ValueError(f"ramp_epochs={ramp_epochs}: expected 0 or more, or None")
        self.loss = ProtoGCDLoss() if loss is None else loss
        self.ramp_epochs = ramp_epochs
        self.prototype_init = prototype_init
        self.table: PrototypeTable | None = None
        self._starts: PrototypeMemory | None = None
        self._present = torch.zeros(0, dtype=torch.int64)
        self._share = 0.0

    # -- training ---------------------------------------------------------------------------

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        super().begin_experience(strategy, class_ids)
        if self.prototype_init == "means":
            self._starts = self.statistics(strategy, strategy.experience.dataset)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        epochs = strategy.train_epochs // 2 if self.ramp_epochs is None else self.ramp_epochs
        epoch = strategy.clock.train_exp_epochs
        self._share = certain_share(epoch, epochs, self.loss.first_share)

    def grow(self, class_ids: Tensor, features: Tensor) -> None:
        wide = wide_type(features)
        if self.table is None:
            self.table = PrototypeTable(features.shape[1], dtype=wide)
        self.table.to(features.device)
        if self._starts is not None:
            self.table.add(self._starts.classes, self._starts)
        self._starts = None
        self.table.add(class_ids)
        categories = self.numbers(self.expected(self._experience)).to(class_ids.device)
        self.table.add(categories)
        self._present = self.table.rows(torch.cat([class_ids, categories]))

    def trained(self) -> list[torch.nn.Parameter]:
        assert self.table is not None
        return [*super().trained(), *self.table.parts]

    def loss_of(self, features: Tensor, labels: Tensor) -> Tensor:
        assert self.projector is not None
        assert self.table is not None
        rows = self.table.rows(labels)
        present = torch.cat([self._present, rows]).unique()
        prototypes = unit_rows(self.table.table()[present])
        logits = cosine_similarities(features, prototypes)
        projections = self.projector(features)
        first = torch.arange(len(labels), device=labels.device)
        named = torch.cat([first, len(features) // 2 + first])
        targets = torch.searchsorted(present, rows)
        labelled = self.loss.of_labelled(
            logits[named], targets.repeat(2), projections[named], labels.repeat(2)
        )
        taught = self.loss.of_all(logits, projections, prototypes, self._share)
        weight = self.loss.supervised_weight
        return (1 - weight) * taught + weight * labelled

    # -- categories -------------------------------------------------------------------------

    @property
    def sorts(self) -> bool:
        return self.table is not None

    def assigned(self, features: Tensor) -> Tensor:
        assert self.table is not None
        cosines = cosine_similarities(features, self.table.table().detach())
        return self.table.rows.ids.to(features.device)[cosines.argmax(1)]

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Prototypes, projector, discovered statistics; no moments of optimizers."""
        table = self.table
        return {
            **super().state_dict(),
            "prototypes": None if table is None else table.state_dict(),
            "width": None if table is None else table.feature_dim,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.table = None
        if state["prototypes"] is not None:
            self.table = PrototypeTable(state["width"])
            self.table.load_state_dict(state["prototypes"])


class ProtoGCD(DiscoveryStrategy):
    """ProtoGCD as a ready-made strategy.

    Args:
        method: :class:`ProtoGCDPlugin` with its defaults, and so without unlabelled samples, if
            None.
        **settings: those of :class:`.OpenWorldStrategy`.

    Example:
        >>> from protocl.checks import toy
        >>> model, method = toy.model(), ProtoGCDPlugin(unlabelled=toy.unlabelled())
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        >>> strategy = ProtoGCD(
        ...     model=model, optimizer=optimizer, method=method, train_epochs=8, train_mb_size=12
        ... )
        >>> toy.learn(strategy)[0]  # accuracy on the first three classes
        1.0
        >>> strategy.categories(torch.arange(5)).shape  # of unlabelled samples
        torch.Size([5])
    """

    method: ProtoGCDPlugin

    def __init__(self, *, method: ProtoGCDPlugin | None = None, **settings: Any) -> None:
        super().__init__(method=ProtoGCDPlugin() if method is None else method, **settings)


@dataclass
class ProtoGCDConfig(DiscoveryConfig):
    """Settings of ProtoGCD; ``strategy=protogcd_released`` has the authors' for CIFAR-100.

    Attributes:
        loss: weights and temperatures.
        plugin: arguments of :class:`ProtoGCDPlugin`.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="ProtoGCD",
        paper="Ma et al., TPAMI 2025",
        stored_between_experiences="mean and prototype of each class and of each category found",
        keeps_data=False,
        bytes_per_class="20 D + 32",
    )

    name: str = "protogcd"
    loss: ProtoGCDLoss = field(default_factory=ProtoGCDLoss)
    plugin: Part = part(ProtoGCDPlugin, "unlabelled")

    def build(self, setup: Setup) -> ProtoGCD:
        return ProtoGCD(method=self.discovers(setup, loss=self.loss), **self.common(setup))
