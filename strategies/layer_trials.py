"""What comes out of a model when the output of one of its layers is replaced by known numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from protocl.strategies.model_output import main_output

Forward = Callable[[], Any]
"""Runs the model on one mini-batch."""


class Call(NamedTuple):
    """How a layer was called in a forward pass.

    Attributes:
        order: position of its last call among all calls.
        times: number of calls.
        entered: what it was given last, ``(N, ...)``, if that was a tensor.
        returned: what it gave last.
    """

    order: int
    times: int
    entered: Tensor | None
    returned: Tensor


def calls_of(model: nn.Module, paths: Iterable[str], forward: Forward) -> dict[str, Call]:
    """The calls of those layers that are called and return a tensor, by path."""
    calls: dict[str, Call] = {}
    entered: dict[str, Tensor | None] = {}
    clock = iter(range(1 << 62))

    def enter(path: str, inputs: tuple[Any, ...]) -> None:
        first = inputs[0] if inputs else None
        entered[path] = first.clone() if isinstance(first, Tensor) else None

    def leave(path: str, output: Any) -> None:
        if isinstance(output, Tensor):
            count = calls[path].times if path in calls else 0
            calls[path] = Call(next(clock), count + 1, entered[path], output.clone())

    handles = []
    for path in dict.fromkeys(paths):
        layer = model.get_submodule(path)
        handles += [
            layer.register_forward_pre_hook(lambda _, inputs, path=path: enter(path, inputs)),
            layer.register_forward_hook(lambda _, inputs, output, path=path: leave(path, output)),
        ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def answers(model: nn.Module, path: str, call: Call, forward: Forward, exactly: bool) -> bool:
    """Whether the output of a layer is what the model returns.

    Args:
        model: the model.
        path: of the layer.
        call: how it was called when the model ran on its own.
        forward: runs the model.
        exactly: but for a factor, one offset for all classes, a softmax and masked classes; else
            each class may have its own offset, or any increasing function be applied to all.
    """
    if not call.returned.is_floating_point():
        return False
    given, got = [], []
    for sign in (1, -1):  # so that a ReLU behind the layer lets every class show
        values = sign * _known_numbers(call.returned)
        output = main_output(_run_with(model.get_submodule(path), values, call.times, forward))
        width = values[0].numel()
        if output is None or len(output) != len(values) or output[0].numel() < width:
            return False
        given.append(values[0].flatten().double())
        got.append(output[0].flatten()[:width].double())
    moved = got[0] != got[1]  # those of masked classes stay
    tolerance = torch.finfo(call.returned.dtype).eps ** 0.4
    v, out = torch.stack(given)[:, moved], torch.stack(got)[:, moved]
    if _is_affine(v, out, tolerance) or ((out > 0).all() and _is_affine(v, out.log(), tolerance)):
        return True
    return not exactly and (
        _is_affine((v[:1] - v[1:]), out[:1] - out[1:], tolerance) or _keeps_order(v, out)
    )


def widened(model: nn.Module, path: str, call: Call, forward: Forward) -> str:
    """The outermost layer around ``path`` that is given the same features.

    A head with a dropout, a mask or one layer for each task is a module of its own, whose parts
    change from task to task.
    """
    parts = path.split(".")
    around = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    calls = calls_of(model, around, forward)
    for outer in around:
        if outer in calls and calls[outer].times == call.times and _same(calls[outer], call):
            return outer
    return path


def _same(one: Call, other: Call) -> bool:
    if one.entered is None or other.entered is None or len(one.entered) != len(other.entered):
        return False
    return torch.equal(one.entered.flatten(1), other.entered.flatten(1))


def _known_numbers(like: Tensor) -> Tensor:
    """Numbers in [-3, 3] in the shape of ``like``, the same for each sample."""
    places = torch.arange(1, like[0].numel() + 1, dtype=torch.float64)
    numbers = 3 * torch.sin(1.7 * places)
    return numbers.to(like).view(1, *like.shape[1:]).expand_as(like)


def _run_with(layer: nn.Module, values: Tensor, calls: int, forward: Forward) -> Any:
    """The model's output if the last of so many calls of ``layer`` returned ``values``."""
    count = iter(range(1, 1 << 62))
    handle = layer.register_forward_hook(
        lambda *_: values.clone() if next(count) == calls else None
    )
    try:
        return forward()
    finally:
        handle.remove()


def _is_affine(v: Tensor, out: Tensor, tolerance: float) -> bool:
    """Whether ``out[i] = a v[i] + b[i]`` for the rows of ``(R, K)`` with one ``a`` other than 0."""
    if v.shape[1] < 2:  # no more than one class is left: nothing but equality tells
        return v.shape[1] == 1 and torch.allclose(v, out, rtol=tolerance, atol=tolerance)
    v, out = (v[:, 1:] - v[:, :1]).flatten(), (out[:, 1:] - out[:, :1]).flatten()
    if not (out.isfinite().all() and out.any()):
        return False
    factor = (v @ out) / (v @ v)
    return bool((out - factor * v).abs().max() <= tolerance * out.abs().max())


def _keeps_order(v: Tensor, out: Tensor) -> bool:
    """Whether each row of ``out`` ``(R, K)`` has the order of ``v``, without ties."""
    sorted_out = out.gather(1, v.argsort(1))
    return v.shape[1] > 1 and bool((sorted_out.diff(dim=1) > 0).all())
