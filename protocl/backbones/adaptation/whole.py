"""Adaptations of networks of any kind."""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from protocl.backbones.adaptation.base import Adaptation


class Unchanged(Adaptation):
    """Nothing: the backbone is used as given."""

    def applies(self, module: nn.Module) -> bool:
        return True

    def insert(self, module: nn.Module) -> list[nn.Parameter]:
        return []


class FineTuning(Adaptation):
    """Train all weights that take gradients."""

    def applies(self, module: nn.Module) -> bool:
        return True

    def insert(self, module: nn.Module) -> list[nn.Parameter]:
        return [parameter for parameter in module.parameters() if parameter.requires_grad]


class BatchNormStatistics(Adaptation):
    """Means and variances of BatchNorm, estimated anew without gradients.

    They become the average over all batches that are passed, whatever their order. APER's code
    takes an exponential average that starts at zero, which needs many passes to be forgotten.
    Everything but BatchNorm stays in evaluation mode.

    Source: Zhou et al., Revisiting class-incremental learning with pre-trained models, IJCV 2024,
    section 4.2 ("batch normalization tuning").
    """

    def applies(self, module: nn.Module) -> bool:
        return bool(batch_norms(module))

    def insert(self, module: nn.Module) -> list[nn.Parameter]:
        for layer in batch_norms(module):
            layer.reset_running_stats()
            layer.momentum = cast(float, None)  # torch: the cumulative average
        return []

    def set_mode(self, module: nn.Module) -> None:
        module.eval()
        for layer in batch_norms(module):
            layer.train()


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The layers of BatchNorm that keep running statistics."""
    layers = (layer for layer in module.modules() if isinstance(layer, _BatchNorm))
    return [layer for layer in layers if layer.track_running_stats]
