"""A small vision transformer, of a size that a CPU can train."""

from __future__ import annotations

from protocl.backbones.base import Backbone
from protocl.backbones.build import BackboneConfig, refuse, require_images
from protocl.backbones.timm_models import import_timm
from protocl.errors import ConfigError

WIDTH = 192
HEAD_WIDTH = 64
DEPTH = 6
PATCH = 4


def build_vit(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """timm's ``VisionTransformer`` with six blocks on patches of 4x4 pixels, from scratch.

    ``width`` features (192), a multiple of 64: one attention head for every 64. They are the
    average over the patches, which small transformers learn better from than from a class token.

    Source: Dosovitskiy et al., An image is worth 16x16 words, 2021; the average: Beyer et al.,
    Better plain ViT baselines for ImageNet-1k, 2022.

    Raises:
        ConfigError: the width is no multiple of 64, or the images' sides are not multiples of 4.
        DataError: timm is not installed.
    """
    refuse(config, "pretrained")
    channels, height, width = require_images(config, input_shape)
    features = config.width or WIDTH
    if features % HEAD_WIDTH:
        raise ConfigError(f"backbone.width={features}: expected a multiple of {HEAD_WIDTH}")
    if height % PATCH or width % PATCH:
        raise ConfigError(
            f"backbone 'vit' cuts images into patches of {PATCH}x{PATCH} pixels, which "
            f"{height}x{width} is no multiple of: give backbone.image_size="
            f"{max(height, PATCH) // PATCH * PATCH}"
        )
    network = import_timm(config.name).models.VisionTransformer(
        img_size=(height, width),
        patch_size=PATCH,
        in_chans=channels,
        num_classes=0,
        global_pool="avg",
        class_token=False,
        embed_dim=features,
        depth=DEPTH,
        num_heads=features // HEAD_WIDTH,
    )
    return Backbone(
        network,
        features,
        architecture=f"vit(width={features}, input={tuple(input_shape)})",
        image_size=config.image_size,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )
