"""Tensors that belong to the module that holds them, and can be changed in place at any time."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def outside_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` in normal mode, without gradients, where the caller is in inference mode.

    A tensor made in inference mode can never again be changed outside of it.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return wrapped


@outside_inference_mode
def owned(tensor: Tensor) -> Tensor:
    """A copy with contiguous memory of its own."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def is_sound(tensor: Tensor) -> bool:
    """Whether sums can be added to ``tensor`` in place, in flat pieces."""
    return tensor.is_contiguous() and not tensor.is_inference()


def own_buffers(module: nn.Module) -> None:
    """Replace the buffers of ``module`` to which nothing could be added in place."""
    for name, buffer in list(module.named_buffers(recurse=False)):
        if not is_sound(buffer):
            setattr(module, name, owned(buffer))
