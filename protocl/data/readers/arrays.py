"""Arrays of samples and of labels, as NumPy saves them or as a program holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, refuse
from protocl.data.labels import label_array, to_class_ids
from protocl.data.readers.keys import usual_pairs
from protocl.data.samples import to_samples
from protocl.data.shares import rows_for_test
from protocl.errors import ConfigError, DataError
from protocl.memory.limits.capacity import require_bytes


def load_arrays(config: BenchmarkConfig) -> ArrayData:
    """Arrays in ``.npy`` files: samples at ``path`` and ``labels``, or a folder of usual names.

    The folder holds ``x_train.npy, y_train.npy, x_test.npy, y_test.npy`` or other usual names
    (:mod:`.keys`). Without a test part ``benchmark.test`` says which share of each class is one.
    Shapes and types are those of an ``.npz`` archive (:func:`protocl.data.npz.load_npz`).

    Raises:
        ConfigError: no path or no labels, or nothing says which samples are for the test.
        DataError: a file is absent, damaged, or does not fit.
        CapacityError: an array would not fit in memory.
    """
    refuse(config, "split", "image_size", "columns")
    if config.path is None:
        raise ConfigError(
            f"benchmark '{config.name}' reads .npy files: give benchmark.path=X.npy "
            "benchmark.labels=Y.npy, or a folder of x_train.npy, y_train.npy, x_test.npy and "
            "y_test.npy"
        )
    path = Path(config.path).expanduser()
    if path.is_dir():
        refuse(config, "labels")
        return _folder(path, config)
    if config.labels is None:
        raise ConfigError(f"benchmark.path={path} holds samples: give benchmark.labels=FILE.npy")
    return of_parts({"all": _named(path, Path(config.labels).expanduser())}, config, str(path))


Named = tuple[str, Any, str, Any]
"""Samples and labels, each after what they are called in messages."""


def of_parts(
    parts: Mapping[str, Named],
    config: BenchmarkConfig,
    where: str,
    names: Sequence[str] | None = None,
) -> ArrayData:
    """Samples and labels of ``train`` and ``test``, or of one part that is shared out.

    Args:
        parts: by the names of :func:`.usual_pairs`. Samples are as :func:`.to_samples` takes them,
            labels as :func:`.label_array`.
        config: ``name``, ``test`` and ``test_seed`` are read.
        where: the data, for messages.
        names: one per class id.

    Raises:
        ConfigError, DataError: as :func:`load_arrays`.
    """
    samples = [to_samples(np.asarray(x), what) for what, x, _, _ in parts.values()]
    labels = {what: label_array(y) for _, _, what, y in parts.values()}
    ids, named = to_class_ids(labels, names)
    if "test" in parts:
        if config.test is not None:
            raise ConfigError(
                f"benchmark.test={config.test}: {where} has a part for the test; leave it out"
            )
        return ArrayData(samples[0], ids[0], samples[1], ids[1], named, config.name)
    if "train" in parts and config.test is None:
        raise DataError(
            f"{where} has a part for training and none for the test; add x_test and y_test, or "
            "give benchmark.test=0.2 for a share of each class"
        )
    (x,), (y,) = samples, ids
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} samples, but {len(y)} labels; expected one each")
    test = rows_for_test(y, named, None, config, where)
    return ArrayData(x[~test], y[~test], x[test], y[test], named, config.name)


def _folder(path: Path, config: BenchmarkConfig) -> ArrayData:
    files = {file.stem: file for file in sorted(path.glob("*.npy"))}
    pairs = usual_pairs(files)
    if not pairs:
        raise DataError(
            f"{path} holds {', '.join(f'{stem}.npy' for stem in files) or 'no .npy file'}; "
            "expected x_train.npy, y_train.npy, x_test.npy and y_test.npy, or x.npy and y.npy"
        )
    parts = {part: _named(files[x], files[y]) for part, (x, y) in pairs.items()}
    return of_parts(parts, config, str(path))


def _named(x: Path, y: Path) -> Named:
    return str(x), _read(x), str(y), _read(y)


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected an array that numpy.save wrote")
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises whatever a damaged file leads it to
        hint = (
            "; store labels as np.array(labels, dtype=str)"
            if "object" in str(error).lower()
            else ""
        )
        raise DataError(f"{path} cannot be read as an array: {error}{hint}") from error
    if not isinstance(mapped, np.ndarray):
        raise DataError(f"{path} holds several arrays; use benchmark=npz")
    require_bytes(mapped.nbytes, torch.device("cpu"), str(path), dict)
    return np.array(mapped)
