"""What is read of a network in one pass: the averages of several of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

T = TypeVar("T")
Scaling = Literal["none", "unit", "std"]
OUTPUT = "output"
"""Stands among the names of layers for what the network itself gives."""

_PASS: ContextVar[dict[str, Tensor] | None] = ContextVar("_PASS", default=None)
# What the pass of this thread has given so far: passes of other threads see their own.


@dataclass(frozen=True)
class Pooling:
    """How the output of a layer becomes one vector a sample.

    Maps ``(N, C, H, W)`` become their averages over all places, tokens ``(N, T, D)`` the class
    token or else their average; vectors ``(N, D)`` stay.

    Attributes:
        class_token: take the first token.
        skipped_tokens: tokens in front that are in no place of the image, left out of averages.
        channels_last: maps are ``(N, H, W, C)``.
    """

    class_token: bool = False
    skipped_tokens: int = 0
    channels_last: bool = False

    @classmethod
    def of(cls, network: nn.Module) -> Pooling:
        """As ``network`` itself does it, by the attributes of timm's and torchvision's models."""
        pool = _attribute(network, "global_pool", str)
        return cls(
            class_token=pool == "token" or _attribute(network, "class_token", Tensor) is not None,
            skipped_tokens=_attribute(network, "num_prefix_tokens", int) or 0,
            channels_last=_attribute(network, "output_fmt", str) == "NHWC",
        )

    def __call__(self, output: Any) -> Tensor:
        """``(N, D)``, at least float32, in memory of its own: later layers may work in place.

        Raises:
            TypeError: the output is no tensor of these shapes.
        """
        if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(
                f"a layer gives {shape}: expected a tensor (N, D), (N, T, D) or (N, C, H, W)"
            )
        if output.dtype in (torch.bfloat16, torch.float16):
            output = output.float()
        if output.ndim == 2:
            return output.clone()
        if output.ndim == 4:
            return output.mean(dim=(1, 2) if self.channels_last else (2, 3))
        if self.class_token:
            return output[:, 0].clone()
        return output[:, self.skipped_tokens :].mean(dim=1)

    def describe(self) -> str:
        """In a few words."""
        if self.class_token:
            return "class token"
        tokens = f" without {self.skipped_tokens} tokens" if self.skipped_tokens else ""
        return f"average{tokens}{', channels last' if self.channels_last else ''}"


class MultiLayer(nn.Module):
    """Reads several layers of a network, one after the other in a feature vector.

    It holds no layer: they are found by name in the network whose pass it reads, so that the
    names of the network's weights stay as they are.

    Args:
        names: of the layers, in the order of the features.
        pooling: what becomes of a layer's output.
        scaling: ``"none"``; ``"unit"`` divides the features of each layer by their norm, sample by
            sample, a function of the backbone alone; ``"std"`` divides each feature by a deviation
            that was measured, a function of statistics (:func:`.standardise`).

    Source: Ahrens et al., Read between the layers (LayUP), TMLR 2024, section 3.2.
    """

    deviation: Tensor | None

    def __init__(self, names: Sequence[str], pooling: Pooling, scaling: Scaling = "none") -> None:
        super().__init__()
        self.names = tuple(names)
        self.pooling = pooling
        self.scaling: Scaling = scaling
        self.register_buffer("deviation", None)

    def attach(self, network: nn.Module) -> None:
        """Hear from now on what the layers give that have the names in ``network`` now.

        Raises:
            AttributeError: there is no such layer.
            ValueError: a layer stands under another of the names than before.
        """
        for name in self.names:
            if name == OUTPUT and not hasattr(network, OUTPUT):
                continue
            layer = network.get_submodule(name)
            before = {hook.name for hook in layer._forward_hooks.values() if type(hook) is _Hook}
            if before - {name}:
                raise ValueError(f"'{name}' is what was '{before.pop()}'")
            if not before:  # a second hook would pool twice
                layer.register_forward_hook(_Hook(name, self.pooling))

    def read(self, network: nn.Module, x: Tensor) -> Tensor:
        """Features ``(N, D)`` of preprocessed samples, in one pass through ``network``.

        Raises:
            RuntimeError: a layer was not passed, as when the network was changed since.
        """
        heard: dict[str, Tensor] = {}
        earlier = _PASS.set(heard)
        try:
            own = network(x)
        finally:
            _PASS.reset(earlier)
        heard.setdefault(OUTPUT, own)
        absent = [name for name in self.names if name not in heard]
        if absent:
            raise RuntimeError(
                f"layer '{absent[0]}' gave nothing in this pass: it was replaced, or is not used "
                "for these samples; call read_layers anew"
            )
        return self.scaled(self._joined([heard[name] for name in self.names]))

    def _joined(self, layers: list[Tensor]) -> Tensor:
        if self.scaling == "unit":
            layers = [functional.normalize(layer.float(), dim=1) for layer in layers]
        return torch.cat(layers, dim=1)

    def scaled(self, features: Tensor) -> Tensor:
        """Features ``(N, D)`` over their deviations, where those were measured."""
        return features if self.deviation is None else features / self.deviation.to(features.dtype)

    def describe(self) -> str:
        """The choice of layers in one line."""
        return f"layers {', '.join(self.names)} ({self.pooling.describe()}), scale {self.scaling}"


def _attribute(network: nn.Module, name: str, kind: type[T]) -> T | None:
    """The attribute of that name and type of the outermost module that has one."""
    found = (getattr(module, name, None) for module in network.modules())
    return next((value for value in found if isinstance(value, kind)), None)


class _Hook:
    """Pools what a layer gives, in passes that are read."""

    def __init__(self, name: str, pooling: Pooling) -> None:
        self.name = name
        self.pooling = pooling

    def __call__(self, layer: nn.Module, given: Any, output: Any) -> None:
        heard = _PASS.get()
        if heard is not None:
            heard[self.name] = self.pooling(output)
