"""Folders of image files, one subfolder per class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, refuse
from protocl.data.pictures import pixels_of, read_picture
from protocl.data.reading import read_in_order
from protocl.errors import ConfigError, DataError
from protocl.io.progress import progress_bar
from protocl.memory.limits.capacity import require_bytes

_BRIGHT = 32
"""An eighth of the range, which the brightest pixel of a data set should reach."""

logger = logging.getLogger(__name__)

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm",
)  # fmt: skip
# What systems and programs leave behind, besides names that begin with a dot.
_LEFT_BEHIND = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")


def load_image_folder(config: BenchmarkConfig) -> ArrayData:
    """Read ``path/train/CLASS/*`` and ``path/test/CLASS/*`` into memory as RGB ``uint8``.

    Class ids follow the sorted names of the folders in ``train/``; folders within them belong to
    their class. Hidden files and folders and those of systems (``__MACOSX``, ``Thumbs.db``) are
    passed over in silence, other files that are no images by their ending with a warning. A
    warning also says where no pixel of all images reaches an eighth of the range, as with 12 bits
    in files of 16. With
    ``image_size`` the shorter side is resized to it (bilinear) and the centre square is cut out;
    without, all images must have one size. :mod:`protocl.data.pictures` says which kinds of images
    are read.

    Raises:
        ConfigError: no path.
        DataError: folders are absent or empty, a file is damaged, or sizes differ.
        CapacityError: the images would not fit in memory.
    """
    refuse(config, "split")
    if config.path is None:
        raise ConfigError(
            f"benchmark '{config.name}' reads a folder: give benchmark.path=FOLDER, which holds "
            "train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    root = Path(config.path).expanduser()
    train, test = (_find(root / part) for part in ("train", "test"))
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise DataError(f"{test.root} has a class '{unknown[0]}' that {train.root} does not have")
    return ArrayData(
        _read(train, config),
        train.labels(train.classes),
        _read(test, config),
        test.labels(train.classes),
        train.classes,
        config.name,
    )


@dataclass(frozen=True)
class _Files:
    """The images below a folder, class after class.

    Attributes:
        root: the folder.
        classes: sorted names of its subfolders.
        files: images of each class, sorted.
    """

    root: Path
    classes: list[str]
    files: list[list[Path]]

    def __len__(self) -> int:
        return sum(map(len, self.files))

    def labels(self, names: list[str]) -> Tensor:
        """Class ids ``(N,)``, the places of the classes in ``names``."""
        ids = torch.tensor([names.index(name) for name in self.classes])
        return ids.repeat_interleave(torch.tensor([len(files) for files in self.files]))


def _find(folder: Path) -> _Files:
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; expected one subfolder of images per class in it"
        )
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    names = [name for name in names if not _left_behind(name)]
    if not names:
        raise DataError(f"{folder} holds no subfolders; expected one of images per class")
    skipped: list[Path] = []
    found = _Files(folder, names, [_images(folder / name, skipped) for name in names])
    for name, files in zip(found.classes, found.files, strict=True):
        if not files:
            raise DataError(
                f"{folder / name} holds no image ({', '.join(ENDINGS)}); add some, or remove it"
            )
    if skipped:
        logger.warning(
            "%s: passed over %d files that are no images by their ending, such as %s",
            folder, len(skipped), skipped[0],
        )  # fmt: skip
    return found


def _images(folder: Path, skipped: list[Path]) -> list[Path]:
    """Sorted images in ``folder`` and below it; what else lies there is added to ``skipped``."""
    images: list[Path] = []
    for file in _walk(folder):
        (images if file.suffix.lower() in ENDINGS else skipped).append(file)
    return images


def images_in(folder: Path) -> list[Path]:
    """All images in a folder and below it, sorted; what else lies there is passed over."""
    return _images(folder, [])


def classes_in(folder: Path) -> dict[str, list[Path]]:
    """The images of each class of a folder that has one subfolder a class.

    Raises:
        DataError: there is no subfolder, or one without images.
    """
    found = _find(folder)
    return dict(zip(found.classes, found.files, strict=True))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _left_behind(name))
        yield from (Path(parent, name) for name in sorted(files) if not _left_behind(name))


def _left_behind(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_BEHIND


def _read(found: _Files, config: BenchmarkConfig) -> Tensor:
    images: Tensor | None = None
    files = list(chain.from_iterable(found.files))
    read = read_in_order(lambda file: pixels_of(read_picture(file), config.image_size), files)
    with progress_bar(f"reading {found.root}", len(files)) as bar, closing(read):
        for row, (file, image) in enumerate(zip(files, read, strict=True)):
            if images is None:
                images = _room(found, image)
            if image.shape != images.shape[1:]:
                raise DataError(
                    f"{file} is {image.shape[2]}x{image.shape[1]} pixels where others are "
                    f"{images.shape[3]}x{images.shape[2]}; give benchmark.image_size"
                )
            images[row] = image
            bar.update()
    assert images is not None  # a folder without images was refused
    _warn_of_darkness(found.root, int(images.max()))
    return images


def _warn_of_darkness(root: Path, brightest: int) -> None:
    """Warn of images that use a small part of the range that their files announce."""
    if 0 < brightest < _BRIGHT:
        logger.warning(
            "%s: no pixel of any image is brighter than %d of 255, so most of their digits are "
            "lost; values of 12 bits in files of 16 bits (up to 4095 of 65535), as of scanners "
            "and cameras, must be multiplied by 16 before they are saved, those of 10 bits by 64",
            root, brightest,
        )  # fmt: skip


def _room(found: _Files, image: Tensor) -> Tensor:
    """Memory for all images, if there is enough of it."""
    needed = len(found) * image.numel()
    _, height, width = image.shape
    half = min(height, width) // 2
    require_bytes(
        needed,
        torch.device("cpu"),
        f"{len(found)} images of {width}x{height} pixels in {found.root}",
        lambda: {f"benchmark.image_size={half}": len(found) * 3 * half**2},
    )
    return torch.empty(len(found), *image.shape, dtype=torch.uint8)
