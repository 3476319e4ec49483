"""Modules whose numbers keep their precision when a model is cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from protocl.memory.owned import outside_inference_mode


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
