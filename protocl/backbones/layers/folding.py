"""BatchNorm merged into the convolutions before it, for networks that stay as they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from protocl.backbones.features import frozen
from protocl.errors import ConfigError

if TYPE_CHECKING:
    from protocl.backbones.base import Backbone

_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
"""Share of the largest feature, by which features may change."""


def fold_batchnorm(backbone: Backbone, sample_shape: tuple[int, ...]) -> Backbone:
    """Merge each BatchNorm into the convolution whose output it takes, in place.

    With running mean m, variance v, and gamma, beta and epsilon of the BatchNorm::

        W' = W gamma / sqrt(v + epsilon),    b' = (b - m) gamma / sqrt(v + epsilon) + beta

    Features then differ in their last bits and the fingerprint is another; nothing of the network
    is to be trained afterwards. What follows the normalisation in one module, as in timm's
    ``BatchNormAct2d``, stays.

    Args:
        backbone: with its weights; is changed in place.
        sample_shape: one sample: ``(C, H, W)``.

    Raises:
        ConfigError: there is no such pair; or features are other ones afterwards, since an output
            of a convolution is used elsewhere as well.
    """
    sample = torch.linspace(0, 1, 2 * math.prod(sample_shape)).view(2, *sample_shape)
    with frozen(backbone):
        before = backbone(sample)
        pairs = _pairs(backbone, sample)
        if not pairs:
            raise ConfigError(
                f"backbone.fold_batchnorm=true: {backbone.architecture} has no BatchNorm right "
                "behind a convolution; leave it out"
            )
        names = {module: name for name, module in backbone.named_modules()}
        for convolution, norm in pairs:
            _merge(convolution, norm)
            backbone.set_submodule(names[norm], _rest(norm))
        after = backbone(sample)
    if not _are_close(before, after, _TOLERANCE[backbone.precision]):
        raise ConfigError(
            f"backbone.fold_batchnorm=true: {backbone.architecture} uses what a convolution gives "
            "elsewhere than in the BatchNorm behind it; leave it out"
        )
    backbone.architecture += ", BatchNorm folded"
    return backbone


def _are_close(before: Tensor, after: Tensor, share: float) -> bool:
    return torch.allclose(before, after, rtol=0, atol=share * float(before.abs().max()))


def _pairs(backbone: nn.Module, sample: Tensor) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """Convolutions with the BatchNorm that takes their output, both passed once."""
    given: list[tuple[nn.Conv2d, Tensor]] = []
    taken: list[tuple[_BatchNorm, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, _, output: given.append((m, output)))
        if isinstance(module, nn.Conv2d)
        else module.register_forward_pre_hook(lambda m, inputs: taken.append((m, inputs[0])))
        for module in backbone.modules()
        if isinstance(module, nn.Conv2d) or (isinstance(module, _BatchNorm) and _is_fixed(module))
    ]
    try:
        backbone(sample)
    finally:
        for handle in handles:
            handle.remove()
    once = {id(m) for m, _ in (*given, *taken)}
    for passes in (given, taken):
        modules = [id(m) for m, _ in passes]
        once -= {m for m in modules if modules.count(m) > 1}
    return [
        (convolution, norm)
        for convolution, output in given
        for norm, x in taken
        if x is output and id(convolution) in once and id(norm) in once
    ]


def _is_fixed(norm: _BatchNorm) -> bool:
    """Whether it normalises by what it has seen before."""
    return norm.running_var is not None and norm.running_mean is not None


@torch.no_grad()
def _merge(convolution: nn.Conv2d, norm: _BatchNorm) -> None:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    weight, scale = convolution.weight, (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    if convolution.bias is not None:
        shift += convolution.bias
    if norm.affine:
        scale *= norm.weight
    shift *= scale
    if norm.affine:
        shift += norm.bias
    weight.copy_(weight * scale.view(-1, 1, 1, 1))
    convolution.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)


def _rest(norm: nn.Module) -> nn.Module:
    """What a module does after normalising."""
    rest = [part for name in ("drop", "act") if (part := getattr(norm, name, None)) is not None]
    return nn.Sequential(*rest) if rest else nn.Identity()
