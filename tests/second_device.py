"""A second device where there is none: tensors that say they are elsewhere, numbers and all.

Code that runs here mixes no tensors of two devices, draws no number for one device from a generator
of another, and reads none from elsewhere as an array, which are the faults that a GPU would show.
Torch's device ``meta`` lends its name, since its tensors need no driver; the numbers stay in a
tensor on the CPU, so that results can be compared with those of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")

_ATEN = torch.ops.aten
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}
_INDEXING = {
    _ATEN.index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
}


_FLOATING = {
    "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "convolution",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "upsample_bicubic2d",
}  # fmt: skip
"""Operators that CUDA has for floating point alone, and the CPU for whole numbers too."""


class DeviceMixError(RuntimeError):
    """What a real second device would refuse."""


class Far(Tensor):
    """A tensor elsewhere.

    Attributes:
        near: the same numbers on the CPU.
    """

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor, requires_grad: bool = False) -> Far:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=ELSEWHERE,
            requires_grad=requires_grad,
        )

    def __init__(self, near: Tensor, requires_grad: bool = False) -> None:
        self.near = near

    def tolist(self) -> Any:
        return self.near.tolist()

    def numpy(self, *args: Any, **settings: Any) -> NoReturn:
        raise DeviceMixError("a tensor elsewhere is no array: call .cpu() first")

    def __repr__(self, **settings: Any) -> str:  # type: ignore[override]
        return f"Far({self.near!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does before any operator, and would do on the device whose name is borrowed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor:
            like, *args = args
            func, kwargs = torch.tensor, {"dtype": like.dtype, "device": like.device, **kwargs}
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]), *args[2:])
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **settings: Any) -> None:
        known = "cpu" if device_type == ELSEWHERE.type else device_type
        super().__init__(known, *args, **settings)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The device, which is there as long as the ``with`` block lasts."""
    with mock.patch.object(torch, "autocast", _Autocast), _Functions(), _Operators():
        yield ELSEWHERE


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    assert not any(t.device == ELSEWHERE and not isinstance(t, Far) for t in tensors), (
        f"{func}: a tensor was made past this file and has no numbers"
    )
    _require_one_device(func, args, tensors)
    far = _is_result_far(func, args, kwargs, tensors)
    if far:
        _require_known(func, tensors)
    if far and kwargs.get("generator") is not None:
        raise DeviceMixError(f"{func}: numbers elsewhere from a generator of the CPU")
    own, named = tree_map(_near, (args, kwargs))
    if "device" in named:
        named["device"] = torch.device("cpu")
    result = func(*own, **named)
    if not far or func is _ATEN._local_scalar_dense.default:
        return result
    if isinstance(result, Tensor):  # in place: the tensor that was given comes back
        for given in tensors:
            if isinstance(given, Far) and given.near is result:
                return given
    return tree_map(lambda leaf: Far(leaf) if isinstance(leaf, Tensor) else leaf, result)


def _near(leaf: Any) -> Any:
    return leaf.near if isinstance(leaf, Far) else leaf


def _require_one_device(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Single numbers of the CPU are taken anywhere, and so are indices."""
    if func in _COPIES:
        return
    if func in _INDEXING:
        home, indices, *values = args
        if not isinstance(home, Far) and any(isinstance(index, Far) for index in indices):
            raise DeviceMixError(f"{func}: indices are elsewhere than what they index")
        tensors = [home, *(value for value in values if isinstance(value, Tensor))]
    if len({isinstance(tensor, Far) for tensor in tensors if tensor.ndim}) > 1:
        raise DeviceMixError(f"{func} of tensors on two devices: {[t.shape for t in tensors]}")


def _require_known(func: Any, tensors: list[Tensor]) -> None:
    name = func.__name__.split(".")[0].rstrip("_")
    if name in _FLOATING and any(not t.is_floating_point() for t in tensors):
        raise DeviceMixError(f"{func} of {tensors[0].dtype}: a GPU has it for floating point alone")
    if name == "linalg_lstsq":
        raise DeviceMixError(f"{func}: a GPU solves systems of full rank alone")


def _is_result_far(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> bool:
    if func is _ATEN.copy_.default:
        return isinstance(args[0], Far)
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type == ELSEWHERE.type
    return any(isinstance(tensor, Far) for tensor in tensors)
