"""What strategies on a frozen backbone share: freeze it, pass over each experience once.

The backbone is used as given, or adapted to the first experience alone (:mod:`.first_session`)
and then frozen, BatchNorm statistics included. From then on there is no gradient step: an
experience adds its statistics to the memory, and the head follows. With a backbone that never
moves, merged statistics equal those of joint training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn, optim

from protocl import backbones
from protocl.backbones import Backbone, Classifier
from protocl.config import StrategyConfig
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.strategies.frozen.first_session import FirstSession
from protocl.strategies.frozen.recipe import FrozenBackboneConfig, Sums
from protocl.strategies.frozen.session import Session
from protocl.strategies.plugin.extraction import classes_of
from protocl.strategies.plugin.model_output import ScoresCrossEntropy
from protocl.strategies.plugin.prototype_plugin import PrototypePlugin


class FrozenBackbone(SupervisedTemplate):
    """A strategy that answers through ``head`` over a frozen backbone.

    Args:
        model: any model whose classification layer can be found (see ``layer``). Its own
            classifier is trained along in the first experience and not used at evaluation.
        head: turns statistics into logits.
        first_experience_epochs: epochs of adaptation to the first experience; 0 for none.
        optimizer: for those epochs.
        session: what they make of the backbone. With ``Session("none")`` there are no epochs.
        criterion: loss for those epochs; also what Avalanche's loss metrics report.
        layer: name of the classification layer; found by itself if it has a common name.
        fingerprint: identity of the backbone, kept in the memory; that of an adapted one is taken
            from a :class:`~protocl.backbones.Classifier` when it is frozen.
        sums: how statistics are summed.
        plugin: makes the plugin that keeps the statistics and answers from them, out of ``head``,
            ``layer``, ``fingerprint``, ``exact``, ``step`` and ``moments``.
        plugins: further Avalanche plugins.
        **settings: those of Avalanche's ``SupervisedTemplate``; mini-batches are of as many samples
            as on the command line.

    Raises:
        ValueError: epochs are asked for without an optimizer, or are negative, or absent where
            the session needs them; or as :class:`.FirstSession`, which also says when a
            ConfigError.

    Example:
        >>> from protocl.checks import toy
        >>> from protocl.heads import LinearDiscriminant
        >>> strategy = FrozenBackbone(model=toy.model(), head=LinearDiscriminant(shrinkage=0.1))
        >>> toy.learn(strategy)  # accuracy after each experience
        [1.0, 1.0, 0.972]
        >>> strategy.memory.counts.tolist()
        [24, 24, 24, 24, 24, 24]
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        head: Head,
        first_experience_epochs: int = FrozenBackboneConfig.first_experience_epochs,
        optimizer: optim.Optimizer | None = None,
        session: Session = Session(),
        criterion: Any = None,
        layer: str | None = None,
        fingerprint: str | None = None,
        sums: Sums = Sums(),
        plugin: Callable[..., PrototypePlugin] = PrototypePlugin,
        plugins: Sequence[Any] | None = None,
        **settings: Any,
    ) -> None:
        adaptation = session.adaptation(first_experience_epochs)
        _require_trainable(model, adaptation, first_experience_epochs, optimizer)
        self.session: FirstSession | None = None
        if adaptation != "none":
            self.session = FirstSession(model, adaptation, session, layer=layer)
        self.prototypes = plugin(head, layer=layer, fingerprint=fingerprint, **sums.arguments)
        for size in ("train_mb_size", "eval_mb_size"):
            settings.setdefault(size, getattr(StrategyConfig, size))
        settings.setdefault("evaluator", default_evaluator)
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=ScoresCrossEntropy() if criterion is None else criterion,
            train_epochs=first_experience_epochs,
            plugins=[self.prototypes, *(plugins or [])],
            **settings,
        )
        self.prototypes.still = None  # whether buffers move is decided here
        self.frozen = False
        if self.session is None:
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
        """Reset the optimizer as Avalanche does, while there is anything to optimize."""
        if not self.frozen:
            super().make_optimizer(**kwargs)


def _require_trainable(
    model: nn.Module, adaptation: str, epochs: int, optimizer: optim.Optimizer | None
) -> None:
    adapts = adaptation != "none"
    if epochs < int(adapts):
        raise ValueError(
            f"first_experience_epochs={epochs}: expected 0 or more, and at least 1 with "
            f"adapt={adaptation}"
        )
    if adapts and optimizer is None:
        raise ValueError(
            f"first_experience_epochs={epochs} needs an optimizer: give "
            "optimizer=torch.optim.SGD(model.parameters(), lr=...)"
        )
    if adaptation == "finetune" and not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"first_experience_epochs={epochs}: no weight of the model requires a gradient, as "
            "after a strategy that froze it; give a new model, or call model.requires_grad_(True)"
        )
