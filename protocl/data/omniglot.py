"""Omniglot: 1,623 handwritten characters, each drawn by the same 20 people.

Source: Lake et al., Human-level Concept Learning through Probabilistic Program Induction, 2015.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from protocl.data.arrays import ArrayData
from protocl.data.config import OWN, BenchmarkConfig, refuse
from protocl.data.npz import chosen_split, load_npz, split_each_class
from protocl.data.pictures import read_picture
from protocl.data.readers.in_order import read_in_order
from protocl.data.readers.torchvision_sets import is_archive, open_set, root_of
from protocl.data.samples import to_samples
from protocl.io.progress import progress_bar

IMAGE_SIZE = 28


def load_omniglot(config: BenchmarkConfig) -> ArrayData:
    """Load a split of Omniglot: ``evaluation`` (659 characters, the default), ``background`` (964).

    Of each character's 20 drawings, in the order of the drawers, the first ``train_per_class``
    (15) are training data and the next ``test_per_class`` (5) are test data. Images are
    ``(N, 1, 28, 28)`` uint8 with ink 255 on 0: from an ``.npz`` archive at ``config.path`` as they
    are, from torchvision's 105x105 files resized to ``image_size`` with a Lanczos filter.

    Raises:
        ConfigError: unknown split, or ``image_size`` together with an archive.
        DataError: the files are absent or damaged.
    """
    if is_archive(config):
        return load_npz(config)
    refuse(config, *OWN)
    split = chosen_split(config)
    folder = root_of(config) / "omniglot-py" / f"images_{split}"
    if not folder.is_dir():
        settings = {"background": split == "background", "download": config.download}
        open_set("Omniglot", config, folder, **settings)
    return _read_tree(folder, config)


def _read_tree(folder: Path, config: BenchmarkConfig) -> ArrayData:
    """Read ``alphabet/character/drawing.png`` in sorted order.

    torchvision lists folders in the order of the file system, which differs between machines and
    with it the class ids; hence our own walk.
    """
    side = config.image_size or IMAGE_SIZE
    characters = sorted(path for path in folder.glob("*/*") if path.is_dir())
    drawings = [
        (c, file) for c, path in enumerate(characters) for file in sorted(path.glob("*.png"))
    ]
    images = np.empty((len(drawings), side, side), dtype=np.uint8)
    read = read_in_order(lambda file: _ink(file, side), [file for _, file in drawings])
    with progress_bar(f"reading {config.name}", len(drawings)) as bar, closing(read):
        for row, image in enumerate(read):
            images[row] = image
            bar.update()
    labels = torch.tensor([character for character, _ in drawings], dtype=torch.int64)
    names = [f"{path.parent.name}/{path.name}" for path in characters]
    return split_each_class(to_samples(images, str(folder)), labels, names, config)


def _ink(file: Path, side: int) -> NDArray[np.uint8]:
    """A drawing ``(side, side)``, ink 255 on 0."""
    from PIL import Image

    grey = read_picture(file).convert("L")
    return 255 - np.asarray(grey.resize((side, side), Image.Resampling.LANCZOS))
