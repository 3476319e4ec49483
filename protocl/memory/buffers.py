"""Buffers that belong to the module that holds them, keep their precision and can be added to."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

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


def own_buffers(module: nn.Module) -> None:
    """Replace the buffers of ``module`` to which nothing could be added in place."""
    for name, buffer in list(module.named_buffers(recurse=False)):
        if not buffer.is_contiguous() or buffer.is_inference():
            setattr(module, name, owned(buffer))


class FollowsDevice(nn.Module):
    """A module that follows ``.to(device)`` but ignores ``.half()``, ``.bfloat16()`` and the like.

    Statistics are float64 or int64 by design; a model that carries them as a submodule may be cast
    to lower precision without losing them.
    """

    @outside_inference_mode
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        apply: Any = super()._apply
        return apply(move_only, recurse)
