"""Adaptation of a model to the first experience, after which it stays ("first session").

A cheap step between a frozen backbone and one that follows every experience (Panos et al., ICCV
2023; Zhou et al., IJCV 2024; phase 1 of McDonnell et al., NeurIPS 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
from avalanche.models.cosine_layer import CosineLinear
from torch import Tensor, nn

from protocl.backbones import Classifier
from protocl.backbones.adaptation import adapt, find_adaptation, fold
from protocl.backbones.branches import two_branches
from protocl.strategies.frozen.session import Session
from protocl.strategies.plugin.classifier_layer import find_classifier


class SessionCosine(CosineLinear):
    """Cosines times a learned scale that starts at 1, for the classes of the session alone.

    At so small a scale, outputs of classes that are not there would take most of the probability.

    Args:
        like: the linear layer whose place it takes.
    """

    present: Tensor

    def __init__(self, like: nn.Linear) -> None:
        super().__init__(like.in_features, like.out_features)
        self.register_buffer("present", torch.ones(like.out_features, dtype=torch.bool))
        self.to(like.weight.device)

    def restrict(self, classes: Iterable[int]) -> None:
        """Let only ``classes`` have a probability."""
        self.present.zero_()
        self.present[sorted(classes)] = True

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)`` of features ``(N, D)``."""
        logits: Tensor = super().forward(features)
        return logits.masked_fill(~self.present, torch.finfo(logits.dtype).min)


class FirstSession:
    """Prepares a model for its adaptation and gives it the form that it keeps.

    Args:
        model: is changed in place. In a :class:`~protocl.backbones.Classifier` the backbone is
            adapted, in any other model all but its classification layer, which is trained too.
        adaptation: see :func:`protocl.backbones.adaptation.adapt`.
        session: what else the first experience makes of the backbone.
        layer: name of the classification layer; found by itself if it has a common name.

    Raises:
        ConfigError: the adaptation is unknown or does not apply to the model.
        ValueError: two branches of a model that is no ``Classifier``, or a classification layer
            that is not linear where another one should take its place.
    """

    def __init__(
        self,
        model: nn.Module,
        adaptation: str,
        session: Session,
        *,
        layer: str | None = None,
    ) -> None:
        body = model.backbone if isinstance(model, Classifier) else model
        if session.two_branches and body is model:
            raise ValueError(
                f"two_branches=True with a {type(model).__name__}: give the model as "
                "protocl.backbones.Classifier(backbone, torch.nn.Linear(...))"
            )
        last = find_classifier(model, layer)
        self.adaptation = find_adaptation(body, adaptation)
        self._width = _linear(last).in_features if session.two_branches else 0
        self._cosine = SessionCosine(_linear(last)) if session.classifier == "cosine" else None
        self._normalize = session.normalize_branches
        self._pretrained = copy.deepcopy(body).eval() if session.two_branches else None
        trained = [parameter for parameter in last.parameters() if parameter.requires_grad]
        adapt(body, adaptation)
        for parameter in trained:
            parameter.requires_grad_(True)
        if self._cosine is not None:
            _replace(model, last, self._cosine)

    def begin_epoch(self, model: nn.Module, classes: Iterable[int]) -> None:
        """Put a model that is in training mode in the mode in which it adapts to ``classes``."""
        self.adaptation.set_mode(model.backbone if isinstance(model, Classifier) else model)
        if self._cosine is not None:
            self._cosine.restrict(classes)

    def conclude(self, model: nn.Module) -> None:
        """Give an adapted model the form that it keeps."""
        fold(model.backbone if isinstance(model, Classifier) else model, self.adaptation)
        if self._pretrained is None:
            return
        assert isinstance(model, Classifier)
        weight = cast(Tensor, model.classifier.weight)
        pretrained = self._pretrained.to(weight.device)
        model.backbone = two_branches(pretrained, model.backbone, self._width, self._normalize)
        # Nobody reads what it gives: heads answer from the features that enter it.
        model.classifier = nn.Linear(2 * self._width, len(weight), device=weight.device)


def _linear(layer: nn.Module) -> nn.Linear:
    if isinstance(layer, nn.Linear):
        return layer
    raise ValueError(
        f"the classification layer is a {type(layer).__name__}: expected a torch.nn.Linear to put "
        "another one in its place"
    )


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
