"""Merged BatchNorm gives the same features but for rounding, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from protocl.backbones import Backbone, BackboneConfig, build_backbone, fingerprint, save_weights
from protocl.backbones.features import extract
from protocl.backbones.layers.folding import fold_batchnorm
from protocl.config.compose import load
from protocl.errors import ConfigError
from protocl.model.kept_backbone import KeptBackbone
from protocl.runner.context import RunContext
from protocl.runner.folders import open_run
from protocl.runner.prepare import prepare

SHAPE = (3, 16, 16)
NAMES = ["conv4", "resnet18_slim", "timm/resnet10t", "timm/mobilenetv3_small_050"]


def trained(backbone: Backbone) -> Backbone:
    """The backbone with statistics and scales that are no defaults."""
    generator = torch.Generator().manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias, module.running_var):
                assert tensor is not None
                tensor.data = torch.rand(len(tensor), generator=generator) + 0.1
    return backbone


def built(name: str, **settings: Any) -> Backbone:
    return build_backbone(BackboneConfig(name, image_size=32, **settings), SHAPE, 0)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_same_but_for_rounding(name: str) -> None:
    plain, folded = trained(built(name)), trained(built(name))
    random = torch.random.get_rng_state()
    assert fold_batchnorm(folded, SHAPE) is folded
    assert torch.equal(random, torch.random.get_rng_state())
    x = torch.rand(5, *SHAPE)
    before, after = extract(plain, x), extract(folded, x)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert not any(name.endswith("running_var") for name in folded.state_dict())
    assert folded.training
    assert fingerprint(folded) != fingerprint(plain)


@pytest.mark.parametrize("name", ["identity", "mlp", "vit"])
def test_a_backbone_without_pairs_is_refused(name: str) -> None:
    shape = (20,) if name == "mlp" else SHAPE
    with pytest.raises(ConfigError, match=r"fold_batchnorm=true: .* leave it out"):
        build_backbone(BackboneConfig(name, fold_batchnorm=True), shape, 0)


class Twice(nn.Module):
    """A convolution whose output is used beside its BatchNorm, or passed twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 4, 3, bias=False)
        self.norm, self.other = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3)
        self.last = nn.BatchNorm2d(4, affine=False)
        self.eval()
        self.norm.running_var.fill_(3.0)  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> Tensor:
        given = self.conv(x)
        both = self.norm(given) + (given if self.kind == "beside" else self.conv(x))
        return (both + self.last(self.other(x))).mean((2, 3))


def test_an_output_that_is_used_elsewhere_is_noticed() -> None:
    backbone = Backbone(Twice("beside"), 4, architecture="twice")
    with pytest.raises(ConfigError, match="twice uses what a convolution gives elsewhere"):
        fold_batchnorm(backbone, SHAPE)


def test_a_convolution_that_is_passed_twice_stays() -> None:
    backbone = Backbone(Twice("again"), 4, architecture="twice")
    before = extract(backbone, torch.ones(2, *SHAPE))
    folded = extract(fold_batchnorm(backbone, SHAPE), torch.ones(2, *SHAPE))
    torch.testing.assert_close(folded, before)
    assert isinstance(backbone.network.norm, nn.BatchNorm2d)  # type: ignore[union-attr]
    assert isinstance(backbone.network.last, nn.Identity)  # type: ignore[union-attr]


@pytest.mark.parametrize("saved_folded", [False, True])
def test_weights_are_loaded_as_they_were_saved(saved_folded: bool, tmp_path: Path) -> None:
    source = trained(built("conv4"))
    if saved_folded:
        fold_batchnorm(source, SHAPE)
    save_weights(source, tmp_path / "w ü.safetensors")
    file = str(tmp_path / "w ü.safetensors")
    loaded = built("conv4", checkpoint=file, fold_batchnorm=True)
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(extract(loaded, x), extract(source, x), rtol=1e-4, atol=1e-4)


def test_a_model_is_built_again_with_merged_weights(tmp_path: Path) -> None:
    backbone = built("resnet18_slim", fold_batchnorm=True)
    wide = built("conv4", fold_batchnorm=True, width=8)
    for number, each in enumerate((backbone, wide)):
        folder = tmp_path / str(number)
        folder.mkdir()
        kept = KeptBackbone.of(each)
        kept.save(each, folder)
        again = KeptBackbone.model_validate_json(kept.model_dump_json()).load(folder)
        assert fingerprint(again) == fingerprint(each)


def test_half_precision_and_several_layers_are_merged_as_well() -> None:
    x = torch.rand(3, *SHAPE)
    for settings in ({"precision": "bfloat16"}, {"layers": "all"}):
        plain, folded = (
            extract(built("resnet18_slim", fold_batchnorm=f, **settings), x) for f in (False, True)
        )
        torch.testing.assert_close(folded, plain, rtol=0.05, atol=0.02 * float(plain.abs().max()))


def test_a_strategy_that_trains_is_refused(tmp_path: Path) -> None:
    (config,) = load([
        "benchmark=digits", "strategy=naive", "backbone=conv4", f"output={tmp_path}",
        "backbone.fold_batchnorm=true",
    ])  # fmt: skip
    with pytest.raises(ConfigError, match="strategy 'naive' trains its backbone"):
        prepare(RunContext("experiment", config, open_run(config)))
