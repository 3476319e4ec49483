"""Extraction leaves no trace; the cache computes once, notices damage, and stands two processes."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from protocl.backbones import BackboneConfig, build_backbone
from protocl.backbones.batch_size import default_batch_size
from protocl.backbones.features import FeatureCache, extract
from protocl.data import ArrayData, BenchmarkConfig, load_data
from protocl.io.progress import progress_bar
from tests.io.test_atomic import die_while_writing


class Counting(nn.Module):
    """Counts the samples it sees; features are two sums of the pixels."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        flat = x.flatten(1)
        return torch.stack([flat.sum(1), flat.square().sum(1)], 1) * self.factor


@pytest.fixture(scope="module")
def digits() -> ArrayData:
    return load_data(BenchmarkConfig())


def pictures(n: int = 10) -> ArrayData:
    x = torch.arange(n * 4, dtype=torch.uint8).view(n, 1, 2, 2)
    y = torch.arange(n) % 2
    return ArrayData(x, y, x[:3] + 100, y[:3], ["a", "b"], "pictures")


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def test_features_are_those_of_one_forward_pass_in_evaluation_mode(digits: ArrayData) -> None:
    backbone = build_backbone(BackboneConfig("conv4"), digits.input_shape, 0)
    backbone(digits.x_train[:64])  # statistics that evaluation mode must use
    features = extract(backbone, digits.x_test, batch_size=77)
    with torch.no_grad():
        torch.testing.assert_close(features, backbone.eval()(digits.x_test))
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_bytes_are_scaled() -> None:
    x = torch.tensor([[[[255, 0], [51, 0]]]], dtype=torch.uint8)
    assert extract(Counting(), x)[0, 0].item() == pytest.approx(1.2)


def test_the_backbone_is_left_as_it_was_found(digits: ArrayData) -> None:
    backbone = build_backbone(BackboneConfig("conv4"), digits.input_shape, 0)
    backbone.network[1].eval()  # a normalisation layer that the user froze
    modes = [module.training for module in backbone.modules()]
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    random = torch.random.get_rng_state()
    extract(backbone, digits.x_test)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(state[name], t) for name, t in backbone.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error() -> None:
    backbone = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    with pytest.raises(RuntimeError):
        extract(backbone, torch.zeros(4, 5))
    assert all(module.training for module in backbone.modules())


def test_no_samples_give_no_features_of_the_right_width() -> None:
    assert extract(Counting(), torch.zeros(0, 1, 2, 2)).shape == (0, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_another_device_computes_and_the_backbone_comes_home() -> None:
    backbone = Counting()
    x = torch.rand(5, 1, 2, 2)
    torch.testing.assert_close(extract(backbone, x, device="cuda"), extract(backbone, x))
    assert backbone.factor.device.type == "cpu"


def test_batches_shrink_with_the_images_on_a_cpu() -> None:
    cpu, small = torch.device("cpu"), torch.zeros(1, 3, 32, 32)
    lite = BackboneConfig("timm/resnet10t", image_size=224)
    assert default_batch_size(nn.Identity(), small, cpu) == 256
    assert default_batch_size(build_backbone(lite, (3, 32, 32), 0), small, cpu) == 5
    assert default_batch_size(nn.Identity(), torch.zeros(1, 3, 999, 999), cpu) == 1
    assert default_batch_size(nn.Identity(), small, torch.device("cuda")) == 256


def test_cache_gives_what_extraction_gives(tmp_path: Path, digits: ArrayData) -> None:
    backbone = build_backbone(BackboneConfig("resnet18_slim"), digits.input_shape, 0)
    for _ in range(2):
        encoded = FeatureCache(tmp_path).encode(digits, backbone, batch_size=256)
        assert torch.equal(encoded.x_train, extract(backbone, digits.x_train, batch_size=256))
        assert torch.equal(encoded.x_test, extract(backbone, digits.x_test, batch_size=256))
    assert torch.equal(encoded.y_train, digits.y_train)
    assert encoded.class_names == digits.class_names
    assert backbone.training


def test_a_frozen_backbone_sees_each_image_once(tmp_path: Path) -> None:
    backbone, data = Counting(), pictures()
    first = FeatureCache(tmp_path).encode(data, backbone)
    assert backbone.seen == 13
    relabelled = ArrayData(
        data.x_train, 1 - data.y_train, data.x_test, data.y_test, ["x", "y"], "other"
    )
    again = FeatureCache(tmp_path).encode(relabelled, backbone)
    assert backbone.seen == 13
    assert torch.equal(first.x_train, again.x_train)


def test_other_images_or_another_backbone_are_other_features(tmp_path: Path) -> None:
    cache, backbone, data = FeatureCache(tmp_path), Counting(), pictures()
    cache.encode(data, backbone)
    changed = data.with_samples(data.x_train.flip(0), data.x_test)
    encoded = cache.encode(changed, backbone)
    assert backbone.seen == 13 + 10
    assert torch.equal(encoded.x_train, extract(Counting(), changed.x_train))
    doubled = cache.encode(data, Counting(2.0))
    assert torch.equal(doubled.x_test, 2 * encoded.x_test)


def test_long_data_is_kept_in_pieces_so_that_a_stopped_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocl.backbones.features.SHARD", 4)

    class Stops(Counting):
        def forward(self, x: Tensor) -> Tensor:
            if self.seen >= 8:
                raise KeyboardInterrupt
            return super().forward(x)

    data, cache = pictures(), FeatureCache(tmp_path)
    stopped = Stops()
    Stops.__module__, Stops.__qualname__ = Counting.__module__, Counting.__qualname__
    with pytest.raises(KeyboardInterrupt):
        cache.encode(data, stopped)
    continued = Counting()
    encoded = cache.encode(data, continued)
    assert continued.seen == 13 - 8
    assert torch.equal(encoded.x_train, extract(Counting(), data.x_train))


def damage_cut(content: bytes) -> bytes:
    return content[: len(content) - 5]


def damage_flip_feature(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def damage_flip_checksum(content: bytes) -> bytes:
    where = content.index(b'"sha256":"') + 10
    flipped = b"0" if content[where : where + 1] != b"0" else b"1"
    return content[:where] + flipped + content[where + 1 :]


def damage_header(content: bytes) -> bytes:
    return b"\xff" * 9 + content[9:]


def damage_empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_flip_feature, damage_flip_checksum, damage_header, damage_empty],
)
def test_damaged_file_is_reported_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    assert callable(damage)
    cache, backbone, data = FeatureCache(tmp_path), Counting(), pictures()
    cache.encode(data, backbone)
    victim = max(files(tmp_path), key=lambda path: path.stat().st_size)
    whole = victim.read_bytes()
    victim.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, "protocl"):
        encoded = cache.encode(data, backbone)
    assert torch.equal(encoded.x_train, extract(Counting(), data.x_train))
    assert backbone.seen == 13 + 10
    assert victim.name in caplog.text
    assert "damaged" in caplog.text
    assert len(victim.read_bytes()) == len(whole)
    caplog.clear()
    cache.encode(data, backbone)
    assert not caplog.records


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        FeatureCache(tmp_path).encode(pictures(), Counting())
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_what_a_killed_process_half_wrote_is_removed(tmp_path: Path) -> None:
    cache, data = FeatureCache(tmp_path), pictures()
    cache.encode(data, Counting())
    victim = next(path for path in files(tmp_path))
    victim.unlink()
    die_while_writing(victim)
    assert victim not in files(tmp_path)
    cache.encode(data, Counting())
    assert victim in files(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


WORKER = """
import sys, time, torch
from protocl.backbones.features import FeatureCache
from tests.backbones.test_features import Counting, pictures

class Slow(Counting):
    def forward(self, x):
        time.sleep(0.3)
        return super().forward(x)

Slow.__module__, Slow.__qualname__ = Counting.__module__, Counting.__qualname__
backbone = Slow()
print("ready", flush=True)
sys.stdin.readline()
encoded = FeatureCache(sys.argv[1]).encode(pictures(), backbone)
print(backbone.seen, encoded.x_train.sum().item(), encoded.x_test.sum().item())
"""


def test_two_processes_compute_once_between_them(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    answers = [worker.communicate("go\n", timeout=60)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sum(int(seen) for seen, *_ in answers) == 13
    assert answers[0][1:] == answers[1][1:]


def test_progress_shows_only_after_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar("encoding", 3) as bar:
        bar.update()
        assert capsys.readouterr().err == ""
        bar.start_t -= 2.5
        bar.last_print_t -= 2.5
        bar.update()
        assert "encoding" in capsys.readouterr().err
    with progress_bar("encoding", 3, enabled=False) as bar:
        bar.start_t = 0.0
        bar.update()
    assert capsys.readouterr().out == ""
