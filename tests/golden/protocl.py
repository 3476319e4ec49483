"""Golden values of ProtoCL: inputs and outputs as in ``protocl.json``, six decimals.

Each was checked, where the file was made, against an independent computation (scipy's densities,
Gaussian conditioning, autograd).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLOSE = {"rtol": 0.0, "atol": 2e-6}


@cache
def golden() -> dict[str, Any]:
    """The stored values."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def tensor(value: Any) -> Tensor:
    """Floating point in float64."""
    return torch.tensor(value, dtype=torch.float64)


def given(name: str) -> Tensor:
    """An input; labels as integers."""
    value = golden()["inputs"][name]
    return torch.tensor(value) if name.startswith("y") else tensor(value)


def assert_close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, tensor(expected), **CLOSE)
