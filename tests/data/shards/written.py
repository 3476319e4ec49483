"""Shards of digits as users have them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

Files = Mapping[str, bytes]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images ``(N, 8, 8)`` uint8 and their classes."""
    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8) * 15).astype(np.uint8), y.astype(np.int64)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pictures(rows: Iterable[int], label: str = "cls") -> list[tuple[str, bytes]]:
    """Digits as a tar file holds them, each a picture and its class."""
    x, y = digits()
    files = []
    for row in rows:
        text = json.dumps({"label": int(y[row])}) if label == "json" else str(y[row])
        files += [(f"{row:05d}.png", png(x[row])), (f"{row:05d}.{label}", text.encode())]
    return files


def vectors(rows: Iterable[int]) -> list[tuple[str, bytes]]:
    """Digits as feature vectors in a tar file."""
    x, y = digits()
    files = []
    for row in rows:
        vector = x[row].ravel().astype(np.float32)
        files += [(f"v/{row:05d}.npy", npy(vector)), (f"v/{row:05d}.cls", str(y[row]).encode())]
    return files


def write_parquet(path: Path, columns: Mapping[str, Any], **settings: Any) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(dict(columns)), path, **settings)
    return path


def feature_columns(rows: range) -> dict[str, Any]:
    """Digits as a table: a list of 64 numbers and a class."""
    import pyarrow as pa

    x, y = digits()
    flat = x[rows.start : rows.stop].reshape(len(rows), 64).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), 64)
    return {"embedding": lists, "label": y[rows.start : rows.stop]}
