"""What methods share that train features and leave the answer to statistics of them.

Beside such a plugin stands a :class:`.PrototypePlugin`: after each experience one pass over its
labelled samples gives ordinary statistics, from which any head answers. The embeddings that the
loss compares, and the prototypes among them, serve the training alone.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from protocl.strategies.avalanche.companion_optimizer import Companion
from protocl.strategies.open_world.projector import Projector
from protocl.strategies.training.base import FeatureLossPlugin
from protocl.strategies.training.views import Views, named_views


class RepresentationPlugin(FeatureLossPlugin):
    """Trains the model by a loss on embeddings of its features, and does not answer.

    The projector is trained by an optimizer like that of the model.

    Args:
        projector: hidden width, outputs, number of layers and nonlinearity of the projector, the
            arguments of :class:`.Projector` but ``inputs``.
        views: two views of each sample; by default drawn on the device by
            :func:`.full_augmentation` for colour images, and copies of all other inputs.
        **settings: those of :class:`.FeatureLossPlugin`.

    Attributes:
        projector: made in the first iteration; None before.
        companion: the optimizer of all that is trained beside the model.
    """

    def __init__(
        self, projector: dict[str, Any], *, views: Views | None = None, **settings: Any
    ) -> None:
        super().__init__(views=named_views("auto") if views is None else views, **settings)
        Projector(1, **projector)  # refuses widths that make no sense, before anything is trained
        self.projector: Projector | None = None
        self.companion = Companion()
        self._projector = projector
        self._classes = torch.zeros(0, dtype=torch.int64)

    # -- for subclasses ---------------------------------------------------------------------

    @abstractmethod
    def grow(self, class_ids: Tensor, features: Tensor) -> None:
        """Make room for classes ``(K,)`` as training on them begins.

        Args:
            class_ids: of the experience, and of those before it that had no iteration.
            features: ``(N, D)``, of which width, device and type are read.
        """

    @abstractmethod
    def loss_of(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of features ``(V B, D)``, all first views first, with labels ``(B,)``."""

    def trained(self) -> list[torch.nn.Parameter]:
        """What is trained beside the model."""
        assert self.projector is not None
        return list(self.projector.parameters())

    # -- wiring -----------------------------------------------------------------------------

    def begin_experience(self, strategy: Any, class_ids: Tensor) -> None:
        # An experience of zero epochs leaves its classes to the next one.
        self._classes = torch.cat([self._classes.to(class_ids.device), class_ids])

    def feature_loss(
        self, strategy: Any, features: Tensor, labels: Tensor, inputs: Tensor
    ) -> Tensor:
        if len(self._classes):
            self._make(strategy, features)
        return self.loss_of(features, labels)

    def _make(self, strategy: Any, features: Tensor) -> None:
        if self.projector is None:
            self.projector = Projector(features.shape[1], **self._projector)
        self.projector.to(features.device, wide_type(features))
        self.grow(self._classes, features)
        self._classes = self._classes[:0]
        self.companion.join(self.trained(), strategy.optimizer)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.companion.step(strategy.optimizer)

    def class_logits(self, features: Tensor) -> None:
        """Others answer."""

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """No features are read."""

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Nothing is answered."""

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The projector and what is known of tasks; no moments of optimizers."""
        return {
            **super().state_dict(),
            "projector": None if self.projector is None else self.projector.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave of a plugin with the same arguments."""
        super().load_state_dict(state)
        self.companion = Companion()
        self.projector = None
        if state["projector"] is not None:
            first = state["projector"]["layers.0.weight"]
            self.projector = Projector(first.shape[1], **self._projector).to(first)
            self.projector.load_state_dict(state["projector"])


def wide_type(features: Tensor) -> torch.dtype:
    """The type of parameters beside a model with such features: float64 for float64."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32
