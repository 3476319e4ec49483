"""What strategies on a frozen backbone share: freeze it, pass over each experience once.

The backbone is used as given, or adapted to the first experience alone (:mod:`.first_session`)
and then frozen, BatchNorm statistics included. From then on there is no gradient step: an
experience adds its statistics to the memory, and the head follows. With a backbone that never
moves, merged statistics equal those of joint training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn, optim

from protocl import backbones
from protocl.backbones import Backbone, Classifier
from protocl.config import Setup, StrategyConfig
from protocl.errors import ConfigError
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.strategies.avalanche.epoch_schedule import EpochSchedule
from protocl.strategies.avalanche.in_memory import InMemory
from protocl.strategies.avalanche.optimizers import build_optimizer
from protocl.strategies.frozen.first_session import FirstSession
from protocl.strategies.plugin.extraction import classes_of
from protocl.strategies.plugin.model_output import ScoresCrossEntropy
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin

_ADAPTATION = (
    "first_experience_epochs", "adapt_classifier", "two_branches", "normalize_branches",
    "milestones", "cosine_schedule", "train_mb_size", "optimizer", "lr", "momentum", "weight_decay",
)  # fmt: skip
"""Settings besides ``adapt`` that decide what becomes of the backbone."""


def adaptation_of(adapt: str | None, epochs: int) -> str:
    """The name of the adaptation; None, the default, is ``"finetune"`` where there are epochs."""
    if adapt is None:
        return "finetune" if epochs > 0 else "none"
    return adapt


class FrozenBackbone(SupervisedTemplate):
    """A strategy that answers through ``head`` over a frozen backbone.

    Args:
        model: any model whose classification layer can be found (see ``layer``). Its own
            classifier is trained along in the first experience and not used at evaluation.
        head: turns statistics into logits.
        first_experience_epochs: epochs of adaptation to the first experience; 0 for none.
        optimizer: for those epochs.
        adapt: what they adapt, as :func:`protocl.backbones.adaptation.adapt` names it; all weights
            by default. With ``"none"`` there are no epochs.
        adapt_classifier: ``"cosine"`` trains under a cosine layer with a learned scale.
        two_branches: after the adaptation, give the features of the backbone as it was beside those
            of the adapted one; needs a :class:`~protocl.backbones.Classifier`.
        normalize_branches: divide the features of each of both by their norm.
        criterion: loss for those epochs; also what Avalanche's loss metrics report.
        layer: name of the classification layer; found by itself if it has a common name.
        fingerprint: identity of the backbone, kept in the memory; that of an adapted one is taken
            from a :class:`~protocl.backbones.Classifier` when it is frozen.
        exact: sum in fixed point with quantisation step ``step``, so that any order of experiences
            or clients gives the same bits.
        step: see ``exact``.
        plugin: makes the plugin that keeps the statistics and answers from them, out of ``head``,
            ``layer``, ``fingerprint``, ``exact`` and ``step``.
        train_mb_size: samples in a mini-batch of gradient descent.
        eval_mb_size: samples in a mini-batch of feature extraction and evaluation.
        device: where to compute.
        plugins: further Avalanche plugins.
        evaluator: Avalanche's metrics and loggers.
        eval_every: as in Avalanche; only the first experience has epochs.

    Raises:
        ValueError: epochs are asked for without an optimizer, or are negative, or absent where
            ``adapt`` needs them; or as :class:`.FirstSession`, which also says when a ConfigError.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        head: Head,
        first_experience_epochs: int = 0,
        optimizer: optim.Optimizer | None = None,
        adapt: str | None = None,
        adapt_classifier: Literal["linear", "cosine"] = "linear",
        two_branches: bool = False,
        normalize_branches: bool = False,
        criterion: Any = None,
        layer: str | None = None,
        fingerprint: str | None = None,
        exact: bool = False,
        step: float = 2.0**-16,
        plugin: Callable[..., PrototypePlugin] = PrototypePlugin,
        train_mb_size: int = 64,
        eval_mb_size: int = 256,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
    ) -> None:
        adaptation = adaptation_of(adapt, first_experience_epochs)
        adapts = adaptation != "none"
        if first_experience_epochs < int(adapts):
            raise ValueError(
                f"first_experience_epochs={first_experience_epochs}: expected 0 or more, and at "
                f"least 1 with adapt={adaptation}"
            )
        if adapts and optimizer is None:
            raise ValueError(
                f"first_experience_epochs={first_experience_epochs} needs an optimizer: give "
                "optimizer=torch.optim.SGD(model.parameters(), lr=...)"
            )
        if adaptation == "finetune" and not any(p.requires_grad for p in model.parameters()):
            raise ValueError(
                f"first_experience_epochs={first_experience_epochs}: no weight of the model "
                "requires a gradient, as after a strategy that froze it; give a new model, or call "
                "model.requires_grad_(True)"
            )
        self.session: FirstSession | None = None
        if adapts:
            self.session = FirstSession(
                model,
                adaptation,
                layer=layer,
                classifier=adapt_classifier,
                keep_pretrained=two_branches,
                normalize_branches=normalize_branches,
            )
        self.prototypes = plugin(head, layer=layer, fingerprint=fingerprint, exact=exact, step=step)
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=ScoresCrossEntropy() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=first_experience_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=[self.prototypes, *(plugins or [])],
            evaluator=evaluator,
            eval_every=eval_every,
        )
        self.prototypes.still = None  # whether buffers move is decided here
        self.frozen = False
        if not adapts:
            self.freeze()

    @property
    def memory(self) -> PrototypeMemory | None:
        """The statistics, or None before the first experience."""
        return self.prototypes.memory

    @property
    def head(self) -> Head:
        """The head, fitted to the memory at evaluation."""
        return self.prototypes.head

    def freeze(self) -> None:
        """End gradient descent: later experiences are passed over once, in evaluation mode."""
        self.frozen = True
        self.train_epochs = 0
        self.model.requires_grad_(False)

    def adopt_backbone(self, backbone: Backbone) -> None:
        """Use a backbone that was adapted with the same settings before, and adapt none.

        Raises:
            ValueError: the first experience is over, or the model has no backbone that can be told
                from its classifier.
        """
        if self.session is None or not isinstance(self.model, Classifier):
            raise ValueError(
                "adopt_backbone: expected a protocl.backbones.Classifier that is to be adapted"
            )
        classes = len(cast(Tensor, self.model.classifier.weight))
        classifier = nn.Linear(backbone.feature_dim, classes)
        self.model.backbone, self.model.classifier = backbone, classifier
        self.model.to(self.device)
        self._settle()

    def release_backbone(self) -> nn.Module:
        """Hand over the frozen backbone; from then on the strategy takes features for images.

        Raises:
            ValueError: the backbone is still to be adapted, or the model has none that can be
                told from its classifier.
        """
        if not self.frozen or not isinstance(self.model, Classifier):
            raise ValueError(
                "release_backbone: expected a protocl.backbones.Classifier that was trained on its "
                "first experience"
            )
        backbone, self.model.backbone = self.model.backbone, nn.Identity()
        return backbone

    def _before_training(self, **kwargs: Any) -> None:
        if self.frozen:
            self.model.eval()
        super()._before_training(**kwargs)

    def _before_training_epoch(self, **kwargs: Any) -> None:
        if self.session is not None:
            classes = classes_of(self.experience.dataset)
            self.session.begin_epoch(self.model, classes.tolist())
        super()._before_training_epoch(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        # Before the plugins, which then see the backbone as it will stay.
        if self.session is not None:
            self.session.conclude(self.model)
            self._settle()
        super()._after_training_exp(**kwargs)

    def _settle(self) -> None:
        """End the first session: the backbone stays as it is now."""
        self.session = None
        if isinstance(self.model, Classifier):
            self.prototypes.fingerprint = backbones.fingerprint(self.model.backbone)
        self.freeze()
        self.model.eval()

    def make_optimizer(self, **kwargs: Any) -> None:
        """As in Avalanche, while there is anything to optimize."""
        if not self.frozen:
            super().make_optimizer(**kwargs)


@dataclass
class FrozenBackboneConfig(StrategyConfig):
    """Settings of strategies on a frozen backbone.

    Attributes:
        first_experience_epochs: epochs in which the backbone is adapted to the first experience
            before it is frozen; 0 uses it as given. ``train_epochs`` has no meaning here.
        adapt: what they adapt: ``finetune`` (all weights; the default where there are epochs),
            ``vpt_shallow``, ``vpt_deep``, ``ssf``, ``adapter``, ``bn``; ``none`` uses the backbone
            as given.
        adapt_classifier: ``linear`` or ``cosine``, what they train it under.
        two_branches: then use the features of the backbone as given beside those of the adapted
            one.
        normalize_branches: divide the features of each of both by their norm.
        milestones: epochs of these (from 0) after which ``lr`` falls to a tenth.
        cosine_schedule: let ``lr`` fall to zero over these epochs.
        exact: sum in fixed point.
        step: quantisation step of ``exact``.
    """

    first_experience_epochs: int = 0
    adapt: str | None = None
    adapt_classifier: str = "linear"
    two_branches: bool = False
    normalize_branches: bool = False
    milestones: list[int] | None = None
    cosine_schedule: bool = False
    exact: bool = False
    step: float = 2.0**-16

    @property
    def trains_backbone(self) -> bool:
        return adaptation_of(self.adapt, self.first_experience_epochs) != "none"

    @property
    def adaptation(self) -> dict[str, Any] | None:
        if not self.trains_backbone:
            return None
        decides = {name: getattr(self, name) for name in _ADAPTATION}
        return decides | {"adapt": adaptation_of(self.adapt, self.first_experience_epochs)}

    @property
    def unused(self) -> dict[str, str]:
        unused = super().unused | {"train_epochs": "its epochs are first_experience_epochs"}
        if not self.exact:
            unused["step"] = "sums are in fixed point only with exact=true"
        if self.trains_backbone:
            if not self.two_branches:
                unused["normalize_branches"] = "there are branches only with two_branches=true"
            return unused
        reason = "adapt=none trains nothing"
        if self.first_experience_epochs == 0:
            reason = "nothing is trained with first_experience_epochs=0"
            return unused | dict.fromkeys(_ADAPTATION[1:], reason)
        return unused | dict.fromkeys(_ADAPTATION, reason)

    @property
    def old_prototypes(self) -> str:
        return "exact"  # nothing is stored before the backbone stays

    def _build(
        self, kind: Callable[..., FrozenBackbone], setup: Setup, **settings: Any
    ) -> FrozenBackbone:
        """A strategy of class ``kind`` with ``settings`` of its own."""
        if self.first_experience_epochs < 0:
            raise ConfigError(
                f"strategy.first_experience_epochs={self.first_experience_epochs}: "
                "expected 0 or more"
            )
        trains = self.trains_backbone
        schedule = EpochSchedule(None, self.milestones or (), cosine=self.cosine_schedule)
        return kind(
            model=setup.model,
            first_experience_epochs=self.first_experience_epochs,
            adapt=self.adapt,
            adapt_classifier=self.adapt_classifier,
            two_branches=self.two_branches,
            normalize_branches=self.normalize_branches,
            optimizer=build_optimizer(self, setup.model) if trains else None,
            # A backbone that is trained is another one afterwards, whose own it then gets.
            fingerprint=None if trains else setup.fingerprint,
            exact=self.exact,
            step=self.step,
            train_mb_size=self.train_mb_size,
            eval_mb_size=self.eval_mb_size,
            device=setup.device,
            plugins=[schedule, InMemory(), *setup.plugins],
            evaluator=setup.evaluator,
            **settings,
        )
