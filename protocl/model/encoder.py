"""Features of whatever samples a model is given: files, pictures, arrays, tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from protocl.backbones import Backbone, BackboneConfig
from protocl.backbones.build import build_unscaled
from protocl.backbones.features import extract
from protocl.backbones.layers.scale import standardised
from protocl.data.pictures import pixels_of, read_picture
from protocl.data.readers.in_order import read_in_order
from protocl.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = 3
_AT_ONCE = 256
"""Pictures that are read before they are encoded."""


class Encoder:
    """A backbone, and what becomes of a sample before it.

    Samples are image files (paths), PIL pictures, or arrays and tensors: ``(N, C, H, W)``, or
    ``(N, H, W, C)`` with 1 or 3 channels, uint8 in 0..255 or floating point in [0, 1]; or
    vectors ``(N, D)`` where the backbone takes such. Files and pictures become RGB (grey where
    the backbone takes one channel), are resized so that their shorter side is that of ``shape``,
    and their middle is cut out.

    Args:
        backbone: gives features ``(N, D)``.
        shape: one sample as the backbone is given it, ``(C, H, W)`` or ``(D,)``; None to take it
            from the first samples.
        batch_size: samples a forward pass, of which features depend in their last bits; None for
            a size that suits images and device.
    """

    def __init__(
        self,
        backbone: Backbone,
        shape: Sequence[int] | None = None,
        *,
        batch_size: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.shape = None if shape is None else tuple(shape)
        self.batch_size = batch_size
        self._measures = False  # deviations, of the first samples

    @classmethod
    def of(
        cls,
        backbone: str | BackboneConfig | Backbone,
        samples: Any,
        *,
        batch_size: int | None = None,
    ) -> Encoder:
        """The encoder that a name, a configuration or a module means.

        Args:
            backbone: as users give it.
            samples: the first ones, for whose shape a backbone is built that does not resize them,
                and whose deviations become those of ``layer_scale="std"``.
            batch_size: as for the class.

        Raises:
            ConfigError, DataError: as :func:`protocl.backbones.build_backbone`.
            TypeError: the backbone is none of these.
        """
        if isinstance(backbone, Backbone):
            return cls(backbone, batch_size=batch_size)
        config = BackboneConfig(name=backbone) if isinstance(backbone, str) else backbone
        if not isinstance(config, BackboneConfig):
            raise TypeError(
                f"backbone={backbone!r}: expected a name (protocl list backbones), a "
                "BackboneConfig, or a protocl.backbones.Backbone around your network"
            )
        encoder = cls(_built(config, samples), batch_size=batch_size)
        encoder._measures = config.layer_scale == "std"
        return encoder

    def __call__(self, samples: Any) -> Tensor:
        """Features ``(N, D)`` float32, on the CPU.

        Raises:
            DataError: a file is no image, or samples have another shape than the first ones.
            ValueError: an image has another range than the backbone takes.
        """
        samples = listed(samples)
        if hasattr(samples, "__len__") and not len(samples):
            raise ValueError("no samples: expected at least one image, or one row of features")
        parts = [self._encode(batch) for batch in self._batches(samples)]
        features = torch.cat(parts)
        if self._measures:
            features, self._measures = standardised(self.backbone, features), False
        return features

    def _encode(self, batch: Tensor) -> Tensor:
        if self.shape is None:
            self.shape = tuple(batch.shape[1:])
        if tuple(batch.shape[1:]) != self.shape:
            images = len(self.shape) == 3 and batch.ndim == 4
            hint = "; give PIL pictures or files, which are resized" if images else ""
            raise DataError(
                f"samples have shape {tuple(batch.shape[1:])}: expected {self.shape}, as those "
                f"that this model has learned from{hint}"
            )
        return extract(self.backbone, batch, batch_size=self.batch_size, progress=False)

    def _batches(self, samples: Any) -> Iterator[Tensor]:
        if is_pictures(samples):
            pictures = list(samples)
            for start in range(0, len(pictures), _AT_ONCE):
                yield self._read(pictures[start : start + _AT_ONCE])
        else:
            yield as_batch(samples)

    def _read(self, pictures: Sequence[str | Path | Image]) -> Tensor:
        shape = self.shape or self._native()
        strange = {type(each).__name__ for each in pictures if not _is_picture(each)}
        if strange:
            raise DataError(
                f"samples are pictures and {', '.join(sorted(strange))}: expected all of one kind, "
                "image files and PIL pictures, or one array"
            )
        if shape is not None and len(shape) != 3:
            raise DataError(
                f"this model takes vectors of {shape[0]} features, not pictures: give an array "
                f"(N, {shape[0]})"
            )
        channels, side = (CHANNELS, None) if shape is None else (shape[0], shape[1:])

        def pixels(picture: str | Path | Image) -> Tensor:
            return pixels_of(read_picture(picture), side, channels)

        # One picture may be there twice, and no two threads may decode it.
        files = all(isinstance(each, str | Path) for each in pictures)
        read = list((read_in_order if files else map)(pixels, pictures))
        sizes = {tuple(image.shape) for image in read}
        if len(sizes) > 1:
            raise DataError(
                f"pictures have sizes {sorted(sizes)[:3]}: give the backbone an image_size, to "
                "which they are then resized"
            )
        return torch.stack(read)

    def _native(self) -> tuple[int, ...] | None:
        """The shape of images that the backbone would resize others to."""
        size = self.backbone.image_size
        return None if size is None else (self.backbone.channels or CHANNELS, size, size)


def listed(samples: Any) -> Any:
    """Samples with a length: one picture as a list, a column of files as an array."""
    if isinstance(samples, str | Path) or hasattr(samples, "convert"):
        return [samples]
    if isinstance(samples, Iterator):
        return list(samples)
    column = hasattr(samples, "to_numpy") and getattr(samples, "ndim", 0) == 1
    return samples.to_numpy() if column else samples  # pandas' and others' columns


def is_pictures(samples: Any) -> bool:
    """Whether samples are files or PIL pictures rather than numbers; they are :func:`listed`."""
    several = isinstance(samples, list | tuple) or (
        isinstance(samples, np.ndarray) and samples.ndim == 1
    )
    if not several or not len(samples):
        return False
    return _is_picture(samples[0])


def _is_picture(sample: Any) -> bool:
    return isinstance(sample, str | Path) or hasattr(sample, "convert")


def as_batch(samples: Any) -> Tensor:
    """Arrays or tensors as the backbone takes them: uint8 or float32, channels first.

    Raises:
        ValueError: they are neither images nor vectors, or not of numbers.
    """
    numbers = samples if isinstance(samples, Tensor) else _numbers(samples)
    if numbers.ndim not in (2, 4):
        raise ValueError(
            f"samples have shape {tuple(numbers.shape)}: expected images (N, C, H, W) or "
            "(N, H, W, C), or vectors (N, D)"
        )
    if numbers.ndim == 4 and numbers.shape[1] not in (1, 3) and numbers.shape[3] in (1, 3):
        numbers = numbers.permute(0, 3, 1, 2)
    if numbers.dtype == torch.uint8:
        return numbers.contiguous()
    if not numbers.is_floating_point():
        raise ValueError(
            f"samples are of {numbers.dtype}: expected uint8 in 0..255 or floating point in [0, 1]"
        )
    return numbers.to(torch.float32).contiguous()


def _numbers(samples: Any) -> Tensor:
    try:
        return torch.from_numpy(np.asarray(samples))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"samples are no array of numbers ({error}): expected image files, PIL pictures, or "
            "arrays of images of one size, all of one kind"
        ) from error


def on_host(values: Any) -> Any:
    """What scikit-learn can read: tensors as arrays, everything else as it is."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _built(config: BackboneConfig, samples: Any) -> Backbone:
    """The backbone for samples, the same whatever the sizes of pictures that it resizes."""
    shape = _first_shape(samples)
    if config.image_size is not None and len(shape) == 3:
        shape = (shape[0], config.image_size, config.image_size)
    backbone = build_unscaled(config, shape, config.seed or 0)
    if backbone.image_size is not None and backbone.origin is not None and len(shape) == 3:
        # A size of the backbone's own choice: what it was given plays no part in the network.
        seen = (shape[0], backbone.image_size, backbone.image_size)
        backbone.origin = replace(backbone.origin, input_shape=seen)
    return backbone


def _first_shape(samples: Any) -> tuple[int, ...]:
    if not is_pictures(samples):
        return tuple(as_batch(samples).shape[1:])
    return tuple(pixels_of(read_picture(samples[0])).shape)
