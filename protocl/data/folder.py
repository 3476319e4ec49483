"""Folders of image files, one subfolder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, refuse
from protocl.errors import ConfigError, DataError
from protocl.progress import ProgressBar


def load_image_folder(config: BenchmarkConfig) -> ArrayData:
    """Read ``path/train/CLASS/*`` and ``path/test/CLASS/*`` into memory as RGB ``uint8``.

    Class ids follow the sorted names of the folders in ``train/``. With ``image_size`` the shorter
    side is resized to it (bilinear) and the centre square is cut out; without, all images must
    have one size.

    Raises:
        ConfigError: no path.
        DataError: folders are absent or empty, a file is no image, or sizes differ.
    """
    refuse(config, "split")
    if config.path is None:
        raise ConfigError(
            f"benchmark '{config.name}' reads a folder: give benchmark.path=FOLDER, which holds "
            "train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    root = Path(config.path).expanduser()
    train, test = (_open(root / part) for part in ("train", "test"))
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise DataError(
            f"{root / 'test'} has a class '{unknown[0]}' that {root / 'train'} does not have"
        )
    ids = torch.tensor([train.class_to_idx[name] for name in test.classes])
    return ArrayData(
        _read(train, config),
        torch.tensor(train.targets),
        _read(test, config),
        ids[torch.tensor(test.targets)],
        list(train.classes),
        config.name,
    )


def _open(folder: Path) -> Any:
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; expected one subfolder of images per class in it"
        )
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:  # no class folder, or one without images
        raise DataError(f"{folder}: {error}") from error


def _read(folder: Any, config: BenchmarkConfig) -> Tensor:
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    images: Tensor | None = None
    with ProgressBar(f"reading {folder.root}", len(folder.samples)) as bar:
        for row, (file, _) in enumerate(folder.samples):
            picture = _load_picture(folder, file)
            if config.image_size is not None:
                picture = center_crop(resize(picture, config.image_size), config.image_size)
            image = pil_to_tensor(picture)
            if images is None:
                images = torch.empty(len(folder.samples), *image.shape, dtype=torch.uint8)
            if image.shape != images.shape[1:]:
                raise DataError(
                    f"{file} is {image.shape[2]}x{image.shape[1]} pixels where others are "
                    f"{images.shape[3]}x{images.shape[2]}; give benchmark.image_size"
                )
            images[row] = image
            bar.advance()
    assert images is not None  # ImageFolder refuses a folder without images
    return images


def _load_picture(folder: Any, file: str) -> Any:
    try:
        return folder.loader(file)
    except OSError as error:  # Pillow's errors for damaged and unknown files
        raise DataError(f"{file} cannot be read as an image: {error}") from error
