"""Two backbones side by side: as pre-trained, and as adapted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.backbones.base import Backbone


class Branches(nn.Module):
    """The features of both, one after the other.

    Args:
        pretrained: gives features ``(N, D)``.
        adapted: gives features ``(N, E)``.
        normalize: divide each one's feature vectors by their norm, or else the one whose features
            are longer decides.
    """

    def __init__(self, pretrained: nn.Module, adapted: nn.Module, normalize: bool = False) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.adapted = adapted
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, D + E)``."""
        both = [self.pretrained(x), self.adapted(x)]
        if self.normalize:
            both = [functional.normalize(features, dim=1) for features in both]
        return torch.cat(both, dim=1)


def two_branches(
    pretrained: nn.Module, adapted: nn.Module, feature_dim: int, normalize: bool = False
) -> Backbone:
    """The backbone that gives the features of both, ``(N, 2 * feature_dim)``.

    Source: Zhou et al., Revisiting class-incremental learning with pre-trained models, IJCV 2024,
    section 4.1; normalising is our own.
    """
    return Backbone(
        Branches(pretrained, adapted, normalize),
        2 * feature_dim,
        architecture=f"two branches{', each normalised' if normalize else ''}",
    )
