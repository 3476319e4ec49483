"""Data in a program's memory as the benchmark of a run: files that it can be run with again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from protocl.data import ArrayData, BenchmarkConfig
from protocl.data.arrays import tensor_hash
from protocl.data.labels import as_array, label_array, numbers_or_texts
from protocl.data.readers.torch_sets import gathered, names_of
from protocl.data.samples import features_of, to_samples
from protocl.errors import DataError
from protocl.io.atomic import atomic_folder, atomic_path, atomic_write, locked

_FOLDER = "given"
"""Where the files lie below ``benchmark.root``."""


def with_files(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which a ``benchmark`` that is data has given way to the name of a file.

    The file lies below ``benchmark.root`` and is named after its content, so that equal data are
    written once and ``config.yaml`` runs the experiment again from the command line.

    Args:
        settings: of a call. ``benchmark`` (or ``name`` in a dictionary of it) may be
            :class:`.ArrayData`; a data set of PyTorch with items ``(x, y, ...)`` or a tuple of two,
            for training and for the test; arrays ``(x, y)`` or ``(x_train, y_train, x_test,
            y_test)``; a data frame of pandas; a data set of the library ``datasets``.

    Raises:
        DataError: it is none of these, or its items do not fit together.
    """
    section: Any = settings.get("benchmark")
    nested = type(section) is dict
    data = section.get("name") if nested else section
    plain = isinstance(data, str | float | int | os.PathLike | list) or type(data) is dict
    if data is None or plain:
        return dict(settings)
    inner = {f"benchmark.{key}": value for key, value in (section if nested else {}).items()}
    given = {key: value for key, value in {**inner, **settings}.items() if key != "benchmark"}
    given.pop("benchmark.name", None)
    root = Path(given.get("benchmark.root") or BenchmarkConfig().root).expanduser() / _FOLDER
    name, path = _kept(data, root, given)
    return {"benchmark.name": name, "benchmark.path": str(path), **given}


def _kept(data: Any, root: Path, given: dict[str, Any]) -> tuple[str, Path]:
    """Name of the reader and the file that data are written to."""
    if hasattr(data, "save_to_disk"):
        return "hf", _saved_to_disk(data, root)
    if hasattr(data, "to_csv"):
        return "table", _csv(data, root)
    return "npz", _archive(_arrays(data, given), root)


def _arrays(data: Any, given: dict[str, Any]) -> dict[str, np.ndarray]:
    if isinstance(data, ArrayData):
        parts = {name: getattr(data, name).numpy() for name in ("x_train", "y_train", "x_test",
                                                                "y_test")}  # fmt: skip
        return parts | {"classes": np.array(data.class_names)}
    if isinstance(data, tuple) and all(map(_is_array, data)):
        return _from_arrays(data)
    train, test = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    if not (hasattr(train, "__getitem__") or hasattr(train, "__iter__")):
        raise DataError(
            f"benchmark={data!r}: expected a name, a data set of PyTorch, arrays (x, y), a data "
            "frame, or a data set of the library datasets"
        )
    parts = gathered(train, test, given.pop("benchmark.image_size", None))
    _, _, _, labels = next(iter(parts.values()))
    names = names_of(train, labels)
    arrays = {} if names is None else {"classes": np.array(names)}
    for part, (_, x, _, y) in parts.items():
        end = "" if part == "all" else f"_{part}"
        arrays |= {f"x{end}": x, f"y{end}": y}
    return arrays


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") or isinstance(value, list)


def _from_arrays(data: tuple[Any, ...]) -> dict[str, np.ndarray]:
    keys = {2: ("x", "y"), 4: ("x_train", "y_train", "x_test", "y_test")}.get(len(data))
    if keys is None:
        raise DataError(
            f"benchmark: a tuple of {len(data)} arrays; expected (x, y) or (x_train, y_train, "
            "x_test, y_test)"
        )
    call = f"benchmark=({', '.join(keys)})"
    arrays = {
        key: label_array(value) if key.startswith("y") else _dense(value, f"{call}: {key}")
        for key, value in zip(keys, data, strict=True)
    }
    for x, y in zip(keys[::2], keys[1::2], strict=True):
        numbers_or_texts(arrays[y], f"{call}: {y}")
        if len(arrays[x]) != len(arrays[y]):
            raise DataError(
                f"{call}: {len(arrays[x])} samples in {x}, {len(arrays[y])} labels in {y}; "
                "expected one each"
            )
    return arrays


def _dense(samples: Any, what: str) -> np.ndarray:
    """Samples as an array; a sparse matrix, as of words, becomes a dense one."""
    if hasattr(samples, "toarray"):
        samples = samples.toarray()
    array = as_array(samples) if isinstance(samples, Tensor) else np.asarray(samples)
    if array.dtype.kind == "O" and array.ndim == 2:  # a data frame with columns of several types
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{what} holds what is no number ({error})") from error
    if array.ndim == 2:
        return features_of(array, what)
    to_samples(array, what)  # refused before it is written, under the name that the user knows
    return array


def _archive(arrays: Mapping[str, np.ndarray], root: Path) -> Path:
    import torch

    hashes = (
        f"{key}{tensor_hash(torch.from_numpy(np.ascontiguousarray(a)))}"
        if a.dtype.kind not in "OUS" else f"{key}{a.tolist()}"
        for key, a in arrays.items()
    )  # fmt: skip
    path = root / f"{_digest(hashes)}.npz"
    with locked(path):
        if not path.is_file():
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
    return path


def _csv(frame: Any, root: Path) -> Path:
    text = frame.to_csv(index=False)
    path = root / f"{_digest([text])}.csv"
    if not path.is_file():
        atomic_write(path, text)
    return path


def _saved_to_disk(data: Any, root: Path) -> Path:
    parts = data.values() if isinstance(data, Mapping) else [data]
    path = root / _digest(str(part._fingerprint) for part in parts)
    if not path.is_dir():
        with atomic_folder(path) as folder:
            data.save_to_disk(str(folder))
    return path


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:24]
