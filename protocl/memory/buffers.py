"""Buffers that belong to the module that holds them, keep their precision and can be added to."""

from __future__ import annotations

import math
import mmap
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")

LARGE = 1 << 20
"""Bytes from which on a copy of rows costs more than to do without it."""

_LONG = 1 << 14
"""Bytes of a row from which on rows may be moved one by one."""


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


class GrowingRows:
    """Buffers of a module that get more rows without a second copy of those they have.

    On Linux the system moves the pages of a memory map instead of their content. Elsewhere, on an
    accelerator, the first time, and while anybody else has a tensor of the same memory, rows are
    copied. A copy of the module begins anew.
    """

    def __init__(self) -> None:
        # Tensors own the maps, so that a buffer which is replaced gives its memory back.
        self._maps: dict[str, weakref.ref[mmap.mmap]] = {}

    def __reduce__(self) -> tuple[type[GrowingRows], tuple[()]]:
        return GrowingRows, ()

    def spread(self, module: nn.Module, name: str, places: Tensor, rows: int) -> None:
        """Give a buffer ``rows`` rows, at least as many as it has.

        Args:
            module: has the buffer.
            name: of the buffer ``(C, ...)``.
            places: ``(C,)`` ascending, where each row comes to lie; all other rows are zero.
            rows: their number.
        """
        buffer: Tensor = getattr(module, name)
        before, size, kind = buffer.shape, (rows, *buffer.shape[1:]), buffer.dtype
        if rows == len(buffer):
            return
        held = self._map_of(name, buffer)
        if held is not None:
            setattr(module, name, None)
            del buffer  # what has a tensor cannot be moved
            longer = _lengthened(held, rows, before[0])
            buffer = _tensor_in(held, size if longer else before, kind)
            setattr(module, name, buffer)
            if longer:
                _move_rows_(buffer, places.tolist())
                return
        grown = self._zeros(name, buffer, size)
        grown[places] = buffer
        setattr(module, name, grown)

    def _map_of(self, name: str, buffer: Tensor) -> mmap.mmap | None:
        """The map that a buffer fills, if it lies in one."""
        held = self._maps[name]() if name in self._maps else None
        if held is None or not buffer.is_contiguous() or buffer.nbytes != len(held):
            return None
        return held if buffer.data_ptr() == np.frombuffer(held, np.uint8).ctypes.data else None

    def _zeros(self, name: str, like: Tensor, size: Sequence[int]) -> Tensor:
        length = like.element_size() * math.prod(size[1:])
        movable = sys.platform == "linux" and like.device.type == "cpu"
        if not movable or length < _LONG:
            return like.new_zeros(size)
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            held = mmap.mmap(-1, size[0] * length, flags=private)
        except OSError:  # no room, or too many maps: torch may find some, or says that it did not
            return like.new_zeros(size)
        self._maps[name] = weakref.ref(held)
        return _tensor_in(held, size, like.dtype)


def _lengthened(held: mmap.mmap, rows: int, before: int) -> bool:
    """Whether a map of ``before`` rows could be made one of ``rows``."""
    try:
        held.resize(len(held) // before * rows)
    except (BufferError, OSError):  # somebody has a tensor of it, or the system has no room
        return False
    return True


def _tensor_in(held: mmap.mmap, size: Sequence[int], kind: torch.dtype) -> Tensor:
    """The tensor that fills a map, and keeps it."""
    return torch.from_numpy(np.frombuffer(held, np.uint8)).view(kind).view(*size)


def _move_rows_(buffer: Tensor, places: Sequence[int]) -> None:
    """Move the first rows of ``buffer`` to ascending ``places``; what they leave is zero."""
    for row, place in reversed(list(enumerate(places))):
        if place > row:
            buffer[place] = buffer[row]
    buffer[sorted(set(range(len(places))) - set(places))] = 0
