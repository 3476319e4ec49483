"""Golden values of PALM and ProtoGCD: made by the authors' functions, in float64.

Inputs follow from the recipes in ``trained_open_world.json``, which names commits and licences.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@cache
def golden(method: str) -> dict[str, Any]:
    """The stored values of ``palm`` or ``protogcd``."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())[method]


def unit(x: np.ndarray) -> Tensor:
    """Vectors along the last axis scaled to length 1."""
    return torch.tensor(x / np.linalg.norm(x, axis=-1, keepdims=True))


def assert_close(found: Tensor | float, expected: Any, atol: float = 1e-8) -> None:
    found = torch.as_tensor(found, dtype=torch.float64).detach()
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol
    )
