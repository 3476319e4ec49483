"""Golden values of PRD: inputs and outputs as in ``prd.json``, eight decimals, float64.

They agree with the authors' own code, run on the same inputs, to 5e-9.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@cache
def golden() -> dict[str, Any]:
    """The stored values."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def tensor(value: Any) -> Tensor:
    """Floating point in float64."""
    return torch.tensor(value, dtype=torch.float64)


def given(name: str) -> Tensor:
    """An input of the losses; labels as integers."""
    value = golden()["inputs"][name]
    return torch.tensor(value) if name == "labels" else tensor(value)


def output(name: str) -> Any:
    return golden()["outputs"][name]


def assert_close(found: Tensor | float, expected: Any, atol: float = 1e-7) -> None:
    found = torch.as_tensor(found, dtype=torch.float64)
    torch.testing.assert_close(found.detach(), tensor(expected), rtol=0, atol=atol)
