"""Backbones on disk: how to build one again, and its weights where they are not installed."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter
from safetensors import SafetensorError

from protocl.backbones import (
    Backbone,
    BackboneConfig,
    fingerprint,
    save_weights,
)
from protocl.backbones.adaptation import adapt
from protocl.backbones.base import Origin
from protocl.backbones.branches import Branches, two_branches
from protocl.backbones.build import build_unscaled
from protocl.backbones.layers.scale import standardised
from protocl.errors import ConfigError, DataError, FingerprintError
from protocl.io.names import WEIGHTS_FILE

_LARGEST = 2**29
"""Numbers in one sample: some more than the largest image that Pillow takes for honest."""


def of_a_sample(shape: list[int]) -> list[int]:
    """The shape of a sample, as a description has it.

    Raises:
        ValueError: it is of none.
    """
    if len(shape) not in (1, 3) or math.prod(shape) > _LARGEST:
        raise ValueError(f"expected the shape of an image (C, H, W) or a vector (D,), got {shape}")
    return shape


def inside(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a backbone that takes its weights from nowhere but its model and its package.

    Raises:
        ValueError: they name another place, or are no settings.
    """
    strange = settings.keys() - {field.name for field in fields(BackboneConfig)}
    if strange:
        raise ValueError(f"unknown settings {sorted(strange)}")
    config = TypeAdapter(BackboneConfig).validate_json(json.dumps(settings), strict=True)
    if config.checkpoint is not None:
        raise ValueError(f"a checkpoint outside of the model, {config.checkpoint}")
    if config.name.startswith("timm/") and config.pretrained:
        raise ValueError(f"weights of {config.name}, which would be downloaded")
    return settings


class Part(BaseModel):
    """A backbone that is built by its name.

    Attributes:
        settings: of its :class:`protocl.backbones.BackboneConfig`.
        input_shape: one sample.
        adapted: the adaptation whose weights are inserted.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    settings: Annotated[dict[str, Any], AfterValidator(inside)]
    input_shape: Annotated[list[PositiveInt], AfterValidator(of_a_sample)]
    adapted: str

    def unread(self) -> Part:
        """The same matrices, without what is read of their layers or merged into them."""
        plain = {"layers": None, "layer_scale": "none", "fold_batchnorm": False}
        return self.model_copy(update={"settings": self.settings | plain})

    def build(self) -> Backbone:
        """The backbone, without the weights that it has on disk."""
        config = BackboneConfig(**self.settings)
        backbone = build_unscaled(config, tuple(self.input_shape), config.seed or 0)
        if self.adapted != "none":
            adapt(backbone, self.adapted)
        if config.layer_scale == "std":
            standardised(backbone, torch.zeros(1, backbone.feature_dim))  # room for the deviations
        return backbone


class KeptBackbone(BaseModel):
    """What a model's description says of its backbone.

    Attributes:
        architecture: name for people; of a network of a user's own, all that is known of it.
        fingerprint: of the whole.
        parts: what it is built from: one; two branches; or none, for a network that a user gives.
        normalize_branches: as for :class:`.Branches`.
        weights: ``"file"`` beside the description, or ``"installed"``: they come with the package
            that builds it, or there are none.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    architecture: str
    fingerprint: str
    parts: Annotated[list[Part], Field(max_length=2)]
    normalize_branches: bool = False
    weights: Literal["file", "installed"]

    @classmethod
    def of(cls, backbone: Backbone, there: KeptBackbone | None = None) -> KeptBackbone:
        """The description of ``backbone``.

        Args:
            backbone: of the model.
            there: what a model in the folder already says, which is taken where it is of the same
                backbone: whether weights are installed takes a while to find out.
        """
        network = backbone.network
        branches = [network.pretrained, network.adapted] if isinstance(network, Branches) else []
        origins = [getattr(part, "origin", None) for part in branches or [backbone]]
        parts = [_part(origin) for origin in origins if origin is not None]
        whole = len(parts) == len(origins)
        kept = cls(
            architecture=backbone.architecture,
            fingerprint=fingerprint(backbone),
            parts=parts if whole else [],
            normalize_branches=isinstance(network, Branches) and network.normalize,
            weights="file",
        )
        installed = kept.model_copy(update={"weights": "installed"})
        if there in (kept, installed):
            return there
        return installed if kept._is_installed() else kept

    def _is_installed(self) -> bool:
        """Whether building it gives its weights, whatever the seed."""
        if len(self.parts) != 1 or self.parts[0].settings["name"].startswith("timm/"):
            return False
        config = self.parts[0].settings
        other = self.parts[0].model_copy(
            update={"settings": {**config, "seed": (config["seed"] or 0) + 1}}
        )
        return fingerprint(other.build()) == self.fingerprint

    def save(self, backbone: Backbone, folder: Path) -> None:
        """Write the weights of ``backbone`` into ``folder``, if they are to lie there."""
        if self.weights == "file":
            save_weights(backbone, folder / WEIGHTS_FILE)

    def load(self, folder: Path, given: Backbone | None = None) -> Backbone:
        """The backbone, in evaluation mode.

        Args:
            folder: of the model.
            given: the user's own network, whose weights are replaced by those of the folder.

        Raises:
            DataError: weights are absent or do not fit, or a package of them is not installed.
            FingerprintError: the backbone is not what it was.
        """
        backbone = self._built(folder) if given is None else given
        if self.weights == "file":
            _load(backbone, folder / WEIGHTS_FILE)
        if fingerprint(backbone) != self.fingerprint:
            raise FingerprintError(
                f"{folder}: {backbone.describe()} is not the backbone {self.architecture} of this "
                "model: another version of its package, or other settings"
            )
        return backbone.eval()

    def _built(self, folder: Path) -> Backbone:
        if not self.parts:
            raise DataError(
                f"{folder}: its backbone {self.architecture} was a network of its owner's; give it "
                "as load_model(PATH, backbone=...)"
            )
        try:
            if self.weights == "file":
                self._require_size(folder / WEIGHTS_FILE)
            built = [part.build() for part in self.parts]
        except ConfigError as error:
            raise DataError(f"{folder}: its backbone cannot be built: {error}") from error
        if len(built) == 1:
            return built[0]
        pretrained, adapted = built
        return two_branches(pretrained, adapted, adapted.feature_dim, self.normalize_branches)

    def _require_size(self, weights: Path) -> None:
        """Refuse a width with which the backbone would be larger than its file of weights."""
        parts = [part.unread() for part in self.parts if part.settings.get("width") is not None]
        with torch.device("meta"):  # allocates nothing
            states = [part.build().state_dict().values() for part in parts]
        needed = sum(tensor.nbytes for state in states for tensor in state if tensor.ndim > 1)
        if not weights.is_file() or needed > weights.stat().st_size:
            raise DataError(
                f"{weights} is absent or smaller than the {needed} bytes of its backbone: restore "
                "it from a copy"
            )


def _part(origin: Origin) -> Part:
    settings = {**origin.settings, "checkpoint": None, "adapted": "none"}
    if origin.settings["checkpoint"] is not None or settings["name"].startswith("timm/"):
        settings["pretrained"] = False  # its weights lie in the file
    adapted = origin.adapted if origin.adapted != "finetune" else "none"
    return Part(settings=settings, input_shape=list(origin.input_shape), adapted=adapted)


def _load(backbone: Backbone, path: Path) -> None:
    try:
        backbone.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be read as weights of {backbone.describe()}: {error}"
        ) from error
