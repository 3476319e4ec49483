"""Scores that the code of LayUP gave for two layers joined, and the inputs they belong to.

The inputs are drawn from numpy's legacy generator, whose stream is fixed for ever.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Inputs(NamedTuple):
    """180 samples of 12 features in six classes, 24 others, and a layer's weight ``(12, 40)``."""

    train: Tensor
    labels: Tensor
    test: Tensor
    weight: Tensor


def inputs() -> Inputs:
    """In float64."""
    rs, counts = np.random.RandomState(20261130), [50, 40, 30, 25, 20, 15]
    centres = 2.0 * rs.standard_normal((6, 12))
    mixing = rs.standard_normal((12, 12)) / np.sqrt(12)
    parts = [
        centres[c] + (0.6 + 0.2 * c) * rs.standard_normal((n, 12)) @ mixing.T
        for c, n in enumerate(counts)
    ]
    x, y, order = np.concatenate(parts), np.repeat(np.arange(6), counts), rs.permutation(180)
    test = centres[rs.randint(0, 6, 24)] + rs.standard_normal((24, 12))
    rs.randint(0, 8, 180)
    arrays = (x[order], y[order], test, rs.standard_normal((12, 40)))
    return Inputs(*(torch.from_numpy(array) for array in arrays))


def scores() -> Tensor:
    """``(6, 6)`` of the first six test samples, ridge at lambda 1 without a bias."""
    stored = json.loads(Path(__file__).with_suffix(".json").read_text())
    return torch.tensor(stored["scores_first_6_test"], dtype=torch.float64)
