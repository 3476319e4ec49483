"""The layers of any network, and which of them are its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass
class Passed:
    """A layer in one pass.

    Attributes:
        order: of its end among the ends of all layers.
        times: how often it was passed.
        output: what it gave last.
    """

    order: int
    times: int
    output: Any


def trace(network: nn.Module, x: Tensor) -> tuple[dict[str, Passed], Tensor]:
    """All layers that are passed by samples ``x``, by name; and what the network gives."""
    passed: dict[str, Passed] = {}
    ends = iter(range(10**9))

    def listen(name: str) -> Any:
        def hook(layer: nn.Module, given: Any, output: Any) -> None:
            times = passed[name].times + 1 if name in passed else 1
            # Detached and alone: a later layer may work in place.
            kept = torch.empty_like(output) if isinstance(output, Tensor) else output
            passed[name] = Passed(next(ends), times, kept)

        return hook

    handles = [
        layer.register_forward_hook(listen(name)) for name, layer in network.named_modules() if name
    ]
    try:
        given = network(x)
    finally:
        for handle in handles:
            handle.remove()
    return passed, given


def blocks(network: nn.Module) -> list[str]:
    """Names of the blocks, in the order of definition.

    They are the outermost composite modules that stand in a ``Sequential`` or ``ModuleList``:
    residual blocks, transformer blocks, stages of those that have them. In a network of plain
    layers each layer with weights is one, together with norm, activation and pooling behind it.
    """
    return list(_composites(network)) or list(_runs(network))


def _composites(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Composite modules in containers, of which the insides are left alone."""
    inside = type(module) in _CONTAINERS
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        composite = type(child) not in _CONTAINERS and next(child.children(), None) is not None
        if inside and composite and _weighs(child):
            yield path
        else:
            yield from _composites(child, f"{path}.")


def _runs(network: nn.Module) -> Iterator[str]:
    """Last elements of the runs that begin with each weighted element of the largest sequence."""
    sequences = [(n, m) for n, m in network.named_modules() if type(m) is nn.Sequential]
    if not sequences:
        return
    # The outermost of those that hold the most weights comes first.
    name, sequence = max(sequences, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    children = list(sequence.named_children())
    begins = [place for place, (_, child) in enumerate(children) if _weighs(child)]
    for end in [*begins[1:], len(children)] if begins else []:
        yield f"{name}.{children[end - 1][0]}" if name else children[end - 1][0]


def _weighs(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix: norms and activations do not."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def weigh_behind(network: nn.Module, passed: dict[str, Passed], last: str) -> bool:
    """Whether layers with weight matrices are passed behind the layer ``last``."""
    modules = dict(network.named_modules())
    return any(
        parameter.ndim > 1
        for name, layer in passed.items()
        if layer.order > passed[last].order
        for parameter in modules[name].parameters(recurse=False)
    )
