"""Feature passes on the device: extract, streams, half precision, compiled; and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from protocl import PrototypeClassifier, load_model, save_model
from protocl.backbones import BackboneConfig, build_backbone
from protocl.backbones.features import extract
from protocl.model.graph import export_model
from protocl.streaming import StreamConfig, stream
from tests.data.shards.written import digits, pictures, write_tar


def images(count: int = 64) -> torch.Tensor:
    return torch.randint(
        256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_extract(device: torch.device, precision: str) -> None:
    config = BackboneConfig(name="resnet18_slim", width=8, precision=precision)
    backbone = build_backbone(config, (3, 32, 32), 0).eval()
    plain = build_backbone(BackboneConfig(name="resnet18_slim", width=8), (3, 32, 32), 0).eval()
    found, expected = extract(backbone, images(), device=device), extract(plain, images())
    similar = torch.nn.functional.cosine_similarity(found, expected)
    assert float(similar.min()) > (0.9999 if precision == "float32" else 0.99)


@pytest.mark.parametrize("compiled", ["no", "yes", "graphs"])
def test_stream(
    device: torch.device, tmp_path: Path, compiled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":  # whose compiler takes minutes
        traced = torch.compile
        monkeypatch.setattr(
            torch, "compile", lambda model, mode, dynamic: traced(model, backend="eager")
        )
    write_tar(tmp_path / "a.tar", pictures(range(70)))
    config = StreamConfig(
        backbone=BackboneConfig(name="conv4", width=8), device=device.type, batch_size=32,
        compiled=compiled,
    )  # fmt: skip
    stream([str(tmp_path / "a.tar")], tmp_path / "found", config)
    stream([str(tmp_path / "a.tar")], tmp_path / "expected", StreamConfig(
        backbone=BackboneConfig(name="conv4", width=8), device="cpu", batch_size=32
    ))  # fmt: skip
    found: Any = load_model(tmp_path / "found")
    expected: Any = load_model(tmp_path / "expected")
    assert torch.equal(found.memory_.counts, expected.memory_.counts)
    torch.testing.assert_close(found.memory_.means, expected.memory_.means, rtol=1e-2, atol=1e-2)


def test_a_model_of_the_device_is_exported(device: torch.device, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    x, y = digits()
    flat = torch.from_numpy(x.reshape(-1, 64)).float() / 255
    known = PrototypeClassifier("lda").fit(flat[:600].numpy(), y[:600])
    known.memory_, known.head_ = known.memory_.to(device), known.head_.to(device)
    known.memory_, known.head_ = known.memory_.to("cpu"), known.head_.to("cpu")
    save_model(known, tmp_path / "model")
    export_model(load_model(tmp_path / "model"), tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.get_inputs()
