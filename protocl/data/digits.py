"""The digits of scikit-learn: 1,797 images of 8x8 pixels, embedded in the library."""

from __future__ import annotations

import gzip
import zlib
from importlib.util import find_spec
from pathlib import Path

import torch

from protocl.data.arrays import ArrayData
from protocl.data.config import OWN, BenchmarkConfig, refuse

TEST_SHARE = 0.25
SPLIT_SEED = 0


def load_digits(config: BenchmarkConfig) -> ArrayData:
    """Digits as float32 images ``(N, 1, 8, 8)`` in [0, 1] (the 17 grey levels divided by 16).

    The set has no split of its own. Ours is fixed, whatever the seed of the run: a quarter of
    each class is test data (scikit-learn's stratified ``train_test_split`` with
    ``test_size=0.25, random_state=0``), which gives 1,347 training and 450 test images.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    refuse(config, "path", "split", "image_size", *OWN)
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    return ArrayData(
        torch.as_tensor(train_x, dtype=torch.float32).div_(16).view(-1, 1, 8, 8),
        torch.as_tensor(train_y, dtype=torch.int64),
        torch.as_tensor(test_x, dtype=torch.float32).div_(16).view(-1, 1, 8, 8),
        torch.as_tensor(test_y, dtype=torch.int64),
        [str(digit) for digit in range(10)],
        "digits",
    )


def count_digits() -> int | None:
    """Images in the file that scikit-learn brings, without importing it, which takes a second.

    None where it is not where it used to be, or cannot be read.
    """
    library = find_spec("sklearn")
    if library is None or library.origin is None:
        return None
    file = Path(library.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        return gzip.decompress(file.read_bytes()).count(b"\n")
    except (OSError, EOFError, zlib.error):
        return None
