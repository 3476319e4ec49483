"""The four-block convolutional network of prototypical networks."""

from __future__ import annotations

from torch import nn

from protocl.backbones.base import Backbone
from protocl.backbones.build import BackboneConfig, refuse, require_images

BLOCKS = 4


def build_conv4(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """Four blocks of 3x3 convolution, batch normalisation, ReLU and 2x2 max-pooling.

    With ``width`` channels (64) in each block, a 28x28 image gives 64 features and an 84x84 image
    1,600. A block whose input is a single pixel (images below 16x16) does not pool.

    Source: Snell et al., Prototypical Networks for Few-shot Learning, 2017, section 3.1.
    """
    refuse(config, "pretrained")
    channels, height, width = require_images(config, input_shape)
    filters = config.width or 64
    layers: list[nn.Module] = []
    for block in range(BLOCKS):
        pool = min(height, width) >= 2
        layers.append(_block(channels if block == 0 else filters, filters, pool))
        height, width = (height // 2, width // 2) if pool else (height, width)
    return Backbone(
        nn.Sequential(*layers, nn.Flatten()),
        filters * height * width,
        architecture=f"conv4(width={filters}, input={tuple(input_shape)})",
        image_size=config.image_size,
    )


def _block(channels: int, filters: int, pool: bool) -> nn.Sequential:
    layers = [
        nn.Conv2d(channels, filters, kernel_size=3, padding=1),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
