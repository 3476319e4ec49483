"""The configuration of a backbone, and the way from its name to the module."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

import torch

from protocl.backbones.adaptation import adapt, find_adaptation, fold
from protocl.backbones.base import Backbone, Origin, Precision
from protocl.backbones.fit import fit_for
from protocl.backbones.layers.choice import read_layers
from protocl.backbones.layers.folding import fold_batchnorm
from protocl.backbones.layers.multi_layer import Scaling
from protocl.backbones.weights import has_statistics, load_weights
from protocl.errors import ConfigError
from protocl.registry import BACKBONES


@dataclass
class BackboneConfig:
    """Settings of a feature extractor (configuration group ``backbone``).

    Attributes:
        name: registered backbone (``protocl list backbones``), ``timm/NAME`` for a model of the
            library timm, or ``auto`` for what fits the samples (:mod:`.fit`).
        checkpoint: local file of weights (``.safetensors``, or a ``state_dict`` saved by
            ``torch.save``), or the folder of a run that trained some, loaded into it.
        adapted: ``strategy.session.adapt`` of the run that wrote ``checkpoint``, where it inserted
            weights.
        pretrained: start from the published weights; None for the backbone's own choice: those of
            ``efficientnet_lite0`` and its like are taken, those of timm only if asked for.
        width: channels of the first stage, for backbones that come in several.
        image_size: side in pixels to which images are resized inside the module; None for the
            backbone's own choice.
        seed: seed of the initial weights; None takes the seed of the run.
        precision: ``"float32"``, or ``"bfloat16"`` for products in half precision.
        layers: features are the averages of the last so many blocks, of ``all``, or of the layers
            with these names (:func:`protocl.backbones.read_layers`); None for the network's own.
        fold_batchnorm: merge each BatchNorm into the convolution before it, which is faster and
            changes features in their last bits, and the fingerprint; for networks that stay as
            they are (:func:`.fold_batchnorm`).
        layer_scale: ``"none"``; ``"unit"`` for unit length in each of the layers; ``"std"`` to
            divide by the deviations of the first experience (in a classifier, of the samples that
            it is fitted to first).
    """

    name: str = "identity"
    checkpoint: str | None = None
    adapted: str = "none"
    pretrained: bool | None = None
    width: int | None = None
    image_size: int | None = None
    seed: int | None = None
    precision: str = "float32"
    layers: Any = None
    layer_scale: str = "none"
    fold_batchnorm: bool = False


def build_backbone(config: BackboneConfig, input_shape: tuple[int, ...], seed: int) -> Backbone:
    """Build the backbone that ``config`` names, on the CPU and in training mode.

    Initial weights are drawn from a fork of the global random state, which stays as it was.

    Args:
        config: name and options.
        input_shape: one sample: ``(C, H, W)`` or ``(D,)``.
        seed: seed of the run, used when ``config.seed`` is None.

    Raises:
        ConfigError: unknown name, an option that this backbone does not have, or samples that it
            does not take; or ``layer_scale`` is ``std``, for which there are no samples here.
        DataError: an extra that is not installed, or weights that are absent or do not fit.
    """
    if config.layer_scale == "std":
        raise ConfigError(
            "backbone.layer_scale=std: deviations are measured by protocl run on a frozen backbone "
            "without adaptation, and by PrototypeClassifier; elsewhere take unit or none"
        )
    return build_unscaled(config, input_shape, seed)


def build_unscaled(config: BackboneConfig, input_shape: tuple[int, ...], seed: int) -> Backbone:
    """As :func:`build_backbone`, with layers of ``layer_scale=std`` still as they are.

    Whoever calls it measures their deviations and calls :func:`.standardise`.
    """
    config = fit_for(config, input_shape)
    for key in ("width", "image_size"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise ConfigError(f"backbone.{key}={value}: expected a number of at least 1")
    if config.precision not in get_args(Precision):
        raise ConfigError(
            f"backbone.precision={config.precision}: expected {' or '.join(get_args(Precision))}"
        )
    builder = BACKBONES.get(config.name.split("/")[0])
    with torch.random.fork_rng():
        torch.manual_seed(seed if config.seed is None else config.seed)
        backbone: Backbone = builder(config, input_shape)
    backbone.precision = cast(Precision, config.precision)
    backbone.origin = Origin(asdict(config), tuple(input_shape))
    _read_layers(backbone, config)
    if config.adapted != "none":
        _insert_adaptation(backbone, config)
    _load(backbone, config, input_shape)
    return backbone


def _load(backbone: Backbone, config: BackboneConfig, input_shape: tuple[int, ...]) -> None:
    """Weights of a file that was written before BatchNorm was merged, or afterwards."""
    file = config.checkpoint
    merged = file is not None and config.fold_batchnorm and not has_statistics(file)
    if file is not None and not merged:
        load_weights(backbone, file)
    if config.fold_batchnorm:
        fold_batchnorm(backbone, input_shape)
    if file is not None and merged:
        load_weights(backbone, file)


def _read_layers(backbone: Backbone, config: BackboneConfig) -> None:
    scaling = config.layer_scale
    if scaling not in get_args(Scaling):
        raise ConfigError(
            f"backbone.layer_scale={scaling}: expected one of {', '.join(get_args(Scaling))}"
        )
    if config.layers is None:
        if scaling != "none":
            raise ConfigError(
                f"backbone.layer_scale={scaling} is of layers: give backbone.layers=all or a number"
            )
        return
    assert backbone.origin is not None
    scale = cast(Scaling, "none" if scaling == "std" else scaling)
    read_layers(backbone, config.layers, backbone.origin.input_shape, scaling=scale)


def _insert_adaptation(backbone: Backbone, config: BackboneConfig) -> None:
    if config.checkpoint is None:
        raise ConfigError(
            f"backbone.adapted={config.adapted} says what is in a file of weights: give "
            "backbone.checkpoint=FILE, or adapt in the run with strategy.session.adapt"
        )
    adapt(backbone, config.adapted)
    fold(backbone, find_adaptation(backbone, config.adapted))  # a file has what a session left
    backbone.requires_grad_(True)


def require_images(config: BackboneConfig, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of the images that the network sees.

    Raises:
        ConfigError: the samples are vectors, or have neither 1 nor 3 channels.
    """
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise ConfigError(
            f"backbone '{config.name}' takes images (C, H, W) with 1 or 3 channels; a sample here "
            f"is {tuple(input_shape)}; for vectors use backbone=identity"
        )
    channels, height, width = input_shape
    if config.image_size is not None:
        return channels, config.image_size, config.image_size
    return channels, height, width


def refuse(config: BackboneConfig, *keys: str) -> None:
    """Refuse options that a backbone does not have, instead of ignoring them.

    Raises:
        ConfigError: one of ``keys`` is set.
    """
    for key in keys:
        value = getattr(config, key)
        if value:
            raise ConfigError(
                f"backbone.{key}={value}: backbone '{config.name}' has no such option"
            )
