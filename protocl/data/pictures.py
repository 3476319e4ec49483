"""One image file as RGB, whatever Pillow finds in it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from protocl.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_FILTERS = threading.Lock()
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
# Pillow gives their 16-bit grey values, scaled to 0..65535, as 32-bit integers.
_SIXTEEN_IN_32 = ("PNG", "PPM")


def read_picture(file: str | Path | Image) -> Image:
    """The first frame of an image file, or of a PIL picture, in mode ``RGB``.

    Grey, palette, CMYK, YCbCr, HSV and LAB are converted as Pillow does, transparency is dropped.
    A camera that was turned is turned back (EXIF orientation).
    16 bits of grey are scaled from 0..65535, floating point from [0, 1]. Data of 12 bits in a file
    of 16 come out dark: one picture alone does not tell them from a dark one.

    Raises:
        DataError: the file is damaged or no image; its header announces more pixels than Pillow
            takes for honest; or its values have no range that is agreed on.
    """
    from PIL import Image, ImageOps

    if isinstance(file, Image.Image):
        return _rgb(ImageOps.exif_transpose(file), file.format, "the picture")
    try:
        with _opened(file) as opened:
            opened.load()
            # Of some kinds, such as icons, the header is no more than a promise.
            _require_honest(opened)
            picture, kind = ImageOps.exif_transpose(opened), opened.format
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        raise DataError(
            f"{file} cannot be read as an image: {str(error) or type(error).__name__}"
        ) from error
    return _rgb(picture, kind, file)


def _opened(file: str | Path | BytesIO) -> Image:
    """An image file whose header has been read; what Pillow only warns about is refused.

    Filters of warnings are those of the whole process, and files are read by several threads.
    """
    from PIL import Image

    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(file)


def _require_honest(picture: Image) -> None:
    from PIL.Image import MAX_IMAGE_PIXELS

    pixels = picture.width * picture.height
    if MAX_IMAGE_PIXELS is not None and pixels > MAX_IMAGE_PIXELS:
        raise ValueError(f"{pixels} pixels exceed Pillow's limit of {MAX_IMAGE_PIXELS}")


def decoded(content: bytes, where: str) -> Image:
    """The picture in the content of an image file, of which ``where`` is told in messages.

    Raises:
        DataError: it is damaged or no image.
    """
    try:
        picture = _opened(BytesIO(content))
        picture.load()
        _require_honest(picture)
    except Exception as error:  # as in read_picture
        raise DataError(
            f"{where} holds bytes that cannot be read as an image ({type(error).__name__})"
        ) from error
    return picture


def pixels_of(picture: Image, size: int | Sequence[int] | None = None, channels: int = 3) -> Tensor:
    """``(channels, H, W)`` uint8 of an RGB picture.

    Args:
        picture: as :func:`read_picture` gives it.
        size: resize it so that it just covers this side, or these height and width, and cut out
            the middle; None leaves it as it is.
        channels: 3, or 1 for grey.
    """
    from PIL.Image import Resampling

    # As torchvision does, which takes as long to import as all the rest.
    if channels == 1:
        picture = picture.convert("L")
    if size is not None:
        target = (size, size) if isinstance(size, int) else (size[0], size[1])
        if (picture.height, picture.width) != target:
            height, width = _covering(picture, target)
            picture = _middle(picture.resize((width, height), Resampling.BILINEAR), target)
    pixels = torch.from_numpy(np.array(picture))
    return pixels.view(picture.height, picture.width, -1).permute(2, 0, 1)


def _middle(picture: Image, target: tuple[int, int]) -> Image:
    """The middle of a picture, of this height and width."""
    top = round((picture.height - target[0]) / 2)
    left = round((picture.width - target[1]) / 2)
    return picture.crop((left, top, left + target[1], top + target[0]))


def _covering(picture: Image, target: tuple[int, int]) -> list[int]:
    """The least height and width of the picture's proportions that cover those of ``target``."""
    (height, width), (tall, wide) = target, (picture.height, picture.width)
    if height * wide >= width * tall:
        return [height, max(width, height * wide // tall)]
    return [max(height, width * tall // wide), width]


def _rgb(picture: Image, kind: str | None, file: str | Path) -> Image:
    mode = picture.mode
    if mode in _SIXTEEN_BITS or (mode == "I" and kind in _SIXTEEN_IN_32):
        return _grey(np.asarray(picture) / 257.0)
    if mode == "F":
        return _grey(255.0 * _unit_interval(np.asarray(picture), file))
    if mode == "I":
        raise DataError(
            f"{file} holds 32-bit integers (Pillow's mode I), of which no range is agreed on; "
            "save it with 8 or 16 bits"
        )
    try:
        return picture.convert("RGB")
    except ValueError as error:
        raise DataError(
            f"{file} is of Pillow's mode {mode}, which cannot be converted to RGB ({error}); save "
            "it as RGB"
        ) from error


def _unit_interval(values: np.ndarray, file: str | Path) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"{file} holds floating-point values (Pillow's mode F) in {low:g}..{high:g}; expected "
            "them in [0, 1], or an image of 8 or 16 bits"
        )
    return values


def _grey(values: np.ndarray) -> Image:
    """Values in 0..255 as an RGB image, rounded."""
    from PIL import Image

    return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
