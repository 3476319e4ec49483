"""The small vision transformer."""

from __future__ import annotations

import sys

import pytest
import torch

from protocl.backbones import BackboneConfig, build_backbone
from protocl.errors import ConfigError, DataError

pytest.importorskip("timm")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_features_have_the_announced_width(shape: tuple[int, ...]) -> None:
    backbone = build_backbone(BackboneConfig(name="vit"), shape, 0)
    assert backbone.training
    assert backbone(torch.rand(2, *shape)).shape == (2, 192)
    assert backbone.network.patch_embed.num_patches == shape[1] * shape[2] // 16
    assert len(backbone.network.blocks) == 6


def test_every_weight_gets_a_gradient() -> None:
    backbone = build_backbone(BackboneConfig(name="vit", width=64), (1, 8, 8), 0)
    backbone(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_images_are_resized_where_asked() -> None:
    backbone = build_backbone(BackboneConfig(name="vit", width=64, image_size=16), (1, 105, 105), 0)
    assert backbone(torch.rand(2, 1, 105, 105)).shape == (2, 64)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"width": 100}, (1, 28, 28), "backbone.width=100: expected a multiple of 64"),
        ({}, (1, 30, 30), "30x30 is no multiple of: give backbone.image_size=28"),
        ({"pretrained": True}, (1, 28, 28), "no such option"),
        ({}, (64,), "takes images"),
    ],
)
def test_mistakes_are_named(
    options: dict[str, object], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(BackboneConfig(name="vit", **options), shape, 0)  # type: ignore[arg-type]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DataError, match=r"'vit' needs timm.*: pip install timm"):
        build_backbone(BackboneConfig(name="vit"), (1, 28, 28), 0)
