"""Features that are given: the samples themselves."""

from __future__ import annotations

import math

from torch import nn

from protocl.backbones.base import Backbone
from protocl.backbones.build import BackboneConfig, refuse


def build_identity(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """Pass vectors ``(N, D)`` through and flatten images to ``(N, C * H * W)``."""
    refuse(config, "width", "pretrained", "image_size", "checkpoint")
    return Backbone(nn.Flatten(), math.prod(input_shape), architecture="identity")
