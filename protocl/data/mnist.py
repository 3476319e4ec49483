"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 pixels in grey.

Sources: LeCun et al., Gradient-based Learning Applied to Document Recognition, 1998; Xiao et al.,
Fashion-MNIST, 2017.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from protocl.data.arrays import ArrayData
from protocl.data.config import OWN, BenchmarkConfig, refuse
from protocl.data.npz import load_npz
from protocl.data.readers.torchvision_sets import is_archive, open_both, root_of
from protocl.data.samples import to_samples
from protocl.errors import DataError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# The names that torchvision gives, whose import takes seconds.
DIGITS = [
    "0 - zero", "1 - one", "2 - two", "3 - three", "4 - four",
    "5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine",
]  # fmt: skip
GARMENTS = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
"""Where Debian's package ``dataset-fashion-mnist`` puts its four files."""

_IDX_UNSIGNED_BYTE = 0x08


def load_mnist(config: BenchmarkConfig) -> ArrayData:
    """MNIST: idx files or an ``.npz`` archive at ``benchmark.path``, or through torchvision."""
    return _load("MNIST", DIGITS, config)


def load_fashion_mnist(config: BenchmarkConfig) -> ArrayData:
    """Fashion-MNIST, as MNIST; what Debian's dataset-fashion-mnist installs is found by itself."""
    return _load("FashionMNIST", GARMENTS, config, DEBIAN_FASHION_MNIST)


def _load(
    kind: str, names: list[str], config: BenchmarkConfig, installed: Path | None = None
) -> ArrayData:
    refuse(config, "image_size", "split", *OWN)
    if is_archive(config):
        return load_npz(config)
    if config.path is not None:
        return _from_idx(Path(config.path).expanduser(), names, config)
    expected = root_of(config) / kind / "raw"
    if installed is not None and installed.is_dir() and not expected.is_dir():
        return _from_idx(installed, names, config)
    train, test = open_both(kind, config, expected)
    return ArrayData(
        train.data.unsqueeze(1),
        train.targets.to(torch.int64),
        test.data.unsqueeze(1),
        test.targets.to(torch.int64),
        names,
        config.name,
    )


def _from_idx(folder: Path, names: list[str], config: BenchmarkConfig) -> ArrayData:
    """Read the four idx files in ``folder``, gzipped or not."""
    arrays = {
        f"{part}-{kind}": read_idx(_find(folder, f"{part}-{kind}-ubyte"))
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    }
    return ArrayData(
        to_samples(arrays["train-images-idx3"], f"{folder}: training images"),
        torch.from_numpy(arrays["train-labels-idx1"].astype(np.int64)),
        to_samples(arrays["t10k-images-idx3"], f"{folder}: test images"),
        torch.from_numpy(arrays["t10k-labels-idx1"].astype(np.int64)),
        names,
        config.name,
    )


def _find(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    raise DataError(
        f"{folder} holds neither {stem}.gz nor {stem}; expected the four idx files of the set, as "
        "in Debian's package dataset-fashion-mnist"
    )


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an idx file, gzipped if its name ends in ``.gz``.

    Source: the format is described at the end of http://yann.lecun.com/exdb/mnist/: two zero
    bytes, type, number of dimensions, each dimension as a big-endian int32, the data.

    Raises:
        DataError: the file is damaged or holds another type.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, _IDX_UNSIGNED_BYTE)):
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    header = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:header], dtype=">i4"))
    if len(content) != header + math.prod(shape):
        raise DataError(
            f"{path} announces an array of shape {shape} but holds {len(content) - header} bytes; "
            "the file is incomplete"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
