"""Arithmetic that must not run in half precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A block in which products on ``device`` are computed in the precision of their factors.

    Nothing is switched where nothing is on: an exported graph would hold the switch.
    """
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` outside of autocast, with half-precision tensors cast to float32.

    Under automatic mixed precision a matrix product rounds its operands to 16 bits, which costs a
    loss of similarities at a small temperature, or of squared distances, its leading digits.
    Tensors in float32 and float64 pass unchanged, and gradients flow through the cast.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        values = (*args, *kwargs.values())
        device = next((v.device.type for v in values if isinstance(v, Tensor)), "cpu")
        with without_autocast(device):
            return function(
                *(_widened(value) for value in args),  # type: ignore[arg-type]
                **{name: _widened(value) for name, value in kwargs.items()},  # type: ignore[arg-type]
            )

    return wrapped


def _widened(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
