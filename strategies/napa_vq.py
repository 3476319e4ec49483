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
from torch import Tensor, nn, optim
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
from protocl.strategies.exemplar_free.base import ExemplarFreePlugin, GrowingParameters
from protocl.strategies.exemplar_free.neural_gas import (
    choose_neighbours,
    distance_cross_entropy,
    grown,
    mix_prototypes,
    neighbourhood_loss,
    update_edges,
)
from protocl.strategies.exemplar_free.rotations import ROTATIONS, rotated, rotated_rows
from protocl.strategies.exemplar_free.strategy import ExemplarFree, ExemplarFreeConfig
from protocl.strategies.training.distances import distances, squared_distances


class NAPAVQTerms(NamedTuple):
    """Two scalars."""

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


class CodingVectors(GrowingParameters):
    """Coding vectors and the graph that joins them.

    Attributes:
        codes: ``(4 R, D)``; row ``4 r + k`` is class row ``r`` after ``k`` quarter turns.
        edges: ``(4 R, 4 R)`` symmetric strengths in [0, 1] with unit diagonal.
    """

    edges: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(0, 0))
        self.register_buffer("edges", torch.zeros(0, 0))

    def __len__(self) -> int:
        return len(self.codes)

    def append(self, codes: Tensor) -> None:
        """Add unconnected vectors ``(M, D)``; the others and their edges stay as they are."""
        kept = self.codes.detach()
        kept = kept if len(kept) else codes[:0]
        self.codes = nn.Parameter(torch.cat([kept.to(codes.device), codes]))
        self.edges = grown(self.edges.to(codes.device), len(self.codes))


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
        **settings: ``num_workers``, ``drift`` and those of :class:`.FeatureLossPlugin` but
            ``views``.

    Attributes:
        parameters: :class:`CodingVectors`.
        last_terms: losses of the last mini-batch of images, detached; None between experiences.
    """

    prototype_views = ROTATIONS
    needs_new_prototypes = True  # a neighbour may belong to a class that is being learned
    parameters: CodingVectors

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
        **settings: Any,
    ) -> None:
        super().__init__(
            CodingVectors(), views=rotated, distillation_weight=distillation_weight, **settings
        )
        if code_lr_epochs < 1:
            raise ValueError(f"code_lr_epochs={code_lr_epochs}: expected at least 1")
        if code_init not in ("random", "means"):
            raise ValueError(f"code_init='{code_init}': expected 'random' or 'means'")
        if answer not in ("cosine", "distance"):
            raise ValueError(f"answer='{answer}': expected 'cosine' or 'distance'")
        self.loss = NAPAVQLoss() if loss is None else loss
        self.code_lr = code_lr
        self.later_code_lr = later_code_lr
        self.code_lr_epochs = code_lr_epochs
        self.code_init = code_init
        self.answer_by = answer
        self.last_terms: NAPAVQTerms | None = None
        self._rate = code_lr
        self._epoch = 0

    @classmethod
    def released(cls, **settings: Any) -> Self:
        """With the constants and corner cases of the authors' code."""
        return cls(NAPAVQLoss(stable=False), **{"code_init": "random", **settings})

    def initial_codes(self, count: int, feature_dim: int, device: torch.device) -> Tensor:
        """Coding vectors ``(count, D)`` of new classes, drawn from a standard normal."""
        return torch.randn(count, feature_dim, device=device)

    def grow(self, feature_dim: int) -> None:
        count = ROTATIONS * len(self.rows) - len(self.parameters)
        if not count:
            return
        if self.code_init == "means" and len(self.old_rows):
            codes = self.prototypes()[-count:]
        else:
            codes = self.initial_codes(count, feature_dim, self.rows.ids.device)
        self.parameters.append(codes)

    def make_optimizer(self, strategy: Any) -> optim.Optimizer:
        self._rate = self.code_lr if self.memory is None else self.later_code_lr
        optimizer = optim.SGD([self.parameters.codes], lr=self._rate)
        _set_rate(optimizer, self._rate, self._epoch // self.code_lr_epochs)
        return optimizer

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_epoch(strategy, **kwargs)
        self._epoch = strategy.clock.train_exp_epochs
        if self._optimizer is not None:
            _set_rate(self._optimizer, self._rate, self._epoch // self.code_lr_epochs)

    def class_loss(self, features: Tensor, rows: Tensor) -> Tensor:
        terms = self.loss(features, rotated_rows(rows), self.parameters)
        self.last_terms = NAPAVQTerms(*(term.detach() for term in terms))
        total = terms.cross_entropy + self.loss.neighbourhood_weight * terms.neighbourhood
        if not len(self.old_rows):
            return total
        mixed, anchors = self.mixtures(len(rows))
        terms = self.loss(mixed, anchors, self.parameters)
        return (
            total
            + self.loss.augmentation_weight * terms.cross_entropy
            + self.loss.neighbourhood_weight * terms.neighbourhood
        )

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

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        gradient = self.parameters.codes.grad
        if gradient is not None and len(self.old_rows):
            gradient.view(-1, ROTATIONS, gradient.shape[1])[self.old_rows] = 0

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        self.last_terms = None

    def answer(self, features: Tensor) -> Tensor:
        upright = self.parameters.codes.detach()[::ROTATIONS]
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(upright.dtype)
            if self.answer_by == "distance":
                return -distances(squared_distances(features, upright)) / self.loss.temperature
            unit = functional.normalize(features, dim=1)
            cosines = unit @ functional.normalize(upright, dim=1).T
        return cosines / self.loss.temperature


def _set_rate(optimizer: optim.Optimizer, rate: float, decays: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * 0.1**decays


class NAPAVQ(ExemplarFree):
    """NAPA-VQ as a ready-made strategy.

    Args:
        method: :class:`NAPAVQPlugin` with its defaults if None.
        **settings: those of :class:`.ExemplarFree`.
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
