"""GPC: contrast of samples with clusters that are found anew in every epoch, their number as well.

Each epoch begins with a clustering of all features of the experience, in which samples of named
classes stay where they are. The network then learns to tell the clusters apart, at a temperature
that follows the width of each, beside two usual contrasts: views of one sample, and samples of one
class (Zhao, Wen and Han, ICCV 2023).

Stored between experiences, for ``D`` features: count and mean of each class (``16 D + 16`` bytes in
double-double) and a centre (``4 D + 8`` bytes), the same for each category; no samples.

After training the centres answer one question alone: to which category an unlabelled sample
belongs. Named classes are answered by heads on class statistics, as in all methods here.

Where this differs from the authors' code (``DTennant/GPC``):

* splits and merges are decided by the evidence alone; theirs accepts one rejected proposal in ten
  by chance (``explore`` restores the chance), and keeps both partners of a merge, so that the
  number can only grow: :class:`.SplitAndMerge`;
* the width of a cluster is over its labelled and unlabelled samples;
* by default the number of categories is the true one and stays, as in their tables: their run
  starts from it, and so does not show that the number need not be known.
  ``new_categories=NUMBER split_merge=true`` starts elsewhere and searches;
* the last state is kept, not the one of best accuracy on hidden labels;
* projections have 256 dimensions; theirs has 65,536 outputs behind the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from protocl.config import Setup, StrategyInfo
from protocl.config.sections import Part, part
from protocl.config.validation import NOT_NEGATIVE, POSITIVE, SHARE, ranged, require_declared
from protocl.memory import PrototypeMemory
from protocl.open_world.discovery.k_means import Clustering, SemiSupervisedKMeans
from protocl.open_world.discovery.split_merge import SplitAndMerge
from protocl.strategies.open_world.clusters import Centres, Clusters
from protocl.strategies.open_world.density import prototypical_loss
from protocl.strategies.open_world.discovery import DiscoveryPlugin
from protocl.strategies.open_world.representation import wide_type
from protocl.strategies.open_world.strategy import DiscoveryConfig, DiscoveryStrategy
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.training.contrastive import (
    contrastive,
    cosine_similarities,
    supervised_contrastive,
    unit_rows,
)


@dataclass(frozen=True)
class GPCLoss:
    """Weights and temperatures; the defaults are those of the authors' code.

    Attributes:
        supervised_weight: of the contrast of samples of a class; the rest is for two views of one.
        prototype_weight: of the contrast with clusters.
        temperature: mean over the clusters.
        contrastive_temperature: of two views of a sample.
        supervised_temperature: of samples of a class.
    """

    supervised_weight: float = ranged(0.35, SHARE)
    prototype_weight: float = ranged(1.0, NOT_NEGATIVE)
    temperature: float = ranged(0.1, POSITIVE)
    contrastive_temperature: float = ranged(1.0, POSITIVE)
    supervised_temperature: float = ranged(0.07, POSITIVE)

    def __post_init__(self) -> None:
        require_declared(self)

    def of_samples(self, projections: Tensor, named: Tensor, labels: Tensor) -> Tensor:
        """Both contrasts of samples with each other, a scalar.

        Args:
            projections: ``(2 N, P)``, all first views first.
            named: ``(M,)`` rows of labelled ones.
            labels: ``(M,)`` their class ids.
        """
        weight = self.supervised_weight
        views = contrastive(projections, temperature=self.contrastive_temperature)
        classes = supervised_contrastive(
            projections[named],
            labels,
            temperature=self.supervised_temperature,
            base_temperature=None,
        )
        return (1 - weight) * views + weight * classes


class GPCPlugin(DiscoveryPlugin):
    """GPC in any Avalanche strategy, whose criterion its loss replaces.

    It trains and sorts unlabelled samples; a :class:`.PrototypePlugin` beside it answers.

    Args:
        loss: weights and temperatures.
        clusters_from: epoch of an experience, from 0, before which clusters are first looked for.
        split_merge: let the number of categories follow the evidence, from the given one.
        explore: probability of accepting a split or merge that the evidence rejects.
        restarts: starts of each clustering.
        seed: of clusterings.
        hidden: width between the layers of the projector; None for that of the features.
        outputs: width of the projections.
        **settings: those of :class:`.DiscoveryPlugin` but ``projector``: ``unlabelled``, ``ratio``,
            ``new_categories`` and others.

    Attributes:
        centres: of classes and categories, as the last clustering of their experience left them.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> from protocl.strategies import PrototypePlugin
        >>> model, plugin = toy.model(), GPCPlugin(unlabelled=toy.unlabelled())
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
        loss: GPCLoss | None = None,
        *,
        clusters_from: int = 1,
        split_merge: bool = False,
        explore: float = 0.0,
        restarts: int = 3,
        seed: int = 1,
        hidden: int | None = None,
        outputs: int = 256,
        **settings: Any,
    ) -> None:
        projector = {"hidden": hidden, "outputs": outputs, "layers": 3, "gelu": True}
        super().__init__(projector, **settings)
        if clusters_from < 0:
            raise ValueError(f"clusters_from={clusters_from}: expected 0 or more")
        self.loss = GPCLoss() if loss is None else loss
        self.clusters_from = clusters_from
        self.split_merge = split_merge
        self.restarts, self.seed = restarts, seed
        self._search = SplitAndMerge(explore=explore, restarts=restarts, spherical=True, seed=seed)
        self._means(1)  # refuses settings that make no sense
        self.centres = Centres()
        self._clusters: Clusters | None = None

    # -- training ---------------------------------------------------------------------------

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_epochs >= self.clusters_from and self.loss.prototype_weight:
            self._clusters = self._clustered(strategy)

    def grow(self, class_ids: Tensor, features: Tensor) -> None:
        """Clusters grow with each clustering."""

    def loss_of(self, features: Tensor, labels: Tensor) -> Tensor:
        assert self.projector is not None
        first = torch.arange(len(labels), device=labels.device)
        named = torch.cat([first, len(features) // 2 + first])
        loss = self.loss.of_samples(self.projector(features), named, labels.repeat(2))
        if self._clusters is None:
            return loss
        clusters = self._clusters
        drawn = clusters.of_unlabelled[self.beside.drawn.to(labels.device)]
        rows = torch.cat([clusters.of(labels), drawn]).repeat(2)
        wide = wide_type(features)
        told = prototypical_loss(
            unit_rows(features), clusters.points.to(wide), clusters.temperatures.to(wide), rows
        )
        return loss + self.loss.prototype_weight * told

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        before = self.block()
        self._clusters = self._clustered(strategy)
        gone = torch.cat([before, self.block()])
        self.centres.replace(self._clusters.ids, self._clusters.points, gone)
        self._clusters = None
        super().after_training_exp(strategy, **kwargs)

    # -- clustering -------------------------------------------------------------------------

    @torch.no_grad()
    def _clustered(self, strategy: Any) -> Clusters:
        """The clusters of the experience under the model as it is now."""
        labelled, labels = self._labelled(strategy)
        rows = self._rows()
        others = [unit_rows(part.float()) for part in self.features_at(strategy, rows)]
        unlabelled = torch.cat([labelled[:0], *others])
        # On the host: clusterings are the same whatever the device, and small beside the pass.
        known = PrototypeMemory(labelled.shape[1]).update(labelled.cpu(), labels.cpu())
        found = self._found(known, unlabelled.cpu())
        ids = found.centres.ids.clone()
        new = ~torch.isin(ids, known.classes)
        ids[new] = self.numbers(int(new.sum()))
        points = functional.normalize(found.centres.points, dim=1).to(labelled)
        assigned = found.centres.nearest(unlabelled.cpu())[0].to(labels.device)
        nowhere = torch.full((self._total(),), -1, device=labels.device)
        nowhere[rows.to(labels.device)] = assigned
        clusters = Clusters(ids.to(labels.device), points, points[:, 0], nowhere)
        samples = torch.cat([labelled, unlabelled])
        everyone = torch.cat([clusters.of(labels), assigned])
        return clusters.at_temperature(samples, everyone, self.loss.temperature)

    def _labelled(self, strategy: Any) -> tuple[Tensor, Tensor]:
        """Features ``(N, D)`` of unit length, and class ids ``(N,)``, of labelled samples."""
        dataset = strategy.experience.dataset
        passed = [
            (unit_rows(features.float()), self.tasks.ids(labels, tasks))
            for _, features, labels, tasks in features_of(
                strategy, dataset, self.layer, self.num_workers
            )
        ]
        features, labels = map(torch.cat, zip(*passed, strict=True))
        return features, labels

    def _found(self, known: PrototypeMemory, unlabelled: Tensor) -> Clustering:
        new = min(self.expected(self._experience), len(unlabelled))
        if self.split_merge and len(unlabelled):
            return self._search.fit(known, unlabelled, len(known) + new)[0]
        return self._means(len(known) + new).fit(known, unlabelled)

    def _means(self, categories: int) -> SemiSupervisedKMeans:
        return SemiSupervisedKMeans(
            categories, restarts=self.restarts, spherical=True, seed=self.seed
        )

    @property
    def sorts(self) -> bool:
        return len(self.centres.ids) > 0

    def assigned(self, features: Tensor) -> Tensor:
        centres = self.centres.to(features.device)
        cosines = cosine_similarities(features, centres.points.to(wide_type(features)))
        return centres.ids[cosines.argmax(1)]

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Centres, projector, discovered statistics; no moments of optimizers."""
        return {**super().state_dict(), "centres": self.centres.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.centres.load_state_dict(state["centres"])


class GPC(DiscoveryStrategy):
    """GPC as a ready-made strategy.

    Args:
        method: :class:`GPCPlugin` with its defaults, and so without unlabelled samples, if None.
        **settings: those of :class:`.OpenWorldStrategy`.

    Example:
        >>> from protocl.checks import toy
        >>> model, method = toy.model(), GPCPlugin(unlabelled=toy.unlabelled())
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        >>> strategy = GPC(
        ...     model=model, optimizer=optimizer, method=method, train_epochs=8, train_mb_size=12
        ... )
        >>> toy.learn(strategy)[0]  # accuracy on the first three classes
        1.0
    """

    method: GPCPlugin

    def __init__(self, *, method: GPCPlugin | None = None, **settings: Any) -> None:
        super().__init__(method=GPCPlugin() if method is None else method, **settings)


@dataclass
class GPCConfig(DiscoveryConfig):
    """Settings of GPC; ``strategy=gpc_released`` has a schedule of full size.

    Attributes:
        loss: weights and temperatures.
        plugin: arguments of :class:`GPCPlugin`.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="GPC",
        paper="Zhao et al., ICCV 2023",
        stored_between_experiences="mean and centre of each class and of each category found",
        keeps_data=False,
        bytes_per_class="20 D + 24",
    )

    name: str = "gpc"
    loss: GPCLoss = field(default_factory=GPCLoss)
    plugin: Part = part(GPCPlugin, "unlabelled")

    @property
    def unused(self) -> dict[str, str]:
        searches = self.plugin.arguments["split_merge"]
        return super().unused | (
            {} if searches else {"plugin.explore": "it is for plugin.split_merge=true"}
        )

    def build(self, setup: Setup) -> GPC:
        return GPC(method=self.discovers(setup, loss=self.loss), **self.common(setup))
