"""Pictures that a test can draw: of simple shapes, each a class."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 96
SHAPES = ("cross", "house", "ring", "star", "tree")


def draw(shape: str, seed: int) -> Image.Image:
    """A picture of a shape, of a colour, size and place of its own."""
    rng = np.random.default_rng([SHAPES.index(shape), seed])
    ground = tuple(rng.integers(200, 250, 3).tolist())
    ink = tuple(rng.integers(20, 150, 3).tolist())
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    x, y = rng.integers(40, 56, 2).tolist()
    r = int(rng.integers(22, 34))
    pen = ImageDraw.Draw(picture)
    if shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=8)
    elif shape == "cross":
        pen.line((x - r, y, x + r, y), ink, 10)
        pen.line((x, y - r, x, y + r), ink, 10)
    elif shape == "house":
        pen.rectangle((x - r, y, x + r, y + r), ink)
        pen.polygon([(x - r - 4, y), (x, y - r), (x + r + 4, y)], ink)
    elif shape == "tree":
        pen.rectangle((x - 4, y, x + 4, y + r), ink)
        pen.ellipse((x - r, y - r, x + r, y + r // 2), fill=ink)
    else:
        turns = np.arange(10) * np.pi / 5 + rng.uniform(0, np.pi)
        reach = np.where(np.arange(10) % 2, r / 2.4, r)
        points = zip(x + reach * np.cos(turns), y + reach * np.sin(turns), strict=True)
        pen.polygon(list(points), ink)
    return picture


def png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def folder_of(root: Path, shapes: tuple[str, ...], count: int, first: int = 0) -> Path:
    """``root/SHAPE/N.png``."""
    for shape in shapes:
        (root / shape).mkdir(parents=True)
        for n in range(first, first + count):
            draw(shape, n).save(root / shape / f"{n}.png")
    return root
