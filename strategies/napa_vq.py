"""NAPA-VQ: neighbourhood-aware coding vectors and prototypes, without exemplars.

Every class in every orientation owns a trainable coding vector; a neural-gas graph learns which of
them lie next to each other around the data. Features are pulled to their own vector and pushed from
its neighbours, and old classes are replayed as mixtures of their prototype and a neighbour's
(Malepathirana et al., ICCV 2023).

Stored between experiences, for ``D`` features: four coding vectors (``16 D`` bytes), four class
means (``64 D + 32`` bytes in double-double) and four rows of the graph a class; no samples.

Where this differs from the authors' code (``NAPAVQPlugin.released()`` undoes the first):

* the weights of neighbours are a stable softmax, also for vectors that coincide or are far away;
* the neighbours of a mixture are each sample's own; a silent change of indexing in NumPy 1.23 made
  the released code use a single neighbour for the whole batch;
* prototypes are means over all images as they are, not over whole batches of augmented images;
* a zero feature vector scores 0 for every class instead of NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from protocl.config import Setup, StrategyInfo
from protocl.config.sections import Part, part
from protocl.config.validation import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    SHARES,
    ranged,
    require_declared,
)
from protocl.strategies.drift.compensation import DriftEstimator
from protocl.strategies.exemplar_free.coding_vectors import CodeOptimizer, CodingVectors
from protocl.strategies.exemplar_free.kept_classes import KeptClasses
from protocl.strategies.exemplar_free.neural_gas import (
    choose_neighbours,
    distance_cross_entropy,
    mix_prototypes,
    neighbourhood_loss,
    update_edges,
)
from protocl.strategies.exemplar_free.plugin import ExemplarFreePlugin
from protocl.strategies.exemplar_free.rotations import ROTATIONS, rotated, rotated_rows
from protocl.strategies.exemplar_free.strategy import ExemplarFree, ExemplarFreeConfig
from protocl.strategies.training.answers import PrototypeAnswer
from protocl.strategies.training.distances import distances, squared_distances


class NAPAVQTerms(NamedTuple):
    """Cross-entropy and neighbourhood loss of a batch, two scalars."""

    cross_entropy: Tensor
    neighbourhood: Tensor


@dataclass(frozen=True)
class NAPAVQLoss:
    """Weights and constants of the losses and of the graph.

    Attributes:
        k: nearest coding vectors that a feature joins in the graph, the winner included. With no
            more than ``k`` vectors every winner is joined to all, and the graph says nothing.
        eps: factor by which an edge ages with each miss.
        e_min: strength below which an edge is removed; None for ``eps ** 10``.
        temperature: of the softmax over negative distances.
        neighbourhood_weight: of the neighbourhood loss, of images and of mixtures alike.
        augmentation_weight: of the cross-entropy of mixtures.
        scale: of squared distances in the weights of neighbours.
        mix: least and largest share of a class's own prototype in a mixture.
        stable: see :func:`.neighbourhood_loss`.
    """

    k: int = ranged(15, AT_LEAST_1)
    eps: float = ranged(0.9, POSITIVE_SHARE)
    e_min: float | None = ranged(None, SHARE)
    temperature: float = ranged(0.1, POSITIVE)
    neighbourhood_weight: float = ranged(1.0, NOT_NEGATIVE)
    augmentation_weight: float = ranged(10.0, NOT_NEGATIVE)
    scale: float = ranged(0.001, POSITIVE)
    mix: tuple[float, float] = ranged((0.5, 1.0), SHARES)
    stable: bool = True

    def __post_init__(self) -> None:
        require_declared(self)

    def __call__(self, features: Tensor, labels: Tensor, vectors: CodingVectors) -> NAPAVQTerms:
        """Cross-entropy and neighbourhood loss of a batch, which also updates the graph.

        Args:
            features: ``(B, D)``.
            labels: ``(B,)`` rows of their coding vectors.
            vectors: coding vectors and their graph; the graph is replaced.
        """
        squares = squared_distances(features, vectors.codes)
        e_min = self.eps**10 if self.e_min is None else self.e_min
        graph = update_edges(vectors.edges, squares, self.k, self.eps, e_min)
        vectors.edges = graph.symmetric
        cross_entropy = distance_cross_entropy(squares, labels, self.temperature)
        neighbourhood = neighbourhood_loss(
            squares, labels, graph.directed, scale=self.scale, stable=self.stable
        )
        return NAPAVQTerms(cross_entropy, neighbourhood)


class NAPAVQPlugin(ExemplarFreePlugin):
    """NAPA-VQ in any Avalanche strategy, whose criterion its loss replaces.

    Coding vectors of classes that are not in the experience are frozen, to the last bit.

    Args:
        loss: weights and constants of the losses and of the graph.
        distillation_weight: of the features of the model before the experience; tied to the size
            of a batch, see :func:`.feature_distillation`.
        code_lr: learning rate of the coding vectors in the first experience (plain SGD).
        later_code_lr: in later ones.
        code_lr_epochs: epochs after which it falls to a tenth, counted in each experience.
        code_init: where coding vectors start: ``"random"``, a standard normal as in the authors'
            code, or ``"means"``, the default: in later experiences at the means of the new classes
            under the backbone of before, from where few epochs suffice.
        answer: ``"cosine"`` between features and coding vectors, as in the authors' code, or the
            ``"distance"`` that the loss compares, over the temperature.
        drift: how prototypes of old classes are carried over after each experience.
        **settings: those of :class:`.FeatureLossPlugin` but ``views``.

    Attributes:
        parameters: :class:`CodingVectors`.
        kept: classes, their prototypes in each orientation, the teacher.
        old_rows: ``(O,)`` rows of classes that are not in the present experience.
        table: ``(4 R, D)`` prototypes at the start of an experience with old classes.
        last_terms: losses of the last mini-batch of images, detached; None between experiences.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> model, plugin = toy.model(), NAPAVQPlugin()
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> settings = dict(train_epochs=1, train_mb_size=12, plugins=[plugin])
        >>> _ = toy.learn(Naive(model=model, optimizer=optimizer, **settings))
        >>> plugin.parameters.codes.shape  # four orientations of six classes
        torch.Size([24, 16])
    """

    def __init__(
        self,
        loss: NAPAVQLoss | None = None,
        *,
        distillation_weight: float = 10.0,
        code_lr: float = 5.0,
        later_code_lr: float = 0.5,
        code_lr_epochs: int = 20,
        code_init: Literal["random", "means"] = "means",
        answer: Literal["cosine", "distance"] = "cosine",
        drift: DriftEstimator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(views=rotated, **settings)
        if code_init not in ("random", "means"):
            raise ValueError(f"code_init='{code_init}': expected 'random' or 'means'")
        if answer not in ("cosine", "distance"):
            raise ValueError(f"answer='{answer}': expected 'cosine' or 'distance'")
        self.loss = NAPAVQLoss() if loss is None else loss
        self.code_init = code_init
        self.answer_by = answer
        self.last_terms: NAPAVQTerms | None = None
        self.parameters = CodingVectors()
        self.kept = KeptClasses(self, self.parameters, distillation_weight, drift, views=ROTATIONS)
        self.old_rows = torch.zeros(0, dtype=torch.int64)
        self.table: Tensor | None = None
        self._optimizer = CodeOptimizer(code_lr, later_code_lr, code_lr_epochs)

    @classmethod
    def released(cls, **settings: Any) -> Self:
        """The plugin with the constants and corner cases of the authors' code."""
        return cls(NAPAVQLoss(stable=False), **{"code_init": "random", **settings})

    def class_loss(self, features: Tensor, rows: Tensor) -> Tensor:
        """Scalar loss of a mini-batch, distillation apart.

        Args:
            features: ``(4 B, D)`` of all orientations, those of images as they are first.
            rows: ``(B,)`` rows of the samples' classes.
        """
        terms = self.loss(features, rotated_rows(rows), self.parameters)
        self.last_terms = NAPAVQTerms(*(term.detach() for term in terms))
        total = terms.cross_entropy + self.loss.neighbourhood_weight * terms.neighbourhood
        if not len(self.old_rows):
            return total
        mixed, anchors = self.mixtures(len(rows))
        terms = self.loss(mixed, anchors, self.parameters)
        total = total + self.loss.augmentation_weight * terms.cross_entropy
        return total + self.loss.neighbourhood_weight * terms.neighbourhood

    def mixtures(self, count: int) -> tuple[Tensor, Tensor]:
        """Features ``(count, D)`` that stand in for old classes, and their rows ``(count,)``."""
        assert self.table is not None
        uniform = torch.rand(3, count, device=self.table.device)
        drawn = (uniform[0] * len(self.old_rows)).long()
        anchors = ROTATIONS * self.old_rows[drawn]
        neighbours = choose_neighbours(self.parameters.edges, anchors, uniform[1])
        low, high = self.loss.mix
        shares = low + (high - low) * uniform[2]
        return mix_prototypes(self.table, anchors, neighbours, shares), anchors

    def answer(self, features: Tensor) -> Tensor:
        """Logits ``(N, R)`` of features ``(N, D)``, one column for each class row."""
        upright = self.parameters.codes.detach()[::ROTATIONS]
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(upright.dtype)
            if self.answer_by == "distance":
                return -distances(squared_distances(features, upright)) / self.loss.temperature
            unit = functional.normalize(features, dim=1)
            cosines = unit @ functional.normalize(upright, dim=1).T
        return cosines / self.loss.temperature

    # -- wiring -----------------------------------------------------------------------------

    def prototypes(self) -> Tensor:
        """Means of classes in each orientation, ``(4 R, D)``: :meth:`.KeptClasses.prototypes`."""
        return self.kept.prototypes()

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        known = len(self.kept.rows)
        self.old_rows = self.kept.begin(strategy, class_ids)
        new = self.kept.rows.ids[known:]
        if len(self.old_rows) and len(new):  # a neighbour may belong to a class that is learned
            self.kept.compute(strategy, new)
        self._optimizer.end()

    def feature_loss(
        self, strategy: Any, features: Tensor, labels: Tensor, inputs: Tensor
    ) -> Tensor:
        if not self._optimizer.trains:  # only now is the width of the features known
            self.grow(features.shape[1])
            self.table = self.prototypes() if len(self.old_rows) else None
            self._optimizer.begin(self.parameters.codes, first=self.memory is None)
        loss = self.class_loss(features, self.kept.rows(labels))
        return loss + self.kept.distillation(strategy, features, inputs)

    def grow(self, feature_dim: int) -> None:
        """Give new classes their coding vectors."""
        device, count = self.kept.rows.ids.device, ROTATIONS * len(self.kept.rows)
        missing = count - len(self.parameters)
        if missing and self.code_init == "means" and len(self.old_rows):
            self.parameters.append(self.prototypes()[-missing:])
        elif missing:
            self.parameters.append(self.initial_codes(missing, feature_dim, device))
        self.parameters.to(device)

    def initial_codes(self, count: int, feature_dim: int, device: torch.device) -> Tensor:
        """Coding vectors ``(count, D)`` of new classes, drawn from a standard normal."""
        return torch.randn(count, feature_dim, device=device)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._optimizer.enter(strategy.clock.train_exp_epochs)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        gradient = self.parameters.codes.grad
        if gradient is not None and len(self.old_rows):
            gradient.view(-1, ROTATIONS, gradient.shape[1])[self.old_rows] = 0

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self._optimizer.step()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.kept.end(strategy)
        if self.memory is not None and not self._optimizer.trains:
            self.grow(self.memory.feature_dim)  # there was no step, as with zero epochs
        self._optimizer.end()
        self.table = self.last_terms = None

    def class_logits(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        return self.kept.answer(features, self.answer)

    def final_answer(self) -> PrototypeAnswer | None:
        """What a model on disk keeps of it; None where nothing was learned."""
        if not len(self.kept.rows):
            return None
        return PrototypeAnswer(self.answer_by, self.loss.temperature).hold(
            classes=self.kept.rows.ids, prototypes=self.parameters.codes[::ROTATIONS]
        )


class NAPAVQ(ExemplarFree):
    """NAPA-VQ as a ready-made strategy.

    Args:
        method: :class:`NAPAVQPlugin` with its defaults if None.
        **settings: those of :class:`.ExemplarFree`.

    Example:
        >>> from protocl.checks import toy
        >>> model = toy.model()
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> strategy = NAPAVQ(model=model, optimizer=optimizer, train_epochs=1, train_mb_size=12)
        >>> _ = toy.learn(strategy)
        >>> strategy.method.parameters.codes.shape  # four orientations of six classes
        torch.Size([24, 16])
    """

    def __init__(self, *, method: NAPAVQPlugin | None = None, **settings: Any) -> None:
        super().__init__(method=NAPAVQPlugin() if method is None else method, **settings)


@dataclass
class NAPAVQConfig(ExemplarFreeConfig):
    """Settings of NAPA-VQ; ``strategy=napa_vq_released`` has the authors' for CIFAR-100.

    Attributes:
        loss: weights and constants of the losses and of the graph.
        plugin: arguments of :class:`NAPAVQPlugin`.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="NAPA-VQ",
        paper="Malepathirana et al., ICCV 2023",
        stored_between_experiences="four coding vectors and means of each class, their graph",
        keeps_data=False,
        bytes_per_class="80 D + 128 C + 136",
    )

    name: str = "napa_vq"
    later_lr_factor: float = 0.1
    loss: NAPAVQLoss = field(default_factory=NAPAVQLoss)
    plugin: Part = part(NAPAVQPlugin, code_lr_epochs=2)

    def build(self, setup: Setup) -> ExemplarFree:
        return self._build(self.plugin.build(loss=self.loss, drift=self.drift), setup)
