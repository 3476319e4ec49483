"""Any model of the library timm."""

from __future__ import annotations

from typing import Any

import torch

from protocl.backbones.base import Backbone
from protocl.backbones.build import BackboneConfig, refuse, require_images
from protocl.errors import ConfigError, DataError
from protocl.registry import unknown_name


def build_timm(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """The timm model ``NAME`` of ``timm/NAME``, without its classification layer.

    Images are resized to ``image_size`` (the model's own if None; no crop) and normalised as the
    model's data configuration says; grey images are repeated over the three channels.

    Raises:
        ConfigError: timm has no such model.
        DataError: timm is not installed, or pretrained weights can be neither found in the local
            cache of the Hugging Face hub nor downloaded.
    """
    refuse(config, "width")
    require_images(config, input_shape)
    timm = import_timm(config.name)
    name = config.name.removeprefix("timm").removeprefix("/")
    if not name:
        raise ConfigError("backbone 'timm' needs a model: backbone=timm/NAME, as in timm/resnet18")
    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models())
    settings = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": 0}
    if config.image_size is not None and settings.fixed_input_size:
        options["img_size"] = config.image_size
    if config.pretrained and config.checkpoint is None:
        network = _pretrained(timm, name, options)
    else:
        network = timm.create_model(name, **options)
    preprocessing = timm.data.resolve_model_data_config(network)
    size = config.image_size or preprocessing["input_size"][-1]
    return Backbone(
        network,
        _feature_dim(network, size),
        architecture=f"timm/{name}",
        image_size=size,
        interpolation="bicubic" if preprocessing["interpolation"] == "bicubic" else "bilinear",
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        channels=3,
    )


def import_timm(backbone: str) -> Any:
    """The library timm, for the backbone of that name.

    Raises:
        DataError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise DataError(
            f"backbone '{backbone}' needs timm, which is not installed: pip install timm"
        ) from error
    return timm


def _pretrained(timm: Any, name: str, options: dict[str, Any]) -> torch.nn.Module:
    source = timm.get_pretrained_cfg(name)
    if not source.has_weights:
        raise ConfigError(
            f"backbone.pretrained=true: timm has no pretrained weights for '{name}'; set it to "
            "false, or give backbone.checkpoint=FILE"
        )
    try:
        network: torch.nn.Module = timm.create_model(name, pretrained=True, **options)
    except OSError as error:  # the hub's errors for a missing network and a missing file
        place, file = _published_at(source)
        raise DataError(
            f"the weights of timm/{name} are not in the local cache and could not be downloaded "
            f"({type(error).__name__}); on a machine with a network fetch {file} from {place}, "
            f"copy it here, and give backbone.checkpoint={file}; a cache of the hub that was "
            "filled elsewhere is found by HF_HOME=FOLDER"
        ) from error
    return network


def _published_at(source: Any) -> tuple[str, str]:
    """Where a model's weights are published, and the name of their file."""
    if source.hf_hub_id:
        return f"https://huggingface.co/{source.hf_hub_id}", "model.safetensors"
    return source.url, source.url.rpartition("/")[2]


def _feature_dim(network: torch.nn.Module, size: int) -> int:
    """Width of the features, by trying: no attribute of timm's models tells it for all of them."""
    with torch.no_grad():
        features = network.eval()(torch.zeros(1, 3, size, size))
    network.train()
    if features.ndim != 2:
        raise ConfigError(
            f"the model gives features of shape {tuple(features.shape)} for one image; expected "
            "(1, D)"
        )
    return int(features.shape[1])
