"""Which backbone is fit for samples of which nothing but the shape is known."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocl.backbones.build import BackboneConfig

logger = logging.getLogger(__name__)

AUTO = "auto"
"""``backbone=auto``: the choice of :func:`fit_for`."""
FOR_IMAGES, FOR_FEATURES = "efficientnet_lite0", "identity"


def fit_for(
    config: BackboneConfig, input_shape: Sequence[int], benchmark: str = "samples"
) -> BackboneConfig:
    """The configuration with a name in the place of ``auto``; of images it is said which.

    Args:
        config: any; one with another name stays as it is.
        input_shape: of a sample: ``(C, H, W)`` or ``(D,)``.
        benchmark: what the samples are called in messages.
    """
    if config.name != AUTO:
        return config
    if len(input_shape) == 1:
        return replace(config, name=FOR_FEATURES)
    logger.warning(
        "%s: its pictures are seen by backbone=%s, trained on ImageNet; backbone=NAME takes "
        "another network, backbone=identity their pixels",
        benchmark, FOR_IMAGES,
    )  # fmt: skip
    return replace(config, name=FOR_IMAGES)
