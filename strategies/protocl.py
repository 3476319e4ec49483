"""ProtoCL: sequential Bayes over class prototypes, with an embedding that is learned beside it.

Each class is a Gaussian around an unknown mean. A batch is first predicted with the posterior from
before it, which gives the loss of the embedding; then it updates the posterior, in closed form. The
posterior of an experience is the prior of the next.

It is a replay method: without its memory of samples the embedding forgets old classes, and stored
posteriors do not prevent that. Very many small experiences would each keep nothing of the budget.

Four options go beyond the paper, all off by default: ``selection`` stores samples near which the
others lie instead of any, ``distillation`` holds on to what the model before the experience
predicted, ``refit`` drops evidence from embeddings long outdated, and ``answer`` learns the noise
from the refitted statistics and takes all classes for equally probable.

Stored between experiences: the posterior, ``8 (D + 1)`` bytes a class and as many for its prior,
and ``mem_size`` samples; with ``refit`` the statistics of the memory's level. During training with
``distillation``, a frozen copy of the model from before the experience.

Differences from the released code (``skezle/bayes_cl_posterior``): one posterior instead of one for
each row of a batch; evaluation does not update the posterior with test labels, and runs without
dropout; classes take part when they arrive, unless ``all_classes`` names them from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from protocl.config import Setup, StrategyInfo
from protocl.config.sections import Part, part
from protocl.config.validation import require_choice
from protocl.heads.bayesian.head import BayesianPrototypes
from protocl.heads.bayesian.posterior import ConjugatePosterior
from protocl.heads.bayesian.priors import (
    Covariance,
    Prior,
    RandomPrior,
    SharedPrior,
)
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.model.answers import Answering
from protocl.strategies.avalanche.epoch_schedule import ScheduledConfig
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.avalanche.optimizers import build_optimizer
from protocl.strategies.exemplars.sample_memory import SampleMemory, Selection
from protocl.strategies.plugin.task_classes import tasks_of
from protocl.strategies.training.answers import GaussianAnswer
from protocl.strategies.training.base import FeatureLossPlugin
from protocl.strategies.training.predictive_distillation import HeldPredictions
from protocl.strategies.training.ready_made import ReadyMade

DEFAULT_NOISE = 0.05

Answer = Literal["posterior", "iso", "diag", "full"]

EQUAL_CLASSES = SharedPrior(concentration=1e12, precision=0.0)
"""Flat over the means, and so sure of equal classes that counts of samples do not matter."""


class ProtoCLPlugin(FeatureLossPlugin):
    """ProtoCL inside any Avalanche strategy.

    Args:
        prior: belief about a class before its first sample; the authors' random one by default.
        noise: variance of a class's embeddings around their mean.
        covariance: ``"iso"``, ``"diag"`` or ``"full"``.
        mem_size: samples that are stored in all; 0 leaves replay to the host (``Replay``).
        selection: which; see :class:`.SampleMemory`.
        objective: ``"conditional"`` for ``-log p(y | z)``; ``"joint"`` for ``-log p(z, y)``, which
            collapses the embedding.
        refit: ``"none"`` keeps the posterior as it was updated batch by batch, embeddings long
            outdated among it; ``"memory"`` starts again from the prior when an experience ends,
            with the stored samples and those of the experience under the final embedding, counted
            as often as an epoch counts them.
        discount: what evidence weighs, in each update, against one update before; 1 for never
            forgetting it.
        distillation: weight of :func:`.predictive_distillation` to the model and posterior from
            before the experience.
        temperature: of the distillation.
        answer: ``"posterior"``; or ``"iso"``, ``"diag"`` or ``"full"`` for
            :class:`.BayesianPrototypes` on the refitted statistics, with a noise of that form
            estimated from them and all classes equally probable. Needs ``refit="memory"``.
        all_classes: class ids that take part with their prior from the start.
        layer, host_loss, mask_tasks, per_task: as in :class:`.FeatureLossPlugin`.

    Attributes:
        posterior: the posterior, or None before the first iteration.
        memory: the refitted statistics, or None without ``refit``.
        samples: the stored samples.
        held: the teacher of an experience and its posterior.

    Source: Kessler et al. 2023, "On sequential Bayesian inference for continual learning",
    section 7 and algorithm 1.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> model, plugin = toy.model(), ProtoCLPlugin(mem_size=12)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> settings = dict(train_epochs=3, train_mb_size=12, plugins=[plugin])
        >>> toy.learn(Naive(model=model, optimizer=optimizer, **settings))[0]
        1.0
    """

    def __init__(
        self,
        prior: Prior | None = None,
        noise: float | Tensor = DEFAULT_NOISE,
        *,
        covariance: Covariance = "iso",
        mem_size: int = 1000,
        selection: Selection = "random",
        objective: Literal["conditional", "joint"] = "conditional",
        refit: Literal["none", "memory"] = "none",
        discount: float = 1.0,
        distillation: float = 0.0,
        temperature: float = 2.0,
        answer: Answer = "posterior",
        all_classes: Sequence[int] = (),
        layer: str | None = None,
        host_loss: float = 0.0,
        mask_tasks: bool = True,
        per_task: bool = False,
    ) -> None:
        super().__init__(layer=layer, host_loss=host_loss, mask_tasks=mask_tasks, per_task=per_task)
        require_choice("objective", objective, ("conditional", "joint"))
        require_choice("refit", refit, ("none", "memory"))
        require_choice("answer", answer, get_args(Answer))
        if not 0 < discount <= 1:
            raise ValueError(f"discount={discount}: expected a number above 0, at most 1")
        if answer != "posterior" and refit != "memory":
            raise ValueError(f"answer='{answer}' is made of refitted statistics: add refit=memory")
        self.prior: Prior = RandomPrior() if prior is None else prior
        self.noise = noise
        self.covariance: Covariance = covariance
        self.objective: Literal["conditional", "joint"] = objective
        self.refit = refit
        self.discount = discount
        self.held = HeldPredictions(distillation, temperature)
        self.head = (
            None if answer == "posterior" else BayesianPrototypes(EQUAL_CLASSES, covariance=answer)
        )
        self.all_classes = tuple(all_classes)
        self.samples = SampleMemory(mem_size, selection)
        self.posterior: ConjugatePosterior | None = None
        self.memory: PrototypeMemory | None = None
        self._classes: Tensor | None = None
        self._batch: tuple[Tensor, Tensor] | None = None

    # -- training ---------------------------------------------------------------------------

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        strategy.adapted_dataset = self.samples.beside(strategy.adapted_dataset)

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        # An experience of zero epochs leaves its classes to the next one.
        self._classes = (
            class_ids if self._classes is None else torch.cat([self._classes, class_ids])
        )
        if self.posterior is not None:
            self.held.begin(strategy.model, self.layer, self.posterior)

    def feature_loss(
        self, strategy: Any, features: Tensor, labels: Tensor, inputs: Tensor
    ) -> Tensor:
        if not features.requires_grad:
            raise ValueError(
                "ProtoCL trains what computes the features, and nothing there has weights that "
                "train: use a backbone with weights, such as backbone=mlp, or for features as they "
                "are a PrototypePlugin with the head BayesianPrototypes"
            )
        if self._classes is not None:
            self.posterior = self.posterior or self._new_posterior(features)
            self.posterior.add_classes(self._classes)
            self._classes = None
        assert self.posterior is not None
        self._batch = (features.detach(), labels)
        loss = self.posterior.loss(features, labels, self.objective)
        return loss + self.held.loss(self.posterior, features, inputs, tasks_of(strategy))

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Update the posterior with the batch that it has just predicted."""
        assert self.posterior is not None
        assert self._batch is not None
        if self.discount < 1:
            self.posterior.discount(self.discount)
        self.posterior.update(*self._batch)
        self._batch = None

    def after_training_exp(self, strategy: Any, num_workers: int = 0, **kwargs: Any) -> None:
        self.held.end()
        if self.refit == "memory" and self.posterior is not None:
            self._refit(strategy, num_workers)
        self.samples.add(strategy.experience.dataset, strategy.device, num_workers)

    def _refit(self, strategy: Any, num_workers: int) -> None:
        assert self.posterior is not None
        self.memory = self.statistics(strategy, strategy.adapted_dataset, self._level, num_workers)
        self.posterior.replace(self.memory)

    @property
    def _level(self) -> Level:
        return "mean" if self.head is None else self.head.required_level

    def _new_posterior(self, features: Tensor) -> ConjugatePosterior:
        made = ConjugatePosterior(
            features.shape[1], self.prior, self.noise, covariance=self.covariance
        ).to(features.device)
        return made.add_classes(torch.tensor(self.all_classes, dtype=torch.int64))

    # -- answering --------------------------------------------------------------------------

    def class_logits(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.posterior is None:
            return None
        if self.head is None or self.memory is None:
            return self.posterior.answer(features)
        logits = self.head.to(features.device).fit(self.memory.to(features.device))(features)
        return logits, self.head.classes

    def final_answer(self) -> Answering | None:
        """What a model on disk keeps of it; None where nothing was learned."""
        if self.posterior is None:
            return None
        if self.head is None or self.memory is None:
            return GaussianAnswer.of(*self.posterior.seen())
        return self.head, self.memory

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Posterior, statistics and what is known of tasks. Stored samples are not part of it."""
        return {
            **super().state_dict(),
            "memory": None if self.memory is None else self.memory.state_dict(),
            "posterior": None if self.posterior is None else self.posterior.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave of a plugin with the same arguments."""
        super().load_state_dict(state)
        if state["posterior"] is None:
            self.posterior = None
            return
        self.posterior = self._new_posterior(state["posterior"]["sums"])
        self.posterior.load_state_dict(state["posterior"])
        self.memory = None
        if state["memory"] is not None:
            self.memory = PrototypeMemory(self.posterior.feature_dim, self._level)
            self.memory.load_state_dict(state["memory"])


class ProtoCL(ReadyMade):
    """ProtoCL as a ready-made strategy, whose model's classification layer is not used.

    Args:
        plugin: the method; :class:`ProtoCLPlugin` with its defaults if None.
        **settings: those of :class:`.ReadyMade` but ``own``.

    Example:
        >>> from protocl.checks import toy
        >>> model = toy.model()
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> strategy = ProtoCL(model=model, optimizer=optimizer, train_epochs=3, train_mb_size=12)
        >>> toy.learn(strategy)[0]  # accuracy on the first three classes
        1.0
    """

    def __init__(self, *, plugin: ProtoCLPlugin | None = None, **settings: Any) -> None:
        self.protocl = ProtoCLPlugin() if plugin is None else plugin
        super().__init__(own=[self.protocl], **settings)


@dataclass
class ProtoCLConfig(ScheduledConfig):
    """Settings of :class:`ProtoCL`; those of the paper on Fashion-MNIST.

    Attributes:
        plugin: arguments of :class:`ProtoCLPlugin`.
        prior: the belief about a class before its first sample.
        all_classes: let every class of the stream take part from the start, as the paper does.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="ProtoCL",
        paper="Kessler et al., Entropy 2023",
        stored_between_experiences="posterior of each class's mean; samples, at most mem_size",
        keeps_data=True,
        bytes_per_class="16 D + 32",
    )

    name: str = "protocl"
    train_epochs: int = 50
    train_mb_size: int = 128
    optimizer: Literal["sgd", "adam"] = "adam"
    lr: float = 1e-4
    weight_decay: float = 1e-2
    plugin: Part = part(
        ProtoCLPlugin, "all_classes", "layer", "host_loss", "mask_tasks", "per_task"
    )
    prior: Part = part(RandomPrior, "seed")
    all_classes: bool = False

    @property
    def unused(self) -> dict[str, str]:
        unused, plugin = super().unused, self.plugin.arguments
        if not plugin["distillation"]:
            unused["plugin.temperature"] = "it is that of distillation, which is 0"
        if not plugin["mem_size"]:
            unused["plugin.selection"] = "no samples are stored with mem_size=0"
        return unused

    @property
    def old_prototypes(self) -> str:
        return "refreshed" if self.plugin.arguments["refit"] == "memory" else "trained"

    def build(self, setup: Setup) -> ProtoCL:
        plugin = self.plugin.build(
            prior=self.prior.build(seed=setup.seed),
            all_classes=range(setup.n_classes) if self.all_classes else (),
        )
        return ProtoCL(
            model=setup.model,
            optimizer=build_optimizer(self, setup.model),
            plugin=plugin,
            train_epochs=self.train_epochs,
            train_mb_size=self.train_mb_size,
            eval_mb_size=self.eval_mb_size,
            device=setup.device,
            plugins=[self.schedule(), InMemory("model"), *setup.plugins],
            evaluator=setup.evaluator,
        )
