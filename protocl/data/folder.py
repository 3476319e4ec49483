"""Folders of image files, one subfolder per class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, refuse
from protocl.data.pictures import pixels_of, read_picture
from protocl.data.readers.in_order import read_in_order
from protocl.data.shares import rows_for_test
from protocl.errors import ConfigError, DataError
from protocl.io.progress import progress_bar
from protocl.memory.limits.capacity import require_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

_BRIGHT = 32
"""An eighth of the range, which the brightest pixel of a data set should reach."""

logger = logging.getLogger(__name__)

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm",
)  # fmt: skip
# What systems and programs leave behind, besides names that begin with a dot.
_LEFT_BEHIND = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")


PARTS = ("test", "val", "validation", "valid")
"""Names that the folder of test images may have beside ``train``, the first there is."""


def load_image_folder(config: BenchmarkConfig) -> ArrayData:
    """Read ``path/train/CLASS/*`` and ``path/test/CLASS/*`` into memory as RGB ``uint8``.

    ``val/``, ``validation/`` or ``valid/`` stands in where there is no ``test/``. Without one, or
    with the classes in ``path`` itself, ``benchmark.test`` says which share of each class is for
    the test.

    Class ids follow the sorted names of the folders in ``train/``; folders within them belong to
    their class. Hidden files and folders and those of systems (``__MACOSX``, ``Thumbs.db``) are
    passed over in silence, other files that are no images by their ending with a warning. A
    warning also says where no pixel of all images reaches an eighth of the range, as with 12 bits
    in files of 16. With
    ``image_size`` the shorter side is resized to it (bilinear) and the centre square is cut out;
    without, all images must have one size. :mod:`protocl.data.pictures` says which kinds of images
    are read.

    Raises:
        ConfigError: no path, or nothing says which images are for the test.
        DataError: folders are absent or empty, a file is damaged, or sizes differ.
        CapacityError: the images would not fit in memory.
    """
    refuse(config, "split", "labels", "columns")
    if config.path is None:
        raise ConfigError(
            f"benchmark '{config.name}' reads a folder: give benchmark.path=FOLDER, which holds "
            "train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE with benchmark.test=0.2"
        )
    return read_folder(Path(config.path).expanduser(), config)


def read_folder(root: Path, config: BenchmarkConfig) -> ArrayData:
    """The images of a folder with ``train/`` and ``test/``, or with classes alone.

    Args:
        root: the folder.
        config: ``test``, ``test_seed`` and ``image_size`` are read.

    Raises:
        ConfigError, DataError, CapacityError: as :func:`load_image_folder`.
    """
    parts = _parts(root)
    if len(parts) < 2:
        return _shared_out(_find(parts[0]), config)
    train, test = (_find(part) for part in parts)
    if config.test is not None:
        raise ConfigError(
            f"benchmark.test={config.test}: {test.root} is there for the test; leave it out"
        )
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise DataError(f"{test.root} has a class '{unknown[0]}' that {train.root} does not have")
    return ArrayData(
        read_images(train.all, train.root, config.image_size),
        train.labels(train.classes),
        read_images(test.all, test.root, config.image_size),
        test.labels(train.classes),
        train.classes,
        config.name,
    )


def _parts(root: Path) -> list[Path]:
    """The folders of training and of test images, or the one folder of all images."""
    if not root.is_dir():
        raise DataError(f"{root} does not exist; expected a folder of images")
    train = root / "train"
    if not _holds_classes(train):
        return [root]
    tests = [root / name for name in PARTS if (root / name).is_dir()]
    return [train, *tests[:1]]


def _holds_classes(folder: Path) -> bool:
    """Whether there is a folder with others in it; a class called "train" has images alone."""
    if not folder.is_dir():
        return False
    return any(entry.is_dir() and not _left_behind(entry.name) for entry in os.scandir(folder))


def _shared_out(found: _Files, config: BenchmarkConfig) -> ArrayData:
    y = found.labels(found.classes)
    test = rows_for_test(y, found.classes, None, config, str(found.root))
    parts = [[file for file, asked in zip(found.all, test, strict=True) if asked == part]
             for part in (False, True)]  # fmt: skip
    x_train, x_test = (read_images(part, found.root, config.image_size) for part in parts)
    return ArrayData(x_train, y[~test], x_test, y[test], found.classes, config.name)


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

    @property
    def all(self) -> list[Path]:
        """The images of all classes."""
        return [file for files in self.files for file in files]

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
        folders[:] = sorted(name for name in folders if _is_below(parent, name))
        yield from (Path(parent, name) for name in sorted(files) if not _left_behind(name))


def _is_below(parent: str, name: str) -> bool:
    """Whether a folder is one of images; a link to a folder around it would never end."""
    around = Path(parent).resolve()
    linked = Path(parent, name).resolve()
    return not _left_behind(name) and linked != around and linked not in around.parents


def _left_behind(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_BEHIND


def read_images(
    files: Sequence[str | Path | Image], where: str | Path, image_size: int | None
) -> Tensor:
    """Pictures ``(N, 3, H, W)`` uint8, of one size.

    Args:
        files: image files or PIL pictures, read one after the other.
        where: what they are a part of, for messages.
        image_size: as for :func:`.pixels_of`.

    Raises:
        DataError: a file is damaged, or sizes differ.
        CapacityError: they would not fit in memory.
    """
    images: Tensor | None = None
    read = read_in_order(lambda file: pixels_of(read_picture(file), image_size), files)
    with progress_bar(f"reading {where}", len(files)) as bar, closing(read):
        for row, (file, image) in enumerate(zip(files, read, strict=True)):
            if images is None:
                images = _room(len(files), image, where)
            if image.shape != images.shape[1:]:
                raise DataError(
                    f"{file} is {image.shape[2]}x{image.shape[1]} pixels where others are "
                    f"{images.shape[3]}x{images.shape[2]}; give benchmark.image_size"
                )
            images[row] = image
            bar.update()
    if images is None:
        return torch.empty(0, 3, image_size or 1, image_size or 1, dtype=torch.uint8)
    _warn_of_darkness(where, int(images.max()))
    return images


def _warn_of_darkness(root: str | Path, brightest: int) -> None:
    """Warn of images that use a small part of the range that their files announce."""
    if 0 < brightest < _BRIGHT:
        logger.warning(
            "%s: no pixel of any image is brighter than %d of 255, so most of their digits are "
            "lost; values of 12 bits in files of 16 bits (up to 4095 of 65535), as of scanners "
            "and cameras, must be multiplied by 16 before they are saved, those of 10 bits by 64",
            root, brightest,
        )  # fmt: skip


def _room(count: int, image: Tensor, where: str | Path) -> Tensor:
    """Memory for all images, if there is enough of it."""
    needed = count * image.numel()
    _, height, width = image.shape
    half = min(height, width) // 2
    require_bytes(
        needed,
        torch.device("cpu"),
        f"{count} images of {width}x{height} pixels in {where}",
        lambda: {f"benchmark.image_size={half}": count * 3 * half**2},
    )
    return torch.empty(count, *image.shape, dtype=torch.uint8)
