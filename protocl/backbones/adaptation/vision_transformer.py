"""Parameter-efficient adaptations of timm's vision transformers.

What they insert are modules of their own in the place of the transformer's; its own code and
weights stay. The sizes are those of APER (Zhou et al., IJCV 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocl.backbones.adaptation.base import Adaptation

PROMPT_TOKENS = 5
BOTTLENECK = 64
ADAPTER_SCALE = 0.1
ADAPTER_DROPOUT = 0.1
SSF_DEVIATION = 0.02


def find_vit(module: nn.Module) -> Any | None:
    """The ``timm`` ``VisionTransformer`` in ``module``, or None."""
    try:
        from timm.models import VisionTransformer
    except ImportError:
        return None
    return next((m for m in module.modules() if isinstance(m, VisionTransformer)), None)


def _vit(module: nn.Module) -> Any:
    vit = find_vit(module)
    assert vit is not None, "applies() comes before insert()"
    return vit


# -- visual prompt tuning --------------------------------------------------------------------


class AppendTokens(nn.Module):
    """Put trained tokens, which start at zero, behind those of every sample.

    Args:
        width: of a token.
        like: for device and type.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(like.new_zeros(1, PROMPT_TOKENS, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(N, T + 5, D)`` from ``(N, T, D)``."""
        return torch.cat([x, self.tokens.expand(x.shape[0], -1, -1)], dim=1)


class CutTokens(nn.Module):
    """Take the trained tokens off again."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(N, T, D)`` from ``(N, T + 5, D)``."""
        return x[:, :-PROMPT_TOKENS]


class ShallowPrompts(Adaptation):
    """Five prompt tokens before the first block of a timm vision transformer (VPT-shallow).

    Source: Jia et al., Visual prompt tuning, ECCV 2022, equation 4.
    """

    def applies(self, module: nn.Module) -> bool:
        return find_vit(module) is not None

    def insert(self, module: nn.Module) -> list[nn.Parameter]:
        vit = _vit(module)
        prompt = AppendTokens(vit.embed_dim, next(vit.parameters()))
        vit.blocks = nn.Sequential(prompt, *vit.blocks, CutTokens())
        return [prompt.tokens]


class DeepPrompts(Adaptation):
    """Five prompt tokens before each block of a timm vision transformer (VPT-deep).

    Source: Jia et al., Visual prompt tuning, ECCV 2022, equation 5.
    """

    def applies(self, module: nn.Module) -> bool:
        return find_vit(module) is not None

    def insert(self, module: nn.Module) -> list[nn.Parameter]:
        vit = _vit(module)
        prompts = [AppendTokens(vit.embed_dim, next(vit.parameters())) for _ in vit.blocks]
        pairs = zip(prompts, vit.blocks, strict=True)
        vit.blocks = nn.Sequential(*(nn.Sequential(p, block, CutTokens()) for p, block in pairs))
        return [prompt.tokens for prompt in prompts]


# -- scaling and shifting features -----------------------------------------------------------


class ScaleShift(nn.Module):
    """Scale and shift each of the last dimension's features.

    Args:
        width: their number.
        like: for device and type.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(like.new_empty(width))
        self.shift = nn.Parameter(like.new_empty(width))
        nn.init.normal_(self.scale, mean=1.0, std=SSF_DEVIATION)
        nn.init.normal_(self.shift, std=SSF_DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(..., D)`` of features ``(..., D)``."""
        return x * self.scale + self.shift


class ScalingAndShifting(Adaptation):
    """A scale and a shift behind each layer of a timm vision transformer (SSF).

    Behind each linear layer, each layer norm and the patch embedding.

    Source: Lian et al., Scaling & shifting your features, NeurIPS 2022, section 3.2.
    """

    def applies(self, module: nn.Module) -> bool:
        vit = find_vit(module)
        return vit is not None and hasattr(vit.patch_embed, "norm")

    def insert(self, module: nn.Module) -> list[nn.Parameter]:
        vit = _vit(module)
        embedding = vit.patch_embed
        trained = [ScaleShift(vit.embed_dim, embedding.proj.weight)]
        for parent, name, layer in list(_layers(vit)):
            width = layer.weight.shape[0]
            trained.append(ScaleShift(width, layer.weight))
            setattr(parent, name, nn.Sequential(layer, trained[-1]))
        embedding.norm = nn.Sequential(trained[0], embedding.norm)
        return [parameter for one in trained for parameter in one.parameters()]


def _layers(vit: Any) -> Iterator[tuple[nn.Module, str, nn.Linear | nn.LayerNorm]]:
    """Linear layers and layer norms before the classifier, each with its parent and name."""
    for parent in vit.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear | nn.LayerNorm) and child is not vit.head:
                yield parent, name, child


# -- adapters --------------------------------------------------------------------------------


class ParallelAdapter(nn.Module):
    """A bottleneck beside a branch: ``branch(x) + 0.1 * up(relu(down(x)))``.

    The way up starts at zero, so that at first the output is that of the branch.

    Args:
        branch: maps ``(..., D)`` to ``(..., D)``.
        width: ``D``.
        like: for device and type.
    """

    def __init__(self, branch: nn.Module, width: int, like: Tensor) -> None:
        super().__init__()
        self.branch = branch
        self.down = nn.Linear(width, BOTTLENECK, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(BOTTLENECK, width, device=like.device, dtype=like.dtype)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(N, T, D)`` of tokens ``(N, T, D)``."""
        hidden = functional.dropout(self.down(x).relu(), ADAPTER_DROPOUT, self.training)
        output: Tensor = self.branch(x) + ADAPTER_SCALE * self.up(hidden)
        return output


class Adapters(Adaptation):
    """A bottleneck beside the MLP of each block of a timm vision transformer (AdaptFormer).

    Source: Chen et al., AdaptFormer, NeurIPS 2022, section 3.2.
    """

    def applies(self, module: nn.Module) -> bool:
        vit = find_vit(module)
        if vit is None:
            return False
        from timm.models.vision_transformer import Block

        return all(isinstance(block, Block) for block in vit.blocks)

    def insert(self, module: nn.Module) -> list[nn.Parameter]:
        vit = _vit(module)
        trained: list[nn.Parameter] = []
        for block in vit.blocks:
            # The adapter sees the tokens before their norm, so the norm moves into the branch.
            branch = nn.Sequential(block.norm2, block.mlp, block.ls2, block.drop_path2)
            block.mlp = ParallelAdapter(branch, vit.embed_dim, block.norm2.weight)
            block.norm2 = block.ls2 = block.drop_path2 = nn.Identity()
            trained += [*block.mlp.down.parameters(), *block.mlp.up.parameters()]
        return trained
