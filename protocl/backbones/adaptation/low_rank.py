"""LoRA: matrices of low rank beside weights, which disappear in them when the session is over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from protocl.backbones.adaptation.base import Adaptation
from protocl.backbones.adaptation.vision_transformer import find_vit
from protocl.backbones.adaptation.whole import batch_norms


class LowRankUpdate(nn.Module):
    """A weight ``W`` plus ``(alpha / r) B A``, for some of its rows.

    ``B`` starts at zero, so that at first the weight is ``W`` itself.

    Args:
        weight: ``W``, ``(O, I)`` or ``(O, I, 1, 1)``.
        rank: ``r``.
        alpha: scale of the update, divided by the rank.
        blocks: places of the first rows of ``P`` blocks of rows; each has an ``A`` and a ``B``.
        height: rows ``H`` of a block.

    Attributes:
        down: ``A`` of each block ``(P, r, I)``.
        up: ``B`` of each block ``(P, H, r)``.
    """

    rows: Tensor

    def __init__(
        self, weight: Tensor, rank: int, alpha: float, blocks: tuple[int, ...], height: int
    ) -> None:
        super().__init__()
        self.scale = alpha / rank
        width = weight.shape[1]
        self.down = nn.Parameter(weight.new_empty(len(blocks), rank, width))
        self.up = nn.Parameter(weight.new_zeros(len(blocks), height, rank))
        for matrix in self.down:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        places = [torch.arange(first, first + height, device=weight.device) for first in blocks]
        self.register_buffer("rows", torch.cat(places), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in use, in the shape of ``W``."""
        change = (self.scale * self.up @ self.down).flatten(0, 1).to(weight.dtype)
        matrix = weight.flatten(1)
        return matrix.index_add(0, self.rows, change).view_as(weight)


class LowRankAdaptation(Adaptation):
    """Matrices of low rank beside a timm transformer's queries and values, or 1x1 layers (LoRA).

    In networks without attention they stand beside each convolution of 1x1 that is not grouped;
    BatchNorm layers stay as they are. After the session they are folded into the weights: the
    network has the layers that it had, at no cost.

    Args:
        rank: of the matrices.
        alpha: their scale is ``alpha / rank``; None for 1.

    Source: Hu et al., ICLR 2022, "LoRA: low-rank adaptation of large language models", section 4.
    """

    def __init__(self, rank: int = 8, alpha: float | None = None) -> None:
        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank={rank!r}: expected a whole number of at least 1")
        scale = rank if alpha is None else alpha
        if type(scale) not in (int, float) or not 0 < scale < math.inf:
            raise ValueError(f"alpha={alpha!r}: expected a number > 0")
        self.rank, self.alpha = rank, float(scale)

    def applies(self, module: nn.Module) -> bool:
        return any(True for _ in _places(module))

    def insert(self, module: nn.Module) -> list[nn.Parameter]:
        trained: list[nn.Parameter] = []
        for layer, blocks, height in list(_places(module)):
            weight = cast(Tensor, layer.weight)
            update = LowRankUpdate(weight, self.rank, self.alpha, blocks, height)
            parametrize.register_parametrization(layer, "weight", update)
            trained += update.parameters()
        return trained

    def set_mode(self, module: nn.Module) -> None:
        for layer in batch_norms(module):
            layer.eval()

    def fold(self, module: nn.Module) -> bool:
        for layer in list(module.modules()):
            if _is_updated(layer):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
                bias = layer.bias
                del layer.bias  # behind the weight, as it was
                layer.register_parameter("bias", cast(nn.Parameter | None, bias))
        return True


def _is_updated(layer: nn.Module) -> bool:
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    chain: Any = cast(nn.ModuleDict, layer.parametrizations)["weight"]
    return any(isinstance(part, LowRankUpdate) for part in chain)


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, tuple[int, ...], int]]:
    """Layers, where the blocks of rows begin that get an update, and how high they are."""
    vit = find_vit(module)
    if vit is None:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
                yield layer, (0,), layer.out_channels
        return
    for block in vit.blocks:
        joint = getattr(getattr(block, "attn", None), "qkv", None)
        if isinstance(joint, nn.Linear) and joint.out_features % 3 == 0:
            height = joint.out_features // 3
            yield joint, (0, 2 * height), height
