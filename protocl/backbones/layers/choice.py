"""Which layers of a backbone are read: the last few, all, or those that are named."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from protocl.backbones.features import frozen
from protocl.backbones.layers.blocks import Passed, blocks, trace, weigh_behind
from protocl.backbones.layers.multi_layer import OUTPUT, MultiLayer, Pooling, Scaling
from protocl.errors import ConfigError

if TYPE_CHECKING:
    from protocl.backbones.base import Backbone

ALL = "all"
_LISTED = 8

Layers = int | str | Sequence[str | int]


def read_layers(
    backbone: Backbone,
    layers: Layers,
    sample_shape: Sequence[int],
    *,
    scaling: Scaling = "none",
) -> Backbone:
    """Let a backbone give the averages of several of its layers, joined, for its own output.

    Its network runs once, as before; its weights, their names and its preprocessing stay. An
    adaptation may follow, not precede. ``feature_dim`` is the sum of the widths.

    Args:
        backbone: is changed in place.
        layers: the last so many blocks, ``"all"`` of them, or names as in
            ``backbone.network.named_modules()``; ``"output"`` is what the network itself gives. A
            number stands for the blocks, and beside them the network's output where layers with
            weights lie behind the last block; where the output is the last block's in full
            instead of its average, it takes the place of that.
        sample_shape: one sample: ``(C, H, W)`` or ``(D,)``.
        scaling: ``"none"``, or ``"unit"`` for unit length in each layer; see
            :func:`.standardise` for deviations.

    Returns:
        ``backbone``.

    Raises:
        ConfigError: there are no such layers, they cannot be read, or the backbone contains one
            that reads layers itself.

    Example:
        >>> from protocl.backbones import Backbone
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> backbone = read_layers(Backbone(network, 2, architecture="two"), "all", (4,))
        >>> backbone.feature_dim, backbone(torch.ones(6, 4)).shape
        (5, torch.Size([6, 5]))
    """
    if scaling not in get_args(Scaling)[:2]:
        raise ConfigError(f"scaling={scaling!r}: expected 'none' or 'unit'; 'std' is measured")
    _refuse_second(backbone)
    with frozen(backbone) as device:
        sample = backbone.preprocess(torch.zeros(1, *sample_shape, device=device))
        passed, own = trace(backbone.network, sample)
        names = _chosen(backbone, layers, passed, own.shape[-1])
        pooling = Pooling.of(backbone.network)
        parts = [_pooled(name, passed, own, pooling) for name in names]
    reader = MultiLayer(names, pooling, scaling)
    reader.attach(backbone.network)
    backbone.reader = reader
    backbone.feature_dim = sum(part.shape[1] for part in parts)
    if backbone.origin is not None:
        kept = {"layers": layers, "layer_scale": scaling}
        backbone.origin = replace(backbone.origin, settings=backbone.origin.settings | kept)
    return backbone


def _chosen(
    backbone: Backbone, layers: Layers, passed: dict[str, Passed], own_width: int
) -> list[str]:
    if isinstance(layers, int) and not isinstance(layers, bool):
        return _last(backbone, layers, passed, own_width)
    if layers == ALL:
        return _last(backbone, None, passed, own_width)
    names = [layers] if isinstance(layers, str) else layers
    if not isinstance(names, Sequence) or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"layers={layers!r}: expected the number of the last blocks, 'all', or distinct names"
        )
    return [_known(backbone, str(name), passed) for name in names]


def _last(
    backbone: Backbone, count: int | None, passed: dict[str, Passed], own_width: int
) -> list[str]:
    network = backbone.network
    found = sorted((n for n in blocks(network) if n in passed), key=lambda n: passed[n].order)
    if not found:
        raise ConfigError(
            f"layers: backbone {backbone.architecture} has no blocks that can be told: "
            f"name layers; {_some(passed)}"
        )
    if count is not None and not 1 <= count <= len(found):
        raise ConfigError(
            f"layers={count}: backbone {backbone.architecture} has {len(found)} blocks; expected "
            f"1 to {len(found)}, or 'all'"
        )
    chosen = found if count is None else found[-count:]
    if weigh_behind(network, passed, found[-1]):
        return [*chosen, OUTPUT]
    width = Pooling.of(network)(passed[found[-1]].output).shape[1]
    return chosen if width == own_width else [*chosen[:-1], OUTPUT]


def _known(backbone: Backbone, name: str, passed: dict[str, Passed]) -> str:
    if name != OUTPUT and name not in passed:
        near = difflib.get_close_matches(name, passed, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"layers: backbone {backbone.architecture} passes no layer '{name}': {hint}"
            f"{_some(blocks(backbone.network) or passed)}, and '{OUTPUT}'"
        )
    if name in passed and passed[name].times > 1:
        raise ConfigError(
            f"layers: '{name}' is used {passed[name].times} times in one pass of backbone "
            f"{backbone.architecture}: name the module around it"
        )
    return name


def _some(names: Collection[str]) -> str:
    listed = sorted(names, key=lambda name: name.count("."))[:_LISTED]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"it has {', '.join(listed)}{more}"


def _pooled(name: str, passed: dict[str, Passed], own: Tensor, pooling: Pooling) -> Tensor:
    try:
        return pooling(passed[name].output) if name in passed else pooling(own)
    except TypeError as error:
        raise ConfigError(f"layers: '{name}': {error}") from error


def _refuse_second(backbone: Backbone) -> None:
    if any(isinstance(module, MultiLayer) for module in backbone.modules()):
        raise ConfigError(
            f"layers: backbone {backbone.architecture} reads layers already: build it anew"
        )
