"""Data sets: what is loaded, in which form, and what is said when it cannot be."""

import gzip
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from protocl.data import ArrayData, BenchmarkConfig, TensorData, as_images, load_data
from protocl.data.arrays import tensor_hash
from protocl.data.mnist import read_idx
from protocl.errors import ConfigError, DataError

REAL_DATA = Path(
    os.environ.get("PROTOCL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
)


def real(name: str) -> str:
    """Path of a real archive, or skip."""
    path = REAL_DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is absent; set PROTOCL_DATA to the folder that holds {name}")
    return str(path)


def archive(path: Path, **changes: np.ndarray) -> BenchmarkConfig:
    """A configuration over an archive of two classes of 4x4 colour images."""
    arrays = {
        "x_train": np.arange(4 * 48, dtype=np.uint8).reshape(4, 4, 4, 3),
        "y_train": np.array([0, 1, 0, 1]),
        "x_test": np.zeros((2, 4, 4, 3), dtype=np.uint8),
        "y_test": np.array([0, 1]),
        **changes,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return BenchmarkConfig(name="npz", path=str(path))


def test_importing_data_does_not_import_what_only_some_commands_need() -> None:
    heavy = "avalanche", "flwr", "torchvision", "timm", "matplotlib", "sklearn"
    code = "import sys, protocl.data, protocl.backbones, protocl.backbones.features\n"
    code += f"print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_configuration_is_a_valid_schema_whose_defaults_load_the_digits() -> None:
    config = OmegaConf.to_object(OmegaConf.structured(BenchmarkConfig))
    assert isinstance(config, BenchmarkConfig)
    assert load_data(config).name == "digits"


def test_digits_are_all_there_split_by_class_and_scaled() -> None:
    from sklearn.datasets import load_digits

    data = load_data(BenchmarkConfig())
    assert data.input_shape == (1, 8, 8)
    assert (len(data.x_train), len(data.x_test), data.n_classes) == (1347, 450, 10)
    images, labels = load_digits(return_X_y=True)
    ours = torch.cat([data.x_train, data.x_test]).flatten(1) * 16
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, images.tolist()))
    share = torch.bincount(data.y_test) / torch.from_numpy(np.bincount(labels))
    assert share.sub(0.25).abs().max() < 0.005


def test_the_split_of_the_digits_never_changes() -> None:
    data = load_data(BenchmarkConfig())
    again = load_data(BenchmarkConfig(order_seed=7))
    assert data.content_hash == again.content_hash
    assert data.y_test[:12].tolist() == [2, 0, 4, 9, 4, 1, 2, 4, 6, 7, 9, 1]


def test_archive_of_colour_images_keeps_bytes_and_becomes_channels_first(tmp_path: Path) -> None:
    config = archive(tmp_path / "a.npz", classes=np.array(["cat", "dog"]))
    data = load_data(config)
    assert data.x_train.dtype == torch.uint8
    assert data.input_shape == (3, 4, 4)
    assert data.x_train[1, 2, 3, 0] == 1 * 48 + 3 * 12 + 0 * 3 + 2
    assert data.class_names == ["cat", "dog"]
    assert data.x_train.is_contiguous()


@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 4, 4, 1), (4, 1, 4, 4)])
def test_archive_of_grey_images_in_every_layout(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 16)).astype(np.uint8)
    data = load_data(archive(tmp_path / "a.npz", x_train=x.reshape(shape), x_test=x.reshape(shape),
                             y_test=np.array([0, 1, 1, 0])))  # fmt: skip
    assert data.x_train.shape == (4, 1, 4, 4)
    assert torch.equal(data.x_train.flatten(1), torch.from_numpy(x))


def test_archive_of_features_may_hold_any_float(tmp_path: Path) -> None:
    x = np.linspace(-5, 5, 12).reshape(4, 3)
    data = load_data(archive(tmp_path / "a.npz", x_train=x, x_test=x[:2]))
    assert data.x_train.dtype == torch.float32
    assert data.input_shape == (3,)
    np.testing.assert_allclose(data.x_train.numpy(), x, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "expected x_train, y_train, x_test, y_test"),
        ({"y_train": np.array([0.5, 1, 0, 1])}, r"y_train: row 0 is 0\.5; expected whole numbers"),
        ({"y_train": np.array([0, -1, 0, 1])}, "label -1"),
        ({"y_train": np.array([0, 1])}, r"shape \(2,\); expected int64 of shape \(4,\)"),
        ({"x_train": np.full((4, 4, 4, 3), 200.0)}, r"200\.\.200; expected floating-point pixels"),
        ({"x_train": np.full((4, 4, 4), np.nan)}, r"x_train: row 0 holds nan \(4 of 4 rows"),
        ({"x_train": np.zeros((4, 4, 4, 7), np.uint8)}, "1 or 3 channels"),
        ({"x_train": np.zeros((4, 4, 4), np.int32)}, "int32; expected uint8 or floating"),
        ({"x_train": np.zeros((4, 5, 5, 3), np.uint8)}, "same shape"),
        ({"classes": np.array(["only"])}, r"labels lie in 0\.\.1; expected 0\.\.0"),
    ],
)
def test_archive_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_data(archive(tmp_path / "a.npz", **changes))


def test_archive_that_is_absent_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz does not exist.*benchmark\.path"):
        load_data(BenchmarkConfig(name="npz", path=str(tmp_path / "none.npz")))
    with pytest.raises(ConfigError, match=r"benchmark\.path=FILE\.npz"):
        load_data(BenchmarkConfig(name="npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"cannot be read as an \.npz"):
        load_data(BenchmarkConfig(name="npz", path=str(tmp_path / "text.npz")))
    config = archive(tmp_path / "cut.npz")
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_data(config)


def test_archive_never_runs_code(tmp_path: Path) -> None:
    x = np.empty(4, dtype=object)
    config = archive(tmp_path / "a.npz", x_train=x)
    with pytest.raises(DataError, match="'x_train' cannot be read: Object arrays"):
        load_data(config)


def test_background_and_evaluation_splits_are_cut_drawer_by_drawer(tmp_path: Path) -> None:
    x = np.arange(2 * 20, dtype=np.uint8).reshape(40, 1, 1)
    y = np.repeat([0, 1], 20)
    np.savez(tmp_path / "o.npz", x_evaluation=x, y_evaluation=y, x_background=x + 100,
             y_background=y)  # fmt: skip
    config = BenchmarkConfig(name="omniglot", path=str(tmp_path / "o.npz"))
    data = load_data(config)
    assert data.x_train.flatten().tolist() == [*range(15), *range(20, 35)]
    assert data.x_test.flatten().tolist() == [*range(15, 20), *range(35, 40)]
    config.split, config.train_per_class, config.test_per_class = "background", 1, 2
    few = load_data(config)
    assert few.x_train.flatten().tolist() == [100, 120]
    assert few.x_test.flatten().tolist() == [101, 102, 121, 122]
    config.train_per_class = 19
    with pytest.raises(DataError, match=r"has 20 samples; train_per_class=19 and .* need 21"):
        load_data(config)
    config.split = "test"
    with pytest.raises(ConfigError, match=r"split=test: expected one of evaluation, background"):
        load_data(config)


def test_real_omniglot_gives_600_classes_of_15_and_5() -> None:
    config = BenchmarkConfig(name="omniglot", path=real("omniglot.npz"), classes=600)
    data = load_data(config)
    assert torch.bincount(data.y_train).tolist() == [15] * 600
    assert torch.bincount(data.y_test).tolist() == [5] * 600
    assert data.input_shape == (1, 28, 28)
    assert data.class_names[0].count("/") == 1
    # Ink is 255 on 0, and most of a drawing is paper.
    assert 0.02 < data.x_train.float().mean() / 255 < 0.3


def test_real_cifar100() -> None:
    data = load_data(BenchmarkConfig(name="cifar100", path=real("cifar100.npz")))
    assert data.input_shape == (3, 32, 32)
    assert torch.bincount(data.y_train).tolist() == [500] * 100
    assert torch.bincount(data.y_test).tolist() == [100] * 100
    assert data.class_names[0] == "apple"


def test_classes_and_samples_per_class_are_restricted(tmp_path: Path) -> None:
    data = load_data(BenchmarkConfig(classes=4, train_per_class=3, test_per_class=2))
    everything = load_data(BenchmarkConfig())
    assert data.class_names == ["0", "1", "2", "3"]
    assert torch.bincount(data.y_train).tolist() == [3] * 4
    assert torch.bincount(data.y_test).tolist() == [2] * 4
    firsts = everything.x_train[everything.y_train == 2][:3]
    assert torch.equal(data.x_train[data.y_train == 2], firsts)
    with pytest.raises(ConfigError, match="classes=11: digits has 10 classes"):
        load_data(BenchmarkConfig(classes=11))
    with pytest.raises(ConfigError, match="train_per_class=0: expected a number of at least 1"):
        load_data(BenchmarkConfig(train_per_class=0))
    with pytest.raises(DataError, match=r"test_per_class=46: class 8 .* has 43 samples"):
        load_data(BenchmarkConfig(test_per_class=46))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "digits", "path": "x.npz"}, r"benchmark\.path=x\.npz: 'digits' has no such"),
        ({"name": "cifar10", "split": "test"}, "'cifar10' has no such setting"),
        ({"name": "mnist", "image_size": 32}, r"set backbone\.image_size"),
        ({"name": "npz", "path": "x.npz", "image_size": 32}, r"set backbone\.image_size"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data(BenchmarkConfig(**settings))  # type: ignore[arg-type]


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cifar100'"):
        load_data(BenchmarkConfig(name="cifar1000"))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">i4").tobytes()
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, ending: str) -> None:
    rng = np.random.default_rng(3)
    for part, n in (("train", 30), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images)
        labels = (np.arange(n) % 10).astype(np.uint8)
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", labels)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_give_what_torchvision_reads(tmp_path: Path, ending: str) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw", "")
    write_mnist(tmp_path / "brought", ending)
    torchvision = load_data(BenchmarkConfig(name="fashion_mnist", root=str(tmp_path)))
    ours = load_data(BenchmarkConfig(name="fashion_mnist", path=str(tmp_path / "brought")))
    assert ours.content_hash == torchvision.content_hash
    assert ours.input_shape == (1, 28, 28)
    assert ours.class_names[9] == "Ankle boot"


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "a", np.zeros((3, 2), np.uint8))
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"shape \(3, 2\) but holds 5 bytes"):
        read_idx(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"\0\0\x0d" + whole[3:])
    with pytest.raises(DataError, match="not an idx file of unsigned bytes"):
        read_idx(tmp_path / "a")
    (tmp_path / "a.gz").write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "a.gz")
    with pytest.raises(DataError, match=r"neither train-images-idx3-ubyte\.gz nor"):
        load_data(BenchmarkConfig(name="mnist", path=str(tmp_path)))


def test_cifar_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (4, 3072)).astype(np.uint8)
    batch = {"data": rows, "fine_labels": [3, 1, 99, 0]}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {"fine_label_names": [f"class {i}" for i in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    # The real files' checksums cannot fit four invented images.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load_data(BenchmarkConfig(name="cifar100", root=str(tmp_path)))
    assert torch.equal(data.x_test, torch.from_numpy(rows.reshape(4, 3, 32, 32)))
    assert data.y_train.tolist() == [3, 1, 99, 0]
    assert data.class_names[99] == "class 99"


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "omniglot"])
def test_absent_set_says_where_it_belongs_and_how_to_get_it(tmp_path: Path, name: str) -> None:
    config = BenchmarkConfig(name=name, root=str(tmp_path))
    with pytest.raises(DataError, match=rf"{name} was not found in {tmp_path}.*download=true"):
        load_data(config)


def test_download_without_a_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    def offline(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    config = BenchmarkConfig(name="cifar10", root=str(tmp_path), download=True)
    with pytest.raises(DataError, match=r"could not be downloaded .*Name or service.*copy it"):
        load_data(config)


def test_omniglot_files_are_read_in_sorted_order(tmp_path: Path) -> None:
    root = tmp_path / "omniglot-py" / "images_background"
    for alphabet, character in (("B", "character01"), ("A", "character02"), ("A", "character01")):
        folder = root / alphabet / character
        folder.mkdir(parents=True)
        for drawer in reversed(range(1, 21)):
            grey = 255 if drawer == 20 else 5 * drawer
            Image.new("L", (105, 105), 255 - grey).save(folder / f"0001_{drawer:02d}.png")
    config = BenchmarkConfig(name="omniglot", root=str(tmp_path), split="background", image_size=14)
    data = load_data(config)
    assert data.class_names == ["A/character01", "A/character02", "B/character01"]
    assert data.input_shape == (1, 14, 14)
    assert data.x_train[:15, 0, 0, 0].tolist() == [5 * drawer for drawer in range(1, 16)]
    assert data.x_test[data.y_test == 2][:, 0, 3, 3].tolist() == [80, 85, 90, 95, 255]


def write_folder(root: Path, size: tuple[int, int] = (6, 4)) -> BenchmarkConfig:
    colours = {"cat": (250, 0, 0), "dog": (0, 250, 0)}
    for part in ("train", "test"):
        for name, colour in colours.items():
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", size, colour).save(root / part / name / "1.png")
    return BenchmarkConfig(name="image_folder", path=str(root))


def test_image_folder_is_resized_and_cut_to_a_square(tmp_path: Path) -> None:
    config = write_folder(tmp_path)
    assert load_data(config).input_shape == (3, 4, 6)
    config.image_size = 8
    data = load_data(config)
    assert data.input_shape == (3, 8, 8)
    assert data.x_test[1, :, 4, 4].tolist() == [0, 250, 0]
    assert data.class_names == ["cat", "dog"]
    assert data.x_train.dtype == torch.uint8


def test_image_folder_mistakes_are_named(tmp_path: Path) -> None:
    config = write_folder(tmp_path)
    Image.new("L", (7, 7)).save(tmp_path / "train" / "cat" / "2.png")
    with pytest.raises(DataError, match=r"7x7 pixels where others are 6x4; give .*image_size"):
        load_data(config)
    (tmp_path / "train" / "cat" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2\.png cannot be read as an image"):
        load_data(config)
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(DataError, match="cow"):
        load_data(config)
    with pytest.raises(DataError, match="none does not exist; expected a folder of images"):
        load_data(BenchmarkConfig(name="image_folder", path=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="holds train/CLASS/IMAGE"):
        load_data(BenchmarkConfig(name="image_folder"))


def test_content_hash_sees_every_part() -> None:
    def data(**changes: object) -> ArrayData:
        parts: dict[str, object] = {
            "x_train": torch.zeros(2, 3),
            "y_train": torch.tensor([0, 1]),
            "x_test": torch.ones(1, 3),
            "y_test": torch.tensor([0]),
            "class_names": ["a", "b"],
            "name": "n",
        }
        return ArrayData(**{**parts, **changes})  # type: ignore[arg-type]

    variants = [
        data(),
        data(x_train=torch.zeros(2, 3).index_fill(0, torch.tensor([1]), 1e-7)),
        data(y_train=torch.tensor([1, 0])),
        data(x_test=torch.zeros(1, 3)),
        data(y_test=torch.tensor([1])),
        data(class_names=["a", "c"]),
    ]
    assert len({variant.content_hash for variant in variants}) == len(variants)
    assert data().content_hash == data(name="other").content_hash


def test_tensor_hash_sees_type_shape_and_content_but_not_layout() -> None:
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert tensor_hash(x) == tensor_hash(x.t().contiguous().t())
    others = [x.reshape(3, 2), x.double(), x + 1, torch.tensor(0), torch.empty(0, 3)]
    assert len({tensor_hash(t) for t in [x, *others]}) == 6


def test_tensor_data_serves_the_same_values_singly_and_in_batches() -> None:
    x = torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8)
    data = TensorData(x, list(range(10)))
    rows = [7, 0, 7, 3]
    batch, labels = data.batch(rows)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, x[rows].float() / 255)
    assert labels.tolist() == rows
    for (image, label), row in zip(data.__getitems__(rows), rows, strict=True):
        assert torch.equal(image, data[row][0])
        assert label == data[row][1] == row
    assert data.x.dtype == torch.uint8
    with pytest.raises(DataError, match="10 samples but 9 labels"):
        TensorData(x, list(range(9)))


def test_scaling_does_not_touch_its_input() -> None:
    pixels = torch.tensor([[0, 255]], dtype=torch.uint8)
    floats = torch.tensor([[0.25, 1.0]])
    assert as_images(pixels).tolist() == [[0.0, 1.0]]
    assert pixels.tolist() == [[0, 255]]
    assert as_images(floats) is floats
