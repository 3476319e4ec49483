"""PALM: a mixture of prototypes for each class, so that what belongs to no class stands apart.

Each class has several prototypes on the unit sphere of an embedding. A sample is drawn to the
nearest prototypes of its own class, weighted by optimal transport, and away from all others;
prototypes follow their samples by moving averages (Lu et al., ICLR 2024). Class statistics of the
features so trained tell unknown inputs from known ones.

Stored between experiences, for ``D`` features: count and mean of each class (``16 D + 16`` bytes in
double-double), and its prototypes (``4 P + 8`` bytes each in an embedding of width ``P``); no
samples.

The gradient of the contrast between prototypes reaches the network only through the share
``1 - momentum`` that a batch has in them; nothing of it is kept from step to step. With the
published momentum of 0.999 it hardly trains anything.

Where this differs from the authors' code (``jeff024/PALM``):

* which prototype is whose is a table, so that classes arrive in any number and order; theirs
  counts ``row mod classes``;
* shares of samples far from their class are divided by their own sum, theirs by at least 1e-12;
* logarithms are of sums shifted by their largest term, so that no temperature overflows;
* the last state is kept, not the one of least training loss;
* prototypes of classes that are not in an experience stay where they are, as negatives;
* answers and scores come from heads on class statistics of the backbone's features, as in all
  methods here. Their score by one Gaussian subtracts a mean twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from protocl.config import Setup, StrategyInfo
from protocl.config.sections import Part, part
from protocl.config.validation import (
    AT_LEAST_0,
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    ranged,
    require_declared,
)
from protocl.strategies.exemplar_free.growing_parameters import GrowingParameters
from protocl.strategies.open_world.mixture import (
    as_shares,
    largest,
    likelihood_loss,
    moved,
    prototype_contrast,
    reciprocal_weights,
    sinkhorn,
)
from protocl.strategies.open_world.representation import RepresentationPlugin, wide_type
from protocl.strategies.open_world.strategy import OpenWorldConfig, OpenWorldStrategy
from protocl.strategies.training.row_index import ClassRows
from protocl.strategies.training.views import Views, named_views


class PrototypeMixture(GrowingParameters):
    """Several prototypes for each class row.

    Attributes:
        prototypes: ``(R, P)`` of unit length.
        owners: ``(R,)`` class row of each.
    """

    prototypes: Tensor
    owners: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(0, 0))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.int64))

    def append(self, class_row: int, count: int, like: Tensor) -> None:
        """Add ``count`` prototypes for a class, drawn from ``U[0, 1)`` and scaled to length 1.

        Args:
            class_row: of the class.
            count: how many.
            like: ``(N, P)`` of the width, type and device of the embeddings.
        """
        fresh = functional.normalize(torch.rand_like(like[:1].expand(count, -1)), dim=1)
        kept = self.prototypes.to(fresh) if len(self.prototypes) else fresh[:0]
        self.prototypes = torch.cat([kept, fresh])
        owners = torch.full((count,), class_row, device=fresh.device)
        self.owners = torch.cat([self.owners.to(fresh.device), owners])


class PALMTerms(NamedTuple):
    """Likelihood loss and contrast of prototypes of a batch, two scalars."""

    likelihood: Tensor
    contrast: Tensor


@dataclass(frozen=True)
class PALMLoss:
    """Constants of PALM's losses; the defaults are those of the authors' command for CIFAR-100.

    Attributes:
        prototypes: for each class.
        nearest: prototypes of its class that a sample is assigned to; 0 for all.
        momentum: of the moving averages.
        temperature: of the likelihood.
        epsilon: of the optimal transport.
        rounds: of its scaling.
        contrast_weight: of the contrast between prototypes.
        contrast_temperature: of it.
    """

    prototypes: int = ranged(6, AT_LEAST_1)
    nearest: int = ranged(5, AT_LEAST_0)
    momentum: float = ranged(0.999, SHARE)
    temperature: float = ranged(0.1, POSITIVE)
    epsilon: float = ranged(0.05, POSITIVE)
    rounds: int = ranged(3, AT_LEAST_0)
    contrast_weight: float = ranged(1.0, NOT_NEGATIVE)
    contrast_temperature: float = ranged(0.5, POSITIVE)

    def __post_init__(self) -> None:
        require_declared(self)

    def __call__(self, embeddings: Tensor, rows: Tensor, mixture: PrototypeMixture) -> PALMTerms:
        """Both losses of a batch, which also moves the prototypes.

        Args:
            embeddings: ``(N, P)`` of unit length.
            rows: ``(N,)`` class rows.
            mixture: its prototypes are replaced.
        """
        own = rows[:, None] == mixture.owners
        before = self._shares(embeddings, mixture.prototypes)
        weights = reciprocal_weights(before, own, self.nearest)
        prototypes = moved(mixture.prototypes, weights, embeddings, self.momentum)
        mixture.prototypes = prototypes.detach()
        after = self._shares(embeddings, mixture.prototypes)
        # Which prototypes are near was settled by the weights of before the move.
        assigned = as_shares(after * own * largest(weights, self.nearest), 1)
        scores = embeddings @ mixture.prototypes.T
        return PALMTerms(
            likelihood_loss(scores, assigned, self.temperature),
            prototype_contrast(prototypes, mixture.owners, self.contrast_temperature),
        )

    @torch.no_grad()
    def _shares(self, embeddings: Tensor, prototypes: Tensor) -> Tensor:
        return sinkhorn(embeddings @ prototypes.T, self.epsilon, self.rounds)


class PALMPlugin(RepresentationPlugin):
    """PALM in any Avalanche strategy, whose criterion its loss replaces.

    It trains; a :class:`.PrototypePlugin` beside it answers.

    Args:
        loss: constants of the losses.
        hidden: width between the two layers of the projector; None for that of the features.
        outputs: width ``P`` of the embeddings.
        views: as in :class:`.RepresentationPlugin`.
        **settings: those of :class:`.FeatureLossPlugin`.

    Attributes:
        rows: row of each class, in order of arrival.
        mixture: the prototypes.
        last_terms: losses of the last mini-batch, detached; None before the first.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> from protocl.strategies import PrototypePlugin
        >>> model, plugin = toy.model(), PALMPlugin()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        >>> plugins = [plugin, PrototypePlugin()]
        >>> settings = dict(train_epochs=4, train_mb_size=12, plugins=plugins)
        >>> toy.learn(Naive(model=model, optimizer=optimizer, **settings))[0]
        1.0
        >>> plugin.mixture.prototypes.shape  # six of each of six classes
        torch.Size([36, 128])
    """

    def __init__(
        self,
        loss: PALMLoss | None = None,
        *,
        hidden: int | None = None,
        outputs: int = 128,
        views: Views | None = None,
        **settings: Any,
    ) -> None:
        super().__init__({"hidden": hidden, "outputs": outputs}, views=views, **settings)
        self.loss = PALMLoss() if loss is None else loss
        self.rows = ClassRows()
        self.mixture = PrototypeMixture()
        self.last_terms: PALMTerms | None = None

    def grow(self, class_ids: Tensor, features: Tensor) -> None:
        first = len(self.rows)
        self.rows.to(features.device).add(class_ids)
        width = next(reversed(self.trained())).shape[0]
        like = features.new_empty(1, width, dtype=wide_type(features))
        for row in range(first, len(self.rows)):
            self.mixture.append(row, self.loss.prototypes, like)
        self.mixture.to(features.device)

    def loss_of(self, features: Tensor, labels: Tensor) -> Tensor:
        assert self.projector is not None
        embeddings = functional.normalize(self.projector(features), dim=1)
        rows = self.rows(labels.repeat(len(features) // len(labels)))
        terms = self.loss(embeddings, rows, self.mixture)
        self.last_terms = PALMTerms(*(term.detach() for term in terms))
        return terms.likelihood + self.loss.contrast_weight * terms.contrast

    def state_dict(self) -> dict[str, Any]:
        """Prototypes, projector and what is known of tasks; no moments of optimizers."""
        return {
            **super().state_dict(),
            "rows": self.rows.state_dict(),
            "mixture": self.mixture.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rows.load_state_dict(state["rows"])
        self.mixture.load_state_dict(state["mixture"])


class PALM(OpenWorldStrategy):
    """PALM as a ready-made strategy.

    Args:
        method: :class:`PALMPlugin` with its defaults if None.
        **settings: those of :class:`.OpenWorldStrategy`.

    Example:
        >>> from protocl.checks import toy
        >>> model = toy.model()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        >>> strategy = PALM(model=model, optimizer=optimizer, train_epochs=4, train_mb_size=12)
        >>> toy.learn(strategy)[0]  # accuracy on the first three classes
        1.0
    """

    def __init__(self, *, method: PALMPlugin | None = None, **settings: Any) -> None:
        super().__init__(method=PALMPlugin() if method is None else method, **settings)


@dataclass
class PALMConfig(OpenWorldConfig):
    """Settings of PALM; ``strategy=palm_released`` has the authors' for CIFAR-100.

    Attributes:
        loss: constants of the losses.
        plugin: arguments of :class:`PALMPlugin`.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="PALM",
        paper="Lu et al., ICLR 2024",
        stored_between_experiences="mean of each class, its prototypes in the embedding",
        keeps_data=False,
        bytes_per_class="16 D + 3144",
    )

    name: str = "palm"
    loss: PALMLoss = field(default_factory=PALMLoss)
    plugin: Part = part(PALMPlugin)

    def build(self, setup: Setup) -> PALM:
        method = self.plugin.build(loss=self.loss, views=named_views(self.views))
        return PALM(method=method, **self.common(setup))
