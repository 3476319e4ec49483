"""Values that the authors' code of NAPA-VQ gave, with the inputs that give them.

``napa_vq.json`` was written by running commit ``0a8b78d`` of the authors' repository; inputs are
drawn from numpy's legacy generator as the recipe beside each value says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@cache
def golden() -> dict[str, Any]:
    """The stored values."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def normal(seed: int) -> Callable[..., Tensor]:
    """Draws float32 tensors of a given shape from ``RandomState(seed).randn``."""
    return random_draws(seed)[0]


def random_draws(seed: int) -> tuple[Callable[..., Tensor], np.random.RandomState]:
    """The same with the generator itself, for recipes that draw integers as well."""
    random = np.random.RandomState(seed)
    return lambda *shape: torch.from_numpy(random.randn(*shape).astype("float32")), random
