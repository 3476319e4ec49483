"""Adaptations: sizes as published, nothing but their own weights moves, clear refusals."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from protocl.backbones import Backbone, BackboneConfig, build_backbone, fingerprint
from protocl.backbones.adaptation import adapt, find_adaptation
from protocl.backbones.adaptation.vision_transformer import (
    AppendTokens,
    ParallelAdapter,
    ScaleShift,
)
from protocl.errors import ConfigError
from tests import third_party

timm = pytest.importorskip("timm")

SIZES = {
    "none": 0,
    "finetune": 85_798_656,
    "vpt_shallow": 3_840,
    "vpt_deep": 46_080,
    "ssf": 205_824,
    "adapter": 1_189_632,
    "lora": 8 * 36_864,
    "lora:rank=3": 3 * 36_864,
}
"""Trained parameters of ViT-B/16 in the logs of APER; SSF: growth of the total.

LoRA: 4 x 12 x 768 a rank."""

EFFICIENT = ("vpt_shallow", "vpt_deep", "ssf", "adapter", "lora")
IMAGES = (1, 8, 8)


def vit() -> Backbone:
    return build_backbone(BackboneConfig(name="vit", width=64), IMAGES, 0)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *IMAGES, generator=torch.Generator().manual_seed(0))


def moved(backbone: Backbone, *kinds: type[nn.Module]) -> Backbone:
    """All inserted weights drawn anew, so that none of them is without effect."""
    generator = torch.Generator().manual_seed(1)
    inserted = [m for m in backbone.modules() if isinstance(m, kinds)]
    assert inserted
    with torch.no_grad():
        for module in inserted:
            own = [module.down, module.up] if isinstance(module, ParallelAdapter) else [module]
            for parameter in (p for part in own for p in part.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return backbone


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model("vit_base_patch16_224", num_classes=0)
        total = sum(p.numel() for p in network.parameters())
        trained = adapt(network, name)
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 768)
    assert sum(p.numel() for p in trained) == SIZES[name]
    grown = sum(p.numel() for p in network.parameters()) - total
    assert grown == (0 if name in ("none", "finetune") else SIZES[name])


@pytest.mark.parametrize("name", EFFICIENT)
def test_only_what_is_inserted_takes_gradients_and_moves(name: str) -> None:
    backbone = vit()
    before = {id(p): p.detach().clone() for p in backbone.parameters()}
    trained = adapt(backbone, name)
    assert not {id(p) for p in trained} & set(before)
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == {id(p) for p in trained}
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):  # the first step moves the adapter's way up alone
        optimizer.zero_grad()
        backbone(images()).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    kept = [p for p in backbone.parameters() if id(p) in before]
    assert len(kept) == len(before)
    assert all(torch.equal(p, before[id(p)]) for p in kept)


@pytest.mark.parametrize("name", EFFICIENT)
def test_they_hold_in_half_precision(name: str) -> None:
    config = BackboneConfig(name="vit", width=64, precision="bfloat16")
    backbone = build_backbone(config, IMAGES, 0)
    trained = adapt(backbone, name)
    features = backbone(images())
    assert features.dtype == torch.float32
    full = copy.deepcopy(backbone).eval()
    full.precision = "float32"
    torch.testing.assert_close(backbone.eval()(images()), full(images()), rtol=0.05, atol=0.05)
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_an_adapter_changes_nothing_at_first() -> None:
    backbone = vit().eval()
    expected = backbone(images())
    adapt(backbone, "adapter")
    assert torch.equal(backbone.eval()(images()), expected)
    moved(backbone, ParallelAdapter)
    assert not torch.allclose(backbone(images()), expected)


def test_adapters_stand_beside_the_mlp_and_see_tokens_before_their_norm() -> None:
    plain = vit().eval().network
    adapted = moved_network("adapter", ParallelAdapter)
    tokens = torch.randn(2, 4, 64)
    for block, changed in zip(plain.blocks, adapted.blocks, strict=True):
        x = tokens + block.attn(block.norm1(tokens))
        down, up = changed.mlp.down, changed.mlp.up
        expected = x + block.mlp(block.norm2(x)) + 0.1 * up(torch.relu(down(x)))
        torch.testing.assert_close(changed(tokens), expected)


def moved_network(name: str, kind: type[nn.Module]) -> nn.Module:
    backbone = vit().eval()
    adapt(backbone, name)
    return moved(backbone, kind).eval().network


@pytest.mark.parametrize("name", ["vpt_shallow", "vpt_deep"])
def test_prompts_are_appended_and_cut_off_as_published(name: str) -> None:
    plain, adapted = vit().eval().network, moved_network(name, AppendTokens)
    prompts = [m.tokens for m in adapted.modules() if isinstance(m, AppendTokens)]
    x = plain._pos_embed(plain.patch_embed(images()))
    patches = x.shape[1]
    for number, block in enumerate(plain.blocks):
        if name == "vpt_deep" or number == 0:
            x = torch.cat([x[:, :patches], prompts[number].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    expected = plain.forward_head(plain.norm(x[:, :patches]))
    torch.testing.assert_close(adapted(images()), expected)


def test_prompts_start_at_zero_and_yet_count_as_keys() -> None:
    backbone = vit().eval()
    before = backbone(images())
    assert all((tokens == 0).all() for tokens in adapt(backbone, "vpt_shallow"))
    assert not torch.equal(backbone(images()), before)


def test_scales_and_shifts_can_be_folded_into_the_layers_before_them() -> None:
    plain, adapted = vit().eval().network, moved_network("ssf", ScaleShift)
    embedding = adapted.patch_embed.norm[0]
    with torch.no_grad():
        projection = plain.patch_embed.proj
        projection.weight.mul_(embedding.scale.view(-1, 1, 1, 1))
        projection.bias.copy_(projection.bias * embedding.scale + embedding.shift)
        layers = dict(plain.named_modules())
        folded = 0
        for path, module in adapted.named_modules():
            if not isinstance(module, ScaleShift) or module is embedding:
                continue
            layer, rows = layers[path.removesuffix(".1")], module.scale
            shape = (-1, *(1,) * (layer.weight.ndim - 1))
            layer.weight.mul_(rows.view(shape))
            layer.bias.copy_(layer.bias * rows + module.shift)
            folded += 1
    assert folded == 6 * 6 + 1
    torch.testing.assert_close(adapted(images()), plain(images()), rtol=1e-4, atol=1e-4)


def test_scales_and_shifts_start_near_the_identity() -> None:
    backbone = vit()
    torch.manual_seed(0)
    trained = adapt(backbone, "ssf")
    scales, shifts = (torch.cat(trained[start::2]).detach() for start in (0, 1))
    assert len(scales) > 4000
    assert abs(float(scales.mean()) - 1) < 2e-3
    assert abs(float(shifts.mean())) < 2e-3
    assert 0.019 < float(scales.std()) < 0.021
    assert 0.019 < float(shifts.std()) < 0.021


@pytest.mark.parametrize("name", EFFICIENT)
def test_they_hold_for_a_timm_model_with_a_class_token_and_a_head(name: str) -> None:
    network = timm.models.VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=5, embed_dim=32, depth=2, num_heads=2,
        init_values=0.1,
    )  # fmt: skip
    head = network.head
    trained = adapt(network, name)
    assert network.head is head
    assert network(images()).shape == (6, 5)
    network(images()).sum().backward()
    assert all(p.grad is not None for p in trained)
    assert head.weight.grad is None


def test_an_adapted_backbone_is_another_one() -> None:
    prints = {fingerprint(vit())}
    for name in EFFICIENT:
        backbone = vit()
        adapt(backbone, name)
        prints.add(fingerprint(backbone))
    assert len(prints) == 1 + len(EFFICIENT)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_batch_norm_gets_the_average_of_what_it_sees(order: tuple[int, ...]) -> None:
    layers = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    with torch.no_grad():
        layers[0].running_mean.fill_(7.0)
        layers[0].weight.copy_(torch.randn(4))
    weights = copy.deepcopy(list(layers.parameters()))
    batches = [torch.randn(10, 4) * scale + scale for scale in (1.0, 2.0, 3.0)]
    assert adapt(layers, "bn") == []
    layers.train()
    find_adaptation(layers, "bn").set_mode(layers)
    assert not layers[1].training
    for number in order:
        layers(batches[number])
    means = torch.stack([batch.mean(0) for batch in batches])
    variances = torch.stack([batch.var(0) for batch in batches])
    torch.testing.assert_close(layers[0].running_mean, means.mean(0))
    torch.testing.assert_close(layers[0].running_var, variances.mean(0))
    assert all(torch.equal(a, b) for a, b in zip(layers.parameters(), weights, strict=True))
    assert not any(p.requires_grad for p in layers.parameters())


def test_fine_tuning_leaves_alone_what_was_frozen() -> None:
    backbone = vit()
    backbone.network.patch_embed.requires_grad_(False)
    trained = adapt(backbone, "finetune")
    assert not backbone.network.patch_embed.proj.weight.requires_grad
    assert {id(p) for p in trained} == {id(p) for p in backbone.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("backbone", "name", "message"),
    [
        ("conv4", "ssf", r"adapt=ssf .* not apply to backbone conv4.*choose from bn, finetune, no"),
        ("conv4", "vpt_deep", r"adapt=vpt_deep .*vision transformer.*: choose from bn, finetune"),
        ("vit", "bn", r"adapt=bn .*BatchNorm.*vit.*from adapter, finetune, lora, none, ssf"),
        ("vit", "adapters", r"unknown adaptation 'adapters': did you mean 'adapter'"),
    ],
)
def test_what_does_not_apply_is_refused_and_changes_nothing(
    backbone: str, name: str, message: str
) -> None:
    built = build_backbone(BackboneConfig(name=backbone), (1, 8, 8), 0)
    before = fingerprint(built)
    with pytest.raises(ConfigError, match=message):
        adapt(built, name)
    assert fingerprint(built) == before
    assert all(p.requires_grad for p in built.parameters())


def test_a_third_partys_adaptation_goes_through_the_same_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third_party.install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = vit()
    trained = adapt(backbone, "acme_norms")
    assert sum(p.numel() for p in trained) == (2 * 6 + 1) * 2 * 64
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == {id(p) for p in trained}
    conv = build_backbone(BackboneConfig(name="conv4"), IMAGES, 0)
    with pytest.raises(ConfigError, match=r"The weights of layer norms.*from bn, finetune, none$"):
        adapt(conv, "acme_norms")
