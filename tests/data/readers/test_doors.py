"""The same pictures through every door are the same data, and what a door refuses."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from protocl.config.compose import load
from protocl.data import BenchmarkConfig, load_data
from protocl.data.readers.keys import usual_pairs
from protocl.data.readers.torch_sets import from_torch
from protocl.data.shares import draw_share
from protocl.errors import ConfigError, DataError, ProtoclError
from protocl.runner.experiment import run_experiment
from tests.data.readers.pictures import NAMES, arrays, folder, pictures, read, table


def test_the_same_pictures_through_folder_table_and_arrays_are_the_same_data(
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    (tmp_path / "npy").mkdir()
    for key, array in arrays().items():
        np.save(tmp_path / "npy" / f"{key}.npy", array)
    doors = {
        "image_folder": folder(tmp_path / "folder"),
        "table": table(tmp_path),
        "npz": tmp_path / "a.npz",
        "arrays": tmp_path / "npy",
    }
    data = {name: read(name, path) for name, path in doors.items()}
    assert data["npz"].class_names == sorted(NAMES)
    assert {d.content_hash for d in data.values()} == {data["npz"].content_hash}
    numbers = [accuracies(tmp_path / name, name, path) for name, path in doors.items()]
    assert all(found == numbers[0] for found in numbers)
    assert numbers[0][-1] > 0.5


def accuracies(output: Path, name: str, path: Path) -> list[float]:
    (config,) = load([
        f"benchmark={name}", f"benchmark.path={path}", "benchmark.n_experiences=3", "strategy=slda",
        "benchmark.image_size=null", "backbone=identity",
    ])  # fmt: skip
    output.mkdir()
    found: list[float] = run_experiment(config, output)["metrics"]["stream_accuracy"]
    return found


def test_the_library_datasets_gives_the_same_data(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(image=datasets.Image(), kind=datasets.ClassLabel(names=sorted(NAMES)))
    parts = {
        part: datasets.Dataset.from_dict(
            {
                "image": [Image.fromarray(x) for p, _, _, x in pictures() if p == part],
                "kind": [name for p, name, _, _ in pictures() if p == part],
            },
            features=kinds,
        )
        for part in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    expected = read("image_folder", folder(tmp_path / "folder"))
    assert read("hf", tmp_path / "saved").content_hash == expected.content_hash
    alone = parts["train"].rename_column("kind", "label")
    alone.save_to_disk(str(tmp_path / "alone"))
    shared_out = read("hf", tmp_path / "alone", test=0.25)
    assert [len(shared_out.y_train), len(shared_out.y_test)] == [9, 3]


def test_a_name_on_the_hub_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no five attempts
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"without a network, load it on another machine"):
        read("hf", "nobody/no-such-data-set", root=str(tmp_path))


def test_a_csv_file_through_the_library_datasets(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    file = tmp_path / "a.csv"
    file.write_text("a,b,label\n" + "".join(f"{i},{i % 3},k{i % 2}\n" for i in range(8)))
    data = read("hf", file, root=str(tmp_path / "root"), test=0.5)
    assert data.class_names == ["k0", "k1"]
    assert data.input_shape == (2,)


def test_without_the_library_datasets_it_is_said_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'protocl\[datasets\]'"):
        read("hf", "mnist")


# -- folders ------------------------------------------------------------------------------------


def test_classes_alone_are_shared_out_by_class_and_seed(tmp_path: Path) -> None:
    root = folder(tmp_path) / "train"
    data = read("image_folder", root, test=0.25)
    assert torch.bincount(data.y_test).tolist() == [1, 1, 1]
    assert torch.bincount(data.y_train).tolist() == [3, 3, 3]
    assert read("image_folder", root, test=0.25).content_hash == data.content_hash
    others = {read("image_folder", root, test=0.25, test_seed=s).content_hash for s in range(1, 9)}
    assert len(others) > 1
    # With train/ alone it is the same.
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    assert read("image_folder", tmp_path, test=0.25).content_hash == data.content_hash
    for path in (root, tmp_path):
        with pytest.raises(ConfigError, match=r"benchmark\.test=0\.2 takes a fifth of each class"):
            read("image_folder", path)


def test_val_stands_in_for_test_and_a_share_besides_is_refused(tmp_path: Path) -> None:
    expected = read("image_folder", folder(tmp_path)).content_hash
    (tmp_path / "test").rename(tmp_path / "val")
    assert read("image_folder", tmp_path).content_hash == expected
    with pytest.raises(ConfigError, match=r"test=0\.2: .*val is there for the test"):
        read("image_folder", tmp_path, test=0.2)
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="expected a share between 0 and 1"):
            read("image_folder", tmp_path / "train", test=share)


def test_a_class_with_one_picture_is_named_unless_it_is_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path) / "train"
    for k in (1, 2, 3):
        (root / "cat" / f"{k}.png").unlink()
    with pytest.raises(
        DataError, match=r"one sample each have the classes 'cat' \(1\).*class_order=\[0,2"
    ):
        read("image_folder", root, test=0.25)
    kept = [c for c, name in enumerate(sorted(NAMES)) if name != "cat"]
    assert len(read("image_folder", root, test=0.25, class_order=kept).y_test) == 2


def test_links_lead_to_pictures_but_not_round_and_round(tmp_path: Path) -> None:
    root = folder(tmp_path / "a") / "train"
    expected = read("image_folder", root, test=0.25)
    (root / "cat" / "round").symlink_to(root, target_is_directory=True)
    (root / "cat" / "self").symlink_to(root / "cat", target_is_directory=True)
    assert read("image_folder", root, test=0.25).content_hash == expected.content_hash
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in NAMES:
        (linked / name).symlink_to(root / name, target_is_directory=True)
    assert read("image_folder", linked, test=0.25).content_hash == expected.content_hash
    (linked / "cat2").mkdir()
    (linked / "cat2" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"'cat2'|gone\.png cannot be read"):
        read("image_folder", linked, test=0.25)


def test_a_camera_that_was_turned_is_turned_back(tmp_path: Path) -> None:
    upright = np.zeros((6, 5, 3), dtype=np.uint8)
    upright[0, :, 0] = 255
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn clockwise restores it
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(2):
            turned.save(tmp_path / name / f"{k}.png", exif=exif)
    data = read("image_folder", tmp_path, test=0.5)
    assert np.array_equal(data.x_train[0].permute(1, 2, 0).numpy(), upright)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "plane"):
        (tmp_path / name).mkdir()
        for k in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{k}.png")
    assert read("image_folder", tmp_path, test=0.5).class_names == ["plane", "train"]


# -- arrays -------------------------------------------------------------------------------------


def test_a_pair_of_arrays_and_an_archive_with_one_pair_are_shared_out_alike(
    tmp_path: Path,
) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    y = np.array(["bee", "ant"] * 10)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "a.npz", X=x, y=y)
    pair = read("arrays", tmp_path / "x.npy", labels=str(tmp_path / "y.npy"), test=0.2)
    assert pair.class_names == ["ant", "bee"]
    assert torch.bincount(pair.y_test).tolist() == [2, 2]
    assert read("npz", tmp_path / "a.npz", test=0.2).content_hash == pair.content_hash
    with pytest.raises(ConfigError, match=r"give benchmark\.labels=FILE\.npy"):
        read("arrays", tmp_path / "x.npy", test=0.2)
    np.save(tmp_path / "y.npy", y[1:])
    with pytest.raises(DataError, match="20 samples, but 19 labels"):
        read("arrays", tmp_path / "x.npy", labels=str(tmp_path / "y.npy"), test=0.2)
    np.save(tmp_path / "y.npy", np.array([0, "a"] * 10, dtype=object))
    with pytest.raises(DataError, match=r"np\.array\(labels, dtype=str\)"):
        read("arrays", tmp_path / "x.npy", labels=str(tmp_path / "y.npy"), test=0.2)
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"x\.npy cannot be read as an array"):
        read("arrays", tmp_path / "x.npy", labels=str(tmp_path / "y.npy"), test=0.2)


@pytest.mark.parametrize(
    "keys",
    [
        ("train_images", "train_labels", "val_images", "val_labels"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("data_train", "target_train", "data_test", "target_test"),
    ],
)
def test_archives_may_have_other_usual_names(keys: tuple[str, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    np.savez(tmp_path / "b.npz", **dict(zip(keys, arrays().values(), strict=True)))
    expected = read("npz", tmp_path / "a.npz").content_hash
    assert read("npz", tmp_path / "b.npz").content_hash == expected


def test_keys_that_mean_the_same_or_miss_their_fellow_are_refused() -> None:
    with pytest.raises(DataError, match="'x_train' and 'images_train' mean the same"):
        usual_pairs(["x_train", "images_train"])
    with pytest.raises(DataError, match="'x_test' has no 'y_test' beside it"):
        usual_pairs(["x_train", "y_train", "x_test"])
    assert usual_pairs(["weights", "bias"]) == {}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_a_share_is_of_each_class_and_leaves_some(y: list[int], share: float, seed: int) -> None:
    labels = torch.tensor(y)
    drawn = draw_share(labels, 6, share, seed)
    for c in set(y):
        mine = int((labels == c).sum())
        taken = int(drawn[labels == c].sum())
        assert taken == min(max(round(mine * share), 1), mine - 1) or abs(taken - mine * share) <= 1
        assert taken < mine
    assert torch.equal(drawn, draw_share(labels, 6, share, seed))


# -- data sets of PyTorch -----------------------------------------------------------------------


class Pictures(Dataset[object]):
    """PIL pictures of one part with their names, and something after them."""

    def __init__(self, part: str) -> None:
        self.items = [(Image.fromarray(x), name) for p, name, _, x in pictures() if p == part]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> object:
        return *self.items[row], {"more": row}


class Numbered(Pictures):
    """The same with the places of sorted names, as torchvision's sets have them."""

    classes = sorted(NAMES)

    def __getitem__(self, row: int) -> object:
        picture, name = self.items[row]
        return np.asarray(picture), torch.tensor(self.classes.index(name))


def config(**settings: object) -> BenchmarkConfig:
    return BenchmarkConfig(name="own", **settings)  # type: ignore[arg-type]


def test_data_sets_of_pytorch_give_the_same_data(tmp_path: Path) -> None:
    expected = read("image_folder", folder(tmp_path)).content_hash
    for kind in (Pictures, Numbered):
        found = from_torch(kind("train"), kind("test"), config())
        assert found.content_hash == expected
    part = Subset(Numbered("train"), range(6))
    assert from_torch(part, Numbered("test"), config()).class_names == sorted(NAMES)


class Endless(IterableDataset[object]):
    """Items without a length."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter([(np.arange(3), np.str_("a")), (np.arange(3), np.str_("b"))] * 4)


def test_tensors_counts_and_iterated_items_are_features() -> None:
    x = torch.randn(8, 4)
    data = from_torch(TensorDataset(x, torch.arange(8) % 2), None, config(test=0.25))
    assert torch.equal(torch.cat([data.x_train, data.x_test]).sort(0).values, x.sort(0).values)
    data = from_torch(Endless(), None, config(test=0.25))
    assert data.class_names == ["a", "b"]
    assert data.x_train.dtype == torch.float32


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "the all data set is empty"),
        ([torch.zeros(3)], r"item 0 is a Tensor; expected \(x, y\)"),
        ([(torch.zeros(3), 0), (torch.zeros(4), 0)], r"samples are \(3,\) and \(4,\)"),
        ([(torch.zeros(3), torch.eye(2)[0])] * 2, r"shape \(2, 2\).*argmax"),
        ([(torch.full((1, 4, 4), 3.0), 0)] * 2, r"expected floating-point pixels in \[0, 1\]"),
    ],
)
def test_other_items_are_refused(items: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_torch(items, None, config(test=0.5))


# -- torchvision --------------------------------------------------------------------------------


def test_any_set_of_torchvision_is_found_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'Flowers12': did you mean 'Flowers102'\?"):
        read("torchvision/Flowers12")
    with pytest.raises(DataError, match=r"Flowers102 was not found in .*download=true, or lay it"):
        read("torchvision/Flowers102", tmp_path)


def test_the_parts_of_a_set_of_torchvision_are_its_own(tmp_path: Path) -> None:
    """EuroSAT has none; DTD has train, val and test, listed in files."""
    for name in ("Forest", "River"):
        home = tmp_path / "eurosat" / "2750" / name
        home.mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (4, 4), (k, 0, 0)).save(home / f"{k}.jpg")
    data = read("torchvision/EuroSAT", tmp_path, test=0.25)
    assert data.class_names == ["Forest", "River"]
    assert len(data.y_test) == 2
    with pytest.raises(ConfigError, match=r"benchmark\.test=0\.2"):
        read("torchvision/EuroSAT", tmp_path)
    labels = tmp_path / "dtd" / "dtd" / "labels"
    labels.mkdir(parents=True)
    for part, places in (("train", (0, 1)), ("val", (2,)), ("test", (3,))):
        lines = []
        for name in ("banded", "dotted"):
            home = tmp_path / "dtd" / "dtd" / "images" / name
            home.mkdir(parents=True, exist_ok=True)
            for k in places:
                Image.new("RGB", (4, 4), (k, 0, 0)).save(home / f"{k}.jpg")
                lines.append(f"{name}/{k}.jpg")
        (labels / f"{part}1.txt").write_text("\n".join(lines))
    data = read("torchvision/DTD", tmp_path)
    assert [len(data.y_train), len(data.y_test)] == [4, 2]
    (settled,) = load(["benchmark=torchvision/DTD", "strategy=slda"])
    assert settled.benchmark.image_size == 224


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "cifar100", "mnist", "omniglot"])
@pytest.mark.parametrize("key", ["test", "labels", "columns"])
def test_settings_of_own_data_are_refused_elsewhere(name: str, key: str, tmp_path: Path) -> None:
    from protocl.data.config import ColumnsConfig

    value = {"test": 0.2, "labels": "y.npy", "columns": ColumnsConfig(label="x")}[key]
    with pytest.raises(ConfigError, match=rf"benchmark\.{key}"):
        load_data(BenchmarkConfig(name=name, root=str(tmp_path), **{key: value}))  # type: ignore[arg-type]


def test_doors_are_found_where_they_need_a_path() -> None:
    for name in ("table", "arrays", "hf", "npz", "image_folder"):
        with pytest.raises(ProtoclError, match=r"benchmark\.path="):
            read(name)


def test_a_module_that_is_absent_is_named_for_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    with pytest.raises(DataError, match="pip install pyarrow"):
        read("table", tmp_path / "a.parquet")
