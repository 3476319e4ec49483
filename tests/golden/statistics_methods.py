"""Inputs of ``statistics_methods_golden.json``, drawn as its recipe says, and its values.

The values come from the authors' code of each method; the file names it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("statistics_methods_golden.json")


@cache
def document() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def values(case: str) -> dict[str, Any]:
    """The golden values of a case."""
    return document()["cases"][case]["values"]


@cache
def inputs() -> dict[str, Tensor]:
    """Every input of the recipe by its name there, float64 or int64."""
    rs = np.random.RandomState(20261130)
    counts, d, classes, m = [50, 40, 30, 25, 20, 15], 12, 6, 40
    centres = 2.0 * rs.standard_normal((classes, d))
    a = rs.standard_normal((d, d)) / np.sqrt(d)
    x = np.concatenate([
        centres[c] + (0.6 + 0.2 * c) * rs.standard_normal((counts[c], d)) @ a.T
        for c in range(classes)
    ])  # fmt: skip
    y = np.repeat(np.arange(classes), counts)
    p = rs.permutation(len(y))
    x, y = x[p], y[p]
    t = rs.randint(0, classes, 24)
    test = centres[t] + rs.standard_normal((24, d))
    client = rs.randint(0, 8, len(y))
    w, omega = rs.standard_normal((d, m)), rs.standard_normal((d, m))
    b = rs.uniform(0, 2 * np.pi, m)
    bd = 0.3 * rs.standard_normal((d, d)) + np.eye(d)
    z = x @ bd.T + 0.1 * rs.standard_normal(x.shape) + 0.2
    drawn = {"X": x, "y": y, "T": test, "t": t, "client": client, "W": w, "omega": omega, "b": b}
    return {name: torch.from_numpy(array) for name, array in (drawn | {"Z": z}).items()}
