"""A multilayer perceptron on pixels or on given features."""

from __future__ import annotations

import math

from torch import nn

from protocl.backbones.base import Backbone
from protocl.backbones.build import BackboneConfig, refuse

_DEFAULT_WIDTH = 256


def build_mlp(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """Build two linear layers and a ReLU: ``width`` (256) hidden units, half as many features.

    Images are scaled from [0, 1] to [-1, 1] first. With the default width this is the encoder of
    ProtoCL on MNIST and Fashion-MNIST: 784-256-128.

    Source: Kessler et al. 2023, "On sequential Bayesian inference for continual learning", and its
    code.
    """
    refuse(config, "pretrained", "image_size")
    hidden = config.width or _DEFAULT_WIDTH
    features = max(1, hidden // 2)
    is_image = len(input_shape) == 3
    return Backbone(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(input_shape), hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, features),
        ),
        features,
        architecture=f"mlp(width={hidden}, input={tuple(input_shape)})",
        mean=(0.5,) if is_image else None,
        std=(0.5,) if is_image else None,
    )
