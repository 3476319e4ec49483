"""One pass read in many surroundings: threads, copies, adaptations, graphs, models on disk."""

from __future__ import annotations

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from protocl import PrototypeClassifier, load_model
from protocl.backbones import Backbone, BackboneConfig, load_weights, read_layers, save_weights
from protocl.backbones.adaptation import adapt
from protocl.backbones.branches import two_branches
from protocl.backbones.layers.multi_layer import MultiLayer, Pooling
from protocl.errors import ConfigError, FingerprintError
from protocl.heads import NearestMean, Ridge
from protocl.model import Network, export_onnx
from protocl.model.export import largest_difference
from tests.backbones.layers.networks import built
from tests.golden.statistics_methods import inputs, values


def images(number: int = 6, size: int = 8) -> torch.Tensor:
    return torch.rand(number, 1, size, size, generator=torch.Generator().manual_seed(0))


def resnet(**options: object) -> Backbone:
    return built("resnet18_slim", (1, 8, 8), width=4, layers="all", **options).eval()


@torch.no_grad()
def test_copies_and_pickles_read_their_own_network():
    backbone = resnet()
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        before = backbone(images())
        assert not torch.allclose(twin(images()), before)
        assert torch.equal(backbone(images()), before)


@torch.no_grad()
def test_passes_in_several_threads_do_not_hear_each_other():
    backbone = resnet()
    batches = [images(1 + number % 5) * (1 + number) / 40 for number in range(40)]
    expected = [backbone(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(torch.no_grad()(backbone), batches))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_a_layer_that_was_replaced_is_missed():
    backbone = resnet()
    backbone.network.layer2 = nn.Sequential(copy.deepcopy(backbone.network.layer2[0]))
    with pytest.raises(RuntimeError, match=r"'layer2.1' gave nothing .*read_layers anew"):
        backbone(images())


def test_unit_scale_gives_each_layer_the_same_length():
    plain, unit = resnet(), resnet(layer_scale="unit")
    widths = [4, 4, 8, 8, 16, 16, 32, 32]
    for part, whole in zip(
        unit(images()).split(widths, 1), plain(images()).split(widths, 1), strict=True
    ):
        torch.testing.assert_close(part, nn.functional.normalize(whole, dim=1))


def test_gradients_reach_every_weight():
    backbone = resnet().train()
    backbone(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


@torch.no_grad()
def test_weights_have_the_names_they_have_without_layers(tmp_path: Path):
    plain = built("resnet18_slim", (1, 8, 8), width=4).eval()
    other = resnet(seed=5)
    save_weights(plain, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    assert torch.equal(other(images())[:, -32:], plain(images()))


@pytest.mark.parametrize("name", ["ssf", "adapter", "vpt_deep"])
@torch.no_grad()
def test_adapted_transformers_are_read_where_their_blocks_were(name: str):
    pytest.importorskip("timm")
    backbone = built("vit", (1, 8, 8), width=64, layers="all").eval()
    torch.manual_seed(0)
    adapt(backbone, name)
    for parameter in backbone.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    net, x = backbone.eval().network, images()
    tokens = net._pos_embed(net.patch_embed((x - 0.5) / 0.5))
    expected = []
    for block in net.blocks:
        tokens = block(tokens)
        expected.append(tokens.mean(1))
    torch.testing.assert_close(backbone(x), torch.cat(expected, 1))


def test_an_adaptation_that_moves_the_blocks_is_refused():
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"adapt=vpt_shallow moves the layers"):
        adapt(built("vit", (1, 8, 8), width=64, layers=2), "vpt_shallow")


@torch.no_grad()
def test_two_branches_read_each_its_own():
    first, second = resnet(), resnet(seed=4)
    both = two_branches(first, second, first.feature_dim)
    assert both.feature_dim == 2 * 120
    assert torch.equal(both(images()), torch.cat([first(images()), second(images())], 1))
    wrapped = Backbone(nn.Sequential(first), 120, architecture="around")
    with pytest.raises(ConfigError, match="reads layers already"):
        read_layers(wrapped, 1, (1, 8, 8))


@pytest.mark.parametrize("scale", ["unit", "std"])
def test_graphs_hold_the_layers(scale: str, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    config = BackboneConfig("conv4", width=4, layers="all", layer_scale=scale)
    pixels = (images(20, 16) * 255).byte()
    model = PrototypeClassifier(NearestMean(), backbone=config)
    model.fit(pixels, np.arange(20) % 3)
    network = Network(model.encoder_.backbone, model.head_.fit(model.memory_))
    path = export_onnx(network, pixels[:1], tmp_path / "model.onnx")
    for number in (1, 2, 17):
        assert largest_difference(network, pixels[:number], path) <= 1e-5


@pytest.mark.parametrize("scale", ["none", "unit", "std"])
@pytest.mark.parametrize("layers", [2, ["0", "3"]])
def test_models_on_disk(layers: object, scale: str, tmp_path: Path):
    config = BackboneConfig("conv4", width=4, layers=layers, layer_scale=scale, image_size=16)
    x, y = images(20, 12), np.array(["Ärger", "b", "c"])[np.arange(20) % 3]
    model = PrototypeClassifier("ridge", backbone=config).fit(x, y)
    model.save(tmp_path / "mit Raum ü")
    read = load_model(tmp_path / "mit Raum ü")
    np.testing.assert_array_equal(read.scores(x), model.scores(x))
    description = (tmp_path / "mit Raum ü" / "model.json").read_text()
    assert json.dumps(layers) in json.dumps(json.loads(description))
    read.partial_fit(x[:3], y[:3])
    np.testing.assert_array_equal(read.scores(x), model.partial_fit(x[:3], y[:3]).scores(x))


def test_a_model_over_a_network_of_one_s_own(tmp_path: Path):
    def own(layers: object) -> Backbone:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
        return read_layers(Backbone(net, 3, architecture="own"), layers, (5,))

    x, y = torch.rand(12, 5), np.arange(12) % 2
    model = PrototypeClassifier(backbone=own("all")).fit(x, y)
    model.save(tmp_path / "m")
    read = load_model(tmp_path / "m", backbone=own("all"))
    np.testing.assert_array_equal(read.scores(x), model.scores(x))
    with pytest.raises(FingerprintError):
        load_model(tmp_path / "m", backbone=own(["0", "2"]))


@pytest.mark.parametrize("bias", [False, True])
def test_layup_by_its_authors_code(bias: bool):
    data, golden = inputs(), values("layup_ridge_two_layers_three_tasks")[f"bias_{bias}"]
    backbone = Backbone(_Two(data["W"]), 40, architecture="two")
    read_layers(backbone, ["hidden", "first"], (12,))
    assert backbone.feature_dim == 52
    strength = golden["lambda_by_task"][-1]  # that of the last task is used with all sums
    head = Ridge(regularization=strength, bias=bias, dtype=torch.float64)
    head.fit(head.new_memory(52).update(backbone(data["X"]), data["y"]))
    expected = torch.tensor(golden["scores_first_6_test"], dtype=torch.float64)
    torch.testing.assert_close(head(backbone(data["T"][:6])), expected, rtol=0, atol=1e-8)


class _Two(nn.Module):
    """``X``, and ``relu(X W)``."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.hidden = nn.Sequential(nn.Linear(12, 40, bias=False, dtype=torch.float64), nn.ReLU())
        self.hidden[0].weight = nn.Parameter(weight.T, requires_grad=False)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden(self.first(x).to(torch.float64))


def test_pooling_takes_vectors_tokens_and_maps_alone():
    maps = torch.rand(2, 3, 4, 5)
    assert torch.equal(Pooling()(maps), maps.mean((2, 3)))
    assert torch.equal(Pooling(channels_last=True)(maps), maps.mean((1, 2)))
    tokens = torch.rand(2, 3, 4)
    assert torch.equal(Pooling(skipped_tokens=1)(tokens), tokens[:, 1:].mean(1))
    assert torch.equal(Pooling(class_token=True)(tokens), tokens[:, 0])
    for wrong in (torch.rand(3), torch.rand(1, 2, 3, 4, 5), [tokens]):
        with pytest.raises(TypeError, match="a layer gives"):
            Pooling()(wrong)
    assert MultiLayer(["a"], Pooling()).describe() == "layers a (average), scale none"
