"""Trials of layers: known numbers take the place of an output, and may come out of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from protocl.strategies.plugin.model_output import Place, tensors_of

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


def place_of_answer(
    model: nn.Module, path: str, call: Call, forward: Forward, exactly: bool
) -> Place | None:
    """Where in what the model returns the output of a layer is; None if nowhere.

    Args:
        model: the model.
        path: of the layer.
        call: how it was called when the model ran on its own.
        forward: runs the model.
        exactly: but for a factor, one offset for all classes, a softmax and masked classes; else
            each class may have its own offset, or any increasing function be applied to all.
    """
    if not call.returned.is_floating_point():
        return None
    layer = model.get_submodule(path)
    numbers, spread = _known_numbers(call.returned, is_pointwise(layer))
    # Both signs, so that a ReLU behind the layer lets every class show.
    signs = (1, -1)
    got = [tensors_of(_run_with(layer, sign * spread, call.times, forward)) for sign in signs]
    given = torch.stack([sign * numbers for sign in signs])
    tolerance = torch.finfo(call.returned.dtype).eps ** 0.4
    for place in got[0]:
        outputs = [found[place] for found in got if place in found]
        if len(outputs) == len(got) and all(_fits(output, spread, numbers) for output in outputs):
            rows = [output[0].flatten()[: len(numbers)].double() for output in outputs]
            if _agree(given, torch.stack(rows), tolerance, exactly):
                return place
    return None


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer is a linear one for each position of a map: a 1x1 convolution."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return layer.groups == 1 and all(size == 1 for size in layer.kernel_size)


def _fits(output: Tensor, samples: Tensor, numbers: Tensor) -> bool:
    """Whether there is room for so many numbers of each sample."""
    return len(output) == len(samples) and output[0].numel() >= len(numbers)


def _agree(given: Tensor, got: Tensor, tolerance: float, exactly: bool) -> bool:
    """Whether rows ``(2, K)`` of numbers came out as they went in."""
    moved = got[0] != got[1]  # those of masked classes stay
    v, out = given[:, moved], got[:, moved]
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


def _known_numbers(like: Tensor, channels: bool) -> tuple[Tensor, Tensor]:
    """Numbers in [-3, 3], ``(K,)`` float64, and those in the shape of ``like``, for each sample.

    Args:
        like: ``(N, ...)``.
        channels: one number for each channel, at all its positions.
    """
    count = like.shape[1] if channels else like[0].numel()
    numbers = 3 * torch.sin(1.7 * torch.arange(1, count + 1, dtype=torch.float64))
    shape = (1, count, *[1] * (like.ndim - 2)) if channels else (1, *like.shape[1:])
    spread = numbers.to(like).view(shape).expand_as(like)
    return spread[0].flatten(1)[:, 0].double() if channels else spread[0].flatten().double(), spread


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
