"""Networks whose layers are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from protocl.backbones import Backbone, BackboneConfig, build_backbone


def built(name: str, shape: tuple[int, ...] = (1, 28, 28), **options: Any) -> Backbone:
    return build_backbone(BackboneConfig(name=name, **options), shape, 0)


class Tokens(nn.Module):
    """Two blocks behind a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, 6))
        self.blocks = nn.ModuleList(_Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).tanh()


@torch.no_grad()
def pooled_by_hand(backbone: Backbone, images: Tensor) -> Tensor:
    """Averages behind ``layer1.1`` and ``layer3.0`` of a ResNet-18, and its own features."""
    net: Any = backbone.network
    first = net.layer1(net.relu(net.bn1(net.conv1(images))))
    second = net.layer3[0](net.layer2(first))
    parts = [first.mean((2, 3)), second.mean((2, 3)), backbone(images)]
    return torch.cat(parts, 1)
