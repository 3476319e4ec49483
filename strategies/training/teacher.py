"""The model as it was before an experience, and holding on to its features."""

from __future__ import annotations

import copy

import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn

from protocl.strategies.plugin.classifier_layer import FeatureFinder, one_sample
from protocl.strategies.plugin.feature_hook import FeatureHook, joined


class Teacher:
    """A frozen copy of a model, in evaluation mode, of which only the features are read.

    Taken at the start of an experience, it is the model that the experience before left behind:
    nothing but the model itself has to be kept in between.

    Args:
        model: the model to copy.
        layer: name of its classification layer; found by itself if None.
    """

    def __init__(self, model: nn.Module, layer: str | None = None) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._find = FeatureFinder(layer)

    @torch.no_grad()
    def features(self, x: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Features ``(N, D)`` of inputs ``(N, ...)``, without a graph.

        Args:
            x: inputs.
            tasks: task labels ``(N,)``, if there are any.
        """
        return self.trainable_features(x, tasks)

    def classifier(self) -> nn.Module:
        """The layer that features enter; known once features were read."""
        point = self._find.point
        assert point is not None, "features come first"
        return self.model.get_submodule(point.path)

    def trainable_features(self, x: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Features ``(N, D)`` of inputs ``(N, ...)``, with a graph to the inputs."""
        return read_features(self.model, x, tasks, self._find)


def read_features(
    model: nn.Module, x: Tensor, tasks: Tensor | None = None, find: FeatureFinder | None = None
) -> Tensor:
    """Features ``(N, D)`` of inputs ``(N, ...)`` as ``model`` is, with a graph if one is recorded.

    Args:
        model: any model whose classification layer can be found.
        x: inputs.
        tasks: task labels ``(N,)``, if there are any.
        find: tells where its features are; found anew if None.
    """
    hook, find = FeatureHook(differentiable=True), find or FeatureFinder()
    hook.open_at(model, find(model, one_sample(model, x, tasks)))
    try:
        avalanche_forward(model, x, tasks)
    finally:
        seen = hook.close()
    return joined(seen, tasks)


def feature_distillation(features: Tensor, old_features: Tensor) -> Tensor:
    """``|f(x) - f_old(x)|_F`` over the whole block: a scalar, with gradient 0 where both agree.

    The norm is neither squared nor averaged, so it grows with the square root of batch and width;
    weights from the literature hold for theirs (64 images in four orientations, 512 features).

    Args:
        features: ``(B, D)``.
        old_features: ``(B, D)``.

    Source: Zhu et al. 2021 (PASS), equation 7 in the form of the authors' code.
    """
    with torch.autocast(features.device.type, enabled=False):
        wide = torch.promote_types(features.dtype, torch.float32)
        return torch.linalg.vector_norm(features.to(wide) - old_features.detach().to(wide))
