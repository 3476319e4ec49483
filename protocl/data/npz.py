"""Data sets in NumPy's ``.npz`` archives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, among, refuse
from protocl.data.labels import to_class_ids
from protocl.data.readers.arrays import of_parts
from protocl.data.readers.keys import Pair, names_key, usual_pairs
from protocl.data.samples import to_samples
from protocl.errors import ConfigError, DataError
from protocl.memory.limits.capacity import require_bytes

SPLITS = ("evaluation", "background")
DEFAULT_TRAIN, DEFAULT_TEST = 15, 5


def load_npz(config: BenchmarkConfig) -> ArrayData:
    """Read the archive at ``config.path``.

    It holds either ``x_train, y_train, x_test, y_test`` and optionally ``classes`` (names), or
    other usual names (:mod:`.readers.keys`), or ``x`` and ``y`` of which ``config.test`` of each
    class are for the test; or, as Omniglot does, for each of the splits ``background`` and
    ``evaluation`` ``x_<split>, y_<split>`` and optionally ``classes_<split>``: of such a split the
    first ``train_per_class`` (15) samples of each class are training data and the next
    ``test_per_class`` (5) are test data.

    Images are ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``, ``uint8`` or floating point in
    [0, 1]; features are ``(N, D)`` of any real type. Labels are as :func:`.to_class_ids` takes
    them.

    Raises:
        ConfigError: no path, or an unknown split.
        DataError: the file is absent or unreadable, lacks keys, or holds arrays that do not fit.
        CapacityError: an array would not fit in memory.
    """
    refuse(config, "image_size", "labels", "columns")
    if config.path is None:
        raise ConfigError(
            f"benchmark '{config.name}' reads an archive: give benchmark.path=FILE.npz"
        )
    path = Path(config.path).expanduser()
    with _open(path) as archive:
        keys = set(archive.files)
        if any(f"x_{split}" in keys for split in SPLITS):
            refuse(config, "test")
            return _pooled_split(archive, path, config)
        pairs = usual_pairs(archive.files)
        if pairs:
            _refuse_split(config, path)
            return _usual(archive, path, pairs, config)
    raise DataError(
        f"{path} holds {', '.join(sorted(keys)) or 'nothing'}; expected x_train, y_train, x_test, "
        "y_test (and classes) or other usual names, x and y with benchmark.test, or x_background, "
        "y_background, x_evaluation, y_evaluation"
    )


def _refuse_split(config: BenchmarkConfig, path: Path) -> None:
    if config.split is not None:
        raise ConfigError(
            f"benchmark.split={config.split}: {path} has a training and a test part and no "
            "such splits; leave benchmark.split out"
        )


def _open(path: Path) -> NpzFile:
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the archive with benchmark.path=FILE.npz")
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # zipfile and NumPy raise whatever a damaged file leads them to
        raise DataError(f"{path} cannot be read as an .npz archive: {error}") from error
    if not isinstance(archive, NpzFile):
        raise DataError(f"{path} is a single array; expected an .npz archive of several")
    return archive


def _read(archive: NpzFile, key: str, path: Path) -> np.ndarray:
    if key not in archive.files:
        raise DataError(f"{path} lacks '{key}'; it holds {', '.join(sorted(archive.files))}")
    assert archive.zip is not None  # it is open
    size = archive.zip.getinfo(f"{key}.npy").file_size
    require_bytes(size, torch.device("cpu"), f"{path}: '{key}'", dict)
    try:
        return np.asarray(archive[key])
    except Exception as error:  # as in _open
        hint = ""
        if "Object arrays" in str(error):
            hint = "; store labels as np.array(labels, dtype=str), samples in one shape"
        raise DataError(f"{path}: '{key}' cannot be read: {error}{hint}") from error


def _usual(
    archive: NpzFile, path: Path, pairs: Mapping[str, Pair], config: BenchmarkConfig
) -> ArrayData:
    """Arrays under the usual names, with or without a part for the test."""
    key = names_key(archive.files, {key for pair in pairs.values() for key in pair})
    names = None if key is None else _names(archive, key, path)
    parts = {
        part: (f"{path}: {x}", _read(archive, x, path), f"{path}: {y}", _read(archive, y, path))
        for part, (x, y) in pairs.items()
    }
    return of_parts(parts, config, str(path), names)


def _pooled_split(archive: NpzFile, path: Path, config: BenchmarkConfig) -> ArrayData:
    split = chosen_split(config)
    x = to_samples(_read(archive, f"x_{split}", path), f"{path}: x_{split}")
    labels = {f"{path}: y_{split}": _read(archive, f"y_{split}", path)}
    (y,), names = to_class_ids(labels, _names(archive, f"classes_{split}", path))
    if len(y) != len(x):
        raise DataError(f"{path}: {len(x)} samples in x_{split}, {len(y)} labels in y_{split}")
    return split_each_class(x, y, names, config)


def _names(archive: NpzFile, key: str, path: Path) -> list[str] | None:
    if key not in archive.files:
        return None
    names = _read(archive, key, path)
    if names.ndim != 1:
        raise DataError(f"{path}: '{key}' has shape {names.shape}; expected one name per class")
    texts = np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names
    return [str(name) for name in texts]


def chosen_split(config: BenchmarkConfig) -> str:
    """``config.split``, or ``evaluation`` where it is not given.

    Raises:
        ConfigError: it is neither of the two splits.
    """
    split = config.split or "evaluation"
    if split not in SPLITS:
        raise ConfigError(f"benchmark.split={split}: expected one of {', '.join(SPLITS)}")
    return split


def split_each_class(x: Tensor, y: Tensor, names: list[str], config: BenchmarkConfig) -> ArrayData:
    """Cut a set without a split of its own: the first samples of each class train, the next test.

    Classes that ``config`` leaves out need not have enough of them.

    Args:
        x: samples ``(N, ...)``.
        y: class ids ``(N,)``.
        names: one per class id.
        config: ``train_per_class`` (15 if None) and ``test_per_class`` (5 if None).

    Raises:
        DataError: a class has fewer samples than the two together.
    """
    n_train = config.train_per_class or DEFAULT_TRAIN
    n_test = config.test_per_class or DEFAULT_TEST
    counts = torch.bincount(y, minlength=len(names))
    scarce = next((c for c in among(config, counts) if counts[c] < n_train + n_test), None)
    if scarce is not None:
        raise DataError(
            f"{config.name}: class {scarce} ('{names[scarce]}') has {int(counts[scarce])} samples; "
            f"train_per_class={n_train} and test_per_class={n_test} need {n_train + n_test}"
        )
    by_class = y.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(y)) - starts[y[by_class]]
    train = by_class[rank < n_train]
    test = by_class[(rank >= n_train) & (rank < n_train + n_test)]
    return ArrayData(x[train], y[train], x[test], y[test], names, config.name)
