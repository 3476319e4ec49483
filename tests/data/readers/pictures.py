"""The same small pictures for every door."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from protocl.data import ArrayData, BenchmarkConfig, load_data

NAMES = ("böse", "cat", "Äpfel und Birnen")
PARTS = {"train": 4, "test": 2}


def pictures() -> Iterator[tuple[str, str, int, np.ndarray]]:
    """Part, class, number and pixels ``(6, 5, 3)`` of each, in the order of a sorted folder."""
    draw = np.random.default_rng(0)
    for part, count in PARTS.items():
        for number, name in enumerate(NAMES):
            for k in range(count):
                pixels = draw.integers(60 * number, 60 * number + 80, (6, 5, 3), dtype=np.uint8)
                yield part, name, k, pixels


def folder(root: Path) -> Path:
    """``part/class/number.png``."""
    for part, name, k, pixels in pictures():
        file = root / part / name / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return root


def table(root: Path, rows: Sequence[Sequence[object]] = ()) -> Path:
    """A table of the folder's pictures beside it."""
    folder(root / "files")
    found = [(f"files/{part}/{name}/{k}.png", name, part) for part, name, k, _ in pictures()]
    return write(root / "table.csv", [("image", "label", "split"), *(rows or found)])


def write(path: Path, rows: Sequence[Sequence[object]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def arrays() -> dict[str, np.ndarray]:
    """``x_train, y_train, x_test, y_test``, the labels as texts."""
    found = {}
    for part in PARTS:
        chosen = [(pixels, name) for p, name, _, pixels in pictures() if p == part]
        found[f"x_{part}"] = np.stack([pixels for pixels, _ in chosen])
        found[f"y_{part}"] = np.array([name for _, name in chosen])
    return found


def read(name: str, path: Path | str | None = None, **settings: object) -> ArrayData:
    """What a door reads."""
    given = {} if path is None else {"path": str(path)}
    return load_data(BenchmarkConfig(name=name, **given, **settings))  # type: ignore[arg-type]
