"""Values that the authors' own code gave for discovery, few labels and uncertainties.

``discovery.json`` names code and versions, and gives for each part how its inputs are drawn from
numpy's generators, with sums that tell whether a generator still draws them.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@cache
def golden() -> dict[str, Any]:
    """The stored results."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def same(found: Any, expected: Any, tolerance: float = 1e-8) -> None:
    """Check numbers against stored ones, which have ten digits."""
    found = found.numpy() if isinstance(found, Tensor) else np.asarray(found)
    np.testing.assert_allclose(found, np.asarray(expected), rtol=tolerance, atol=tolerance)


def drawn(part: dict[str, Any], name: str, values: np.ndarray) -> Tensor:
    """A drawn input as a tensor, if it is the one that the results belong to."""
    check = part["check"][name]
    assert list(values.shape) == check["shape"]
    assert values.sum() == pytest.approx(check["sum"], rel=1e-8)
    assert (values.astype(float) ** 2).sum() == pytest.approx(check["sum_sq"], rel=1e-8)
    return torch.from_numpy(values)
