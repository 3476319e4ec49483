"""Pictures as they come in a request: measured before they are decoded, and made small."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from protocl.data.pictures import read_picture
from protocl.serve.problems import Problem

MOST_BYTES = 20_000_000
MOST_PIXELS = 50_000_000
THUMBNAIL_SIDE = 96
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""What is read: Pillow knows more, some of which start other programs."""


def picture_of(content: bytes, name: str) -> Image.Image:
    """The picture in the bytes of a file, as RGB.

    Args:
        content: of the file.
        name: for messages.

    Raises:
        Problem: it is too large (413), or damaged or no picture (422).
    """
    if len(content) > MOST_BYTES:
        raise Problem(
            413, "image_too_large",
            f"{name} has {len(content) / 1e6:.1f} MB: expected at most {MOST_BYTES / 1e6:.0f} MB; "
            "make it smaller",
        )  # fmt: skip
    Image.init()
    try:
        opened = Image.open(BytesIO(content), formats=[f for f in FORMATS if f in Image.OPEN])
        _require_pixels(opened, name)
        return read_picture(opened)
    except Problem:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(name, "far too many") from error
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        raise Problem(
            422, "damaged_image",
            f"{name} cannot be read as a picture ({_reason(error)}): expected a whole file of "
            f"{', '.join(FORMATS)}",
        ) from error  # fmt: skip


def thumbnail(picture: Image.Image) -> bytes:
    """A small JPEG file of a picture, without anything else that was in its file."""
    small = Image.new("RGB", picture.size)
    small.paste(picture)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = BytesIO()
    small.save(file, "JPEG", quality=80)
    return file.getvalue()


def _require_pixels(picture: Image.Image, name: str) -> None:
    pixels = picture.width * picture.height
    if pixels > MOST_PIXELS:
        raise _too_many_pixels(name, f"{pixels / 1e6:.1f}")


def _too_many_pixels(name: str, how_many: str) -> Problem:
    return Problem(
        413, "image_too_large",
        f"{name} has {how_many} megapixels: expected at most {MOST_PIXELS / 1e6:.0f}; make it "
        "smaller",
    )  # fmt: skip


def _reason(error: Exception) -> str:
    """Why, in words that do not tell of the inside of this process."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no picture"
    return str(error) or type(error).__name__
