"""What every backbone has: preprocessing, a network, a width, an identity."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from protocl.backbones.layers.multi_layer import MultiLayer
from protocl.data.arrays import as_images, tensor_hash

Precision = Literal["float32", "bfloat16"]
_STANDARDISED = 20.0
"""No image that was standardised by its mean and deviation has values beyond this."""
_ROUNDING = 0.01
"""By which resizing and augmentation may leave a range."""


@dataclass(frozen=True)
class Origin:
    """What a backbone was built from, so that it can be built again for its weights.

    Attributes:
        settings: those of its :class:`protocl.backbones.BackboneConfig`.
        input_shape: one sample.
        adapted: the adaptation whose weights were inserted.
    """

    settings: dict[str, Any]
    input_shape: tuple[int, ...]
    adapted: str = "none"


class Backbone(nn.Module):
    """A network behind its own preprocessing, which knows what it takes.

    Args:
        network: maps preprocessed input to features ``(N, feature_dim)``.
        feature_dim: width of the features.
        architecture: says, with the class and weights, what the network computes: name, width,
            stem. Part of the fingerprint.
        image_size: side in pixels to which images are resized, with antialiasing; None leaves them
            as they are.
        interpolation: how; bicubic overshoot is cut back to [0, 1].
        mean: per channel, subtracted after resizing; in units of [0, 1].
        std: per channel, divided by after that.
        channels: channels that the network takes; grey images are repeated to fill them.
        precision: ``"bfloat16"`` runs the network's products in half precision with channels-last
            images, two to three times as fast where the hardware has it; features are float32
            either way.

    Attributes:
        reader: what is read of the network instead of its own output
            (:func:`protocl.backbones.read_layers`), or None.
    """

    mean: Tensor
    std: Tensor
    origin: Origin | None = None
    """What it was built from, where that is known."""

    def __init__(
        self,
        network: nn.Module,
        feature_dim: int,
        *,
        architecture: str,
        image_size: int | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self._range_seen = False
        self._weighs = next(network.parameters(), None) is not None
        self.network = network
        self.feature_dim = feature_dim
        self.architecture = architecture
        self.image_size = image_size
        self.interpolation = interpolation
        self.channels = channels
        self.precision: Precision = precision
        self.reader: MultiLayer | None = None
        self.normalized = mean is not None or std is not None
        if self.normalized:
            for name, values in (("mean", mean or (0.0,)), ("std", std or (1.0,))):
                value = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
                self.register_buffer(name, value, persistent=False)

    def preprocess(self, x: Tensor) -> Tensor:
        """Scale bytes to [0, 1], resize, repeat grey channels and normalise ``(N, C, H, W)``.

        Raises:
            ValueError: the images have another range than the network was made for.
        """
        if x.ndim == 4:
            x = as_images(x)
            self._require_range(x)
        if self.image_size is not None and x.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            x = F.interpolate(x, size, mode=self.interpolation, antialias=True, align_corners=False)
            x = x.clamp(0, 1) if self.interpolation == "bicubic" else x
        if self.channels is not None and x.shape[1] == 1 and self.channels > 1:
            x = x.expand(-1, self.channels, -1, -1)
        return (x - self.mean) / self.std if self.normalized else x

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, feature_dim)`` of images ``(N, C, H, W)`` or of vectors.

        Images are uint8 in 0..255 or floating point in [0, 1].
        """
        x = self.preprocess(x)
        if self.precision == "float32":
            return self._features(x)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16):
            features = self._features(x)
        return features.float()

    def _features(self, x: Tensor) -> Tensor:
        if self.reader is not None:
            return self.reader.read(self.network, x)
        features: Tensor = self.network(x)
        return features

    @property
    def value_range(self) -> tuple[float, float]:
        """Least and largest value of images in floating point.

        A network that normalises takes [0, 1], or its mean and deviation are not those of the
        images. One that does not may be trained on standardised images, but not on 0..255.
        """
        if not self._weighs:
            return -math.inf, math.inf
        least, most = (0.0, 1.0) if self.normalized else (-_STANDARDISED, _STANDARDISED)
        return least - _ROUNDING, most + _ROUNDING

    def _require_range(self, x: Tensor) -> None:
        """Refuse images of another scale; elsewhere than on a CPU only in the first batch."""
        if not self._weighs or not x.numel() or torch.compiler.is_compiling():
            return
        if self._range_seen and x.device.type != "cpu":
            return
        self._range_seen = x.device.type != "cpu"
        least, most = self.value_range
        low, high = (float(value) for value in x.detach().aminmax())
        if not (least <= low and high <= most):
            raise ValueError(
                f"{self.architecture}: images have values in {low:g}..{high:g}; expected "
                + ("[0, 1], which it normalises itself" if self.normalized else "[0, 1]")
                + ": give uint8 pixels, or divide those of 0..255 by 255 and do not standardise"
            )

    def preprocessing(self) -> dict[str, Any]:
        """Settings of :meth:`preprocess` by name, those that are used."""
        found: dict[str, Any] = {}
        if self.image_size is not None:
            found |= {"image_size": self.image_size, "interpolation": self.interpolation}
        if self.channels is not None:
            found["channels"] = self.channels
        if self.normalized:
            found |= {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        return found

    def describe(self) -> str:
        """Architecture and preprocessing in one line."""
        size = "native size" if self.image_size is None else f"resized to {self.image_size}"
        size += " (bicubic)" if self.interpolation == "bicubic" else ""
        size += "" if self.precision == "float32" else f", in {self.precision}"
        size += "" if self.reader is None else f", {self.reader.describe()}"
        if not self.normalized:
            return f"{self.architecture}, {size}"
        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return f"{self.architecture}, {size}, mean {mean}, std {std}"


class Classifier(nn.Module):
    """A backbone and the layer that classifies its features.

    Args:
        backbone: gives features ``(N, D)``.
        classifier: gives logits ``(N, C)`` from them.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Classify samples ``(N, ...)``: logits ``(N, C)``."""
        logits: Tensor = self.classifier(self.backbone(x))
        return logits


def fingerprint(backbone: nn.Module) -> str:
    """SHA-256 (hexadecimal) of what a backbone computes.

    It covers the classes of all its modules, the architecture and preprocessing of a
    :class:`Backbone`, and every parameter and buffer by name, type, shape and content. Device and
    train/eval mode do not count.
    """
    digest = hashlib.sha256()
    for name, module in backbone.named_modules():
        kind = type(module)
        digest.update(f"{name}:{kind.__module__}.{kind.__qualname__}\n".encode())
        if isinstance(module, Backbone):
            digest.update(f"{module.describe()}\n".encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name}:{tensor_hash(tensor)}\n".encode())
    return digest.hexdigest()
