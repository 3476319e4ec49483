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
    filters = config.width or 64
    return _build("conv4", config, input_shape, [filters] * BLOCKS, pools=BLOCKS)


def build_conv4_map(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """Build four blocks of which the last does not pool: a 28x28 image gives 3x3x64 features."""
    filters = config.width or 64
    return _build("conv4_map", config, input_shape, [filters] * BLOCKS, pools=BLOCKS - 1)


def build_conv4_wide(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """As ``conv4_map``, with twice the channels in the last two blocks.

    They work on a 16th of the pixels and less, so that the width costs little time: a 28x28 image
    gives 3x3x128 features.
    """
    filters = config.width or 64
    widths = [filters, filters, 2 * filters, 2 * filters]
    return _build("conv4_wide", config, input_shape, widths, pools=BLOCKS - 1)


def _build(
    name: str,
    config: BackboneConfig,
    input_shape: tuple[int, ...],
    widths: list[int],
    pools: int,
) -> Backbone:
    refuse(config, "pretrained")
    channels, height, width = require_images(config, input_shape)
    layers: list[nn.Module] = []
    for block, filters in enumerate(widths):
        pool = block < pools and min(height, width) >= 2
        layers.append(_block(channels, filters, pool))
        height, width = (height // 2, width // 2) if pool else (height, width)
        channels = filters
    return Backbone(
        nn.Sequential(*layers, nn.Flatten()),
        channels * height * width,
        architecture=f"{name}(width={widths[0]}, input={tuple(input_shape)})",
        image_size=config.image_size,
    )


def _block(channels: int, filters: int, pool: bool) -> nn.Sequential:
    layers = [
        nn.Conv2d(channels, filters, kernel_size=3, padding=1),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
