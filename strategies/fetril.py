"""FeTrIL: old classes as translated features of new ones, over a frozen backbone.

The backbone is trained on the first experience and then frozen. In later ones an old class is
replaced by the features of the most similar new class, moved so that their mean is its own
(Petit et al., WACV 2023). A linear head is fitted to these and the new features.

For heads that follow from statistics (ridge regression, linear discriminant) no feature has to be
made: translation keeps the scatter, so the second moment is
``sum_new P_j + sum_old [P_r - n_r mu_r mu_r^T + n_r mu_k mu_k^T]``, exactly. The authors' linear
support vector machine is fitted to the features themselves.

Stored between experiences: count and mean of each class and the linear head; no samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from protocl.config import Setup, StrategyInfo
from protocl.config.sections import HeadChoice, head
from protocl.config.validation import POSITIVE, ranged
from protocl.errors import NotFittedError
from protocl.heads import LinearDiscriminant
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.memory.from_statistics import require_plain
from protocl.model.answers import LinearAnswer
from protocl.strategies.frozen.base import FrozenBackbone
from protocl.strategies.frozen.recipe import FrozenBackboneConfig
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin


def most_similar(means: Tensor, new_means: Tensor) -> Tensor:
    """For each old class mean ``(K, D)`` the row ``(K,)`` of the new one of largest cosine.

    Args:
        means: of old classes.
        new_means: ``(J, D)``.
    """
    cosines = functional.normalize(means, dim=1) @ functional.normalize(new_means, dim=1).T
    return cosines.argmax(1)


def pseudo_features(
    features: Tensor, labels: Tensor, means: Tensor, new: PrototypeMemory
) -> list[Tensor]:
    """Features ``(n_r, D)`` for each old class: those of its most similar new class, translated.

    Args:
        features: ``(N, D)`` of the new classes.
        labels: ``(N,)`` their class ids.
        means: ``(K, D)`` of the old classes.
        new: statistics of ``features``.
    """
    rows = most_similar(means, new.means)
    shifts = (means - new.means[rows]).to(features)
    order = labels.argsort(stable=True)
    groups = features[order].split(new.counts.tolist())
    return [groups[row] + shift for row, shift in zip(rows.tolist(), shifts, strict=True)]


def pseudo_statistics(old: PrototypeMemory, new: PrototypeMemory) -> PrototypeMemory:
    """Statistics, of level ``shared``, of new classes and of pseudo-features of the old ones.

    Equal to summing :func:`pseudo_features`, of which none is made.

    Args:
        old: counts and means of the old classes (the counts play no part).
        new: of level ``full``; classes that are also in ``old`` count as new.
    """
    fresh = ~torch.isin(old.classes, new.classes)
    means, classes = old.means[fresh], old.classes[fresh]
    donors = most_similar(means, new.means)
    counts, donor_means = new.counts[donors], new.means[donors]
    uses = 1 + torch.bincount(donors, minlength=len(new))
    second = (uses[:, None, None] * new.second_moment).sum(0)
    second += (counts[:, None] * means).T @ means
    second -= (counts[:, None] * donor_means).T @ donor_means
    require_plain(new)
    return PrototypeMemory.from_statistics(
        new.empty_like("shared"), classes=torch.cat([classes, new.classes]),
        counts=torch.cat([counts, new.counts]),
        sums=torch.cat([counts[:, None] * means, new.sums]), second_moment=second,
    )  # fmt: skip


def fit_support_vectors(features: Tensor, labels: Tensor, c: float) -> LinearAnswer:
    """A linear support vector machine, one class against the rest, on features of unit length.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)``.
        c: inverse strength of the regularisation.
    """
    from sklearn.svm import LinearSVC

    x = functional.normalize(features.double(), dim=1).cpu().numpy()
    machine = LinearSVC(C=c, dual=False, random_state=0).fit(x, labels.cpu().numpy())
    weights, biases = torch.from_numpy(machine.coef_), torch.from_numpy(machine.intercept_)
    if len(machine.classes_) == 2:
        # scikit-learn keeps one boundary for two classes.
        weights, biases = torch.cat([-weights, weights]), torch.cat([-biases, biases])
    scores = LinearAnswer(unit_length=True)
    scores.hold(classes=torch.from_numpy(machine.classes_), weight=weights, bias=biases)
    return scores.to(features.device)


def linear_form(head: Head, feature_dim: int) -> LinearAnswer:
    """The weights of a fitted head whose logits are linear in the features, in float64.

    Features far from the origin need its digits.
    """
    zero = torch.zeros(1, feature_dim, dtype=torch.float64, device=head.classes.device)
    bias = head(zero)[0].double()
    weight = (head(torch.eye(feature_dim).to(zero)).double() - bias).T
    return LinearAnswer().hold(classes=head.classes, weight=weight, bias=bias)


class FeTrILPlugin(PrototypePlugin):
    """FeTrIL's head for a strategy whose backbone does not move after the first experience.

    A class that comes back is fitted to its new samples; its mean is that of all of them.

    Args:
        head: fitted to the statistics of new and pseudo-features; its logits must be linear in the
            features. ``LinearDiscriminant("auto")`` by default.
        svm_c: fit a support vector machine instead, with this inverse strength of regularisation.
        **settings: those of :class:`.PrototypePlugin` but ``collect``, ``memory`` and ``level``.

    Attributes:
        scores: the linear head, or None before the first experience.

    Example:
        >>> from avalanche.training import Naive
        >>> from protocl.checks import toy
        >>> model, plugin = toy.model(), FeTrILPlugin()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        >>> settings = dict(train_epochs=1, train_mb_size=12, plugins=[plugin])
        >>> toy.learn(Naive(model=model, optimizer=optimizer, **settings))[0]
        1.0
    """

    def __init__(
        self, head: Head | None = None, *, svm_c: float | None = None, **settings: Any
    ) -> None:
        super().__init__(
            LinearDiscriminant("auto", dtype=torch.float64) if head is None else head,
            level="mean",
            **settings,
        )
        if self.exact:
            raise ValueError("exact=True: pseudo-features are not sums of samples; use exact=False")
        if svm_c is not None and not svm_c > 0:
            raise ValueError(f"svm_c={svm_c}: expected a number > 0, or None for the head")
        self.svm_c = svm_c
        self.scores: LinearAnswer | None = None

    def after_training_exp(self, strategy: Any, num_workers: int = 0, **kwargs: Any) -> None:
        workers = num_workers if self.num_workers is None else self.num_workers
        new: PrototypeMemory | None = None
        kept: list[tuple[Tensor, Tensor]] = []
        dataset = strategy.experience.dataset
        for _, features, labels, tasks in features_of(strategy, dataset, self.layer, workers):
            ids = self.tasks.note(labels, tasks)
            new = new or self._memory_of_experience(features)
            new.update(features, ids)
            if self.svm_c is not None:
                kept.append((features, ids))
        if new is None:
            return
        old = new.empty_like("mean") if self.memory is None else self.memory
        self.scores = self._fit(old.to(new.device), new, kept)
        self.memory = old + new.at_level("mean")

    def _memory_of_experience(self, features: Tensor) -> PrototypeMemory:
        level: Level = "full" if self.svm_c is None else "mean"
        memory = PrototypeMemory(features.shape[1], level, fingerprint=self.fingerprint)
        return memory.to(features.device)

    def _fit(
        self, old: PrototypeMemory, new: PrototypeMemory, kept: list[tuple[Tensor, Tensor]]
    ) -> LinearAnswer:
        if self.svm_c is None:
            head = self.head.to(new.device).fit(pseudo_statistics(old, new))
            return linear_form(head, new.feature_dim)
        features, labels = (torch.cat([part[i] for part in kept]) for i in (0, 1))
        fresh = ~torch.isin(old.classes, new.classes)
        made = pseudo_features(features, labels, old.means[fresh], new)
        counts = torch.tensor([len(part) for part in made], dtype=torch.int64, device=labels.device)
        made_labels = old.classes[fresh].repeat_interleave(counts)
        return fit_support_vectors(
            torch.cat([features, *made]), torch.cat([labels, made_labels]), self.svm_c
        )

    def logits(self, features: Tensor, tasks: Tensor | None = None, width: int = 0) -> Tensor:
        if self.scores is None:
            raise NotFittedError("FeTrILPlugin has no classes yet: train an experience first")
        scores = self.scores.to(features.device)
        logits = scores(features).float()
        return self.tasks.dense(logits, scores.classes, tasks, width, self.floor)

    def final_answer(self) -> LinearAnswer | None:
        """What a model on disk keeps of it; None where nothing was learned."""
        return self.scores

    def state_dict(self) -> dict[str, Any]:
        """What :class:`.PrototypePlugin` keeps, and the linear head."""
        scores = None if self.scores is None else self.scores.state_dict()
        return {**super().state_dict(), "scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave of a plugin with the same arguments."""
        super().load_state_dict(state)
        self.scores = None
        if state["scores"] is not None:
            self.scores = LinearAnswer(unit_length=self.svm_c is not None).hold(**state["scores"])


class FeTrIL(FrozenBackbone):
    """FeTrIL as a ready-made strategy.

    Args:
        head, svm_c: as for :class:`FeTrILPlugin`.
        **settings: those of :class:`.FrozenBackbone` but ``plugin``.

    Example:
        >>> from protocl.checks import toy
        >>> model = toy.model()
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> toy.learn(FeTrIL(model=model, optimizer=sgd))[0]  # accuracy on the first three classes
        1.0
    """

    def __init__(
        self, *, head: Head | None = None, svm_c: float | None = None, **settings: Any
    ) -> None:
        super().__init__(
            head=LinearDiscriminant("auto", dtype=torch.float64) if head is None else head,
            plugin=partial(FeTrILPlugin, svm_c=svm_c),
            **settings,
        )


@dataclass
class LinearHead(HeadChoice):
    """A head whose logits are linear in the features.

    Attributes:
        name: ``lda`` or ``ridge``.
    """

    name: Literal["lda", "ridge"] = "lda"


@dataclass
class FeTrILConfig(FrozenBackboneConfig):
    """Settings of :class:`FeTrIL`.

    Attributes:
        head: the linear head, and its arguments.
        svm_c: fit the authors' support vector machine instead, with this inverse strength of its
            regularisation.
    """

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="FeTrIL",
        paper="Petit et al., WACV 2023",
        stored_between_experiences="count and mean of each class, a linear head",
        keeps_data=False,
        bytes_per_class="24 D + 32",
    )

    name: str = "fetril"
    first_experience_epochs: int = 10
    lr: float = 0.05
    momentum: float = 0.9
    head: LinearHead = head("lda", LinearHead, shrinkage="auto")
    svm_c: float | None = ranged(None, POSITIVE)

    @property
    def unused(self) -> dict[str, str]:
        unused = super().unused | {"sums.forgettable": "it keeps means alone"}
        return unused if self.svm_c is None else unused | {"head": "svm_c takes its place"}

    def build(self, setup: Setup) -> FrozenBackbone:
        linear = self.head.build(dtype=torch.float64)
        return self._build(setup, FeTrIL, head=linear, svm_c=self.svm_c)
