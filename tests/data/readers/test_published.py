"""The field's image sets on small made trees of the layout in which they are published."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from protocl.config.compose import load
from protocl.data import ArrayData
from protocl.data.readers.published import SETS
from protocl.errors import ConfigError, DataError
from tests.data.readers.pictures import read


def picture(file: Path, level: int) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (level, 0, 0)).save(file)
    return file.name


def levels(x: torch.Tensor) -> list[int]:
    """The level of each picture; of those in JPEG it is off by one at most."""
    return [10 * round(level / 10) for level in x[:, 0, 0, 0].tolist()]


def parts(root: Path, *classes: str) -> None:
    """``train/CLASS`` with levels 10 and 20, ``test/CLASS`` with 30."""
    for name in classes:
        picture(root / "train" / name / "a.jpg", 10)
        picture(root / "train" / name / "b.jpg", 20)
        picture(root / "test" / name / "c.jpg", 30)


def wordnet(root: Path) -> None:
    """ImageNet-R and ImageNet-A: a folder a class, beside a README."""
    for name in ("n01443537", "n01484850"):
        for k in range(5):
            picture(root / name / f"{k}.jpg", 10 * k)
    (root / "README.txt").write_text("n01443537 goldfish")


def cub(root: Path) -> None:
    names = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    files = [f"{name}/{k}.jpg" for name in names for k in range(3)]
    for number, file in enumerate(files):
        picture(root / "images" / file, 10 * (number % 3 + 1))
    numbered = list(enumerate(files, start=1))
    (root / "images.txt").write_text("".join(f"{n} {file}\n" for n, file in numbered))
    (root / "train_test_split.txt").write_text(
        "".join(f"{n} {int((n - 1) % 3 < 2)}\n" for n, _ in numbered)
    )


def tiny(root: Path) -> None:
    for name in ("n02124075", "n04067472"):
        for k in (1, 2):
            picture(root / "train" / name / "images" / f"{name}_{k}.JPEG", 10 * k)
        (root / "train" / name / f"{name}_boxes.txt").write_text("n02124075_0.JPEG\t0\t10\t63\t58")
    said = []
    for k, name in enumerate(("n04067472", "n02124075")):
        picture(root / "val" / "images" / f"val_{k}.JPEG", 30)
        said.append(f"val_{k}.JPEG\t{name}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(said))
    picture(root / "test" / "images" / "test_0.JPEG", 200)
    (root / "wnids.txt").write_text("n02124075\nn04067472\n")


def domainnet(root: Path) -> None:
    for domain in ("clipart", "real"):
        rows: dict[str, list[str]] = {"train": [], "test": []}
        for number, name in enumerate(("aircraft_carrier", "alarm_clock")):
            for part, chosen in (("train", (1, 2)), ("test", (3,))):
                for k in chosen:
                    file = f"{domain}/{name}/{domain}_{number:03d}_{k:06d}.jpg"
                    picture(root / file, 10 * k)
                    rows[part].append(f"{file} {number}\n")
        for part, said in rows.items():
            (root / f"{domain}_{part}.txt").write_text("".join(said))


def cars(root: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    kind = np.dtype([("class", "u1"), ("fname", "O")])
    for part, file, chosen in (
        ("train", "devkit/cars_train_annos.mat", (1, 2)),
        ("test", "cars_test_annos_withlabels.mat", (3,)),
    ):
        said = [(c, picture(root / f"cars_{part}" / f"{c}_{k}.jpg", 10 * k))
                for c in (1, 2) for k in chosen]  # fmt: skip
        savemat(root / file, {"annotations": np.array(said, dtype=kind)})


LISTED: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "cub200": (cub, ["001.Black_footed_Albatross", "002.Laysan_Albatross"]),
    "tiny_imagenet": (tiny, ["n02124075", "n04067472"]),
    "stanford_cars": (cars, ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]),
}


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("given", ["folder", "above", "root"])
def test_listed_splits_are_those_of_the_authors(name: str, given: str, tmp_path: Path) -> None:
    make, names = LISTED[name]
    folder = tmp_path / SETS[name].folder
    make(folder)
    place = {"folder": {"path": folder}, "above": {"path": tmp_path}, "root": {}}[given]
    require_usual(read(name, root=str(tmp_path), **place), names)


def require_usual(data: ArrayData, names: list[str]) -> None:
    assert data.class_names == names
    for c in range(len(names)):
        assert sorted(levels(data.x_train[data.y_train == c])) == [10, 20]
        assert levels(data.x_test[data.y_test == c]) == [30]


@pytest.mark.parametrize("name", [name for name in SETS if name != "domainnet"])
def test_folders_of_parts_are_read_of_every_set(name: str, tmp_path: Path) -> None:
    folder = tmp_path / SETS[name].folder
    parts(folder, "n1", "n2")
    require_usual(read(name, folder), ["n1", "n2"])


@pytest.mark.parametrize("name", ["imagenet_r", "imagenet_a"])
def test_a_set_without_a_split_is_shared_out_aloud(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / SETS[name].folder
    wordnet(folder)
    data = read(name, folder)
    assert torch.bincount(data.y_test).tolist() == [1, 1]
    assert "has no split of its own: 0.2 of each class" in caplog.text
    assert read(name, folder, test=0.4).y_test.shape == (4,)


def test_domains_come_together_or_alone_and_are_clients(tmp_path: Path) -> None:
    domainnet(tmp_path)
    data = read("domainnet", tmp_path)
    assert data.class_names == ["aircraft_carrier", "alarm_clock"]
    assert data.client_names == ("clipart", "real")
    assert data.clients is not None
    assert torch.bincount(data.clients).tolist() == [4, 4]
    require_usual(read("domainnet", tmp_path, split="real"), data.class_names)
    with pytest.raises(ConfigError, match=r"split=sketch: .*has the domains clipart, real"):
        read("domainnet", tmp_path, split="sketch")


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_the_archive_itself_will_do_and_is_unpacked_once(kind: str, tmp_path: Path) -> None:
    inner = tmp_path / "made" / "imagenet-r"
    wordnet(inner)
    archive = tmp_path / f"imagenet-r.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(inner.rglob("*")):
                file.write(path, path.relative_to(inner.parent))
    else:
        with tarfile.open(archive, "w:gz" if kind == "tgz" else "w") as opened:
            opened.add(inner, "imagenet-r")
    expected = read("imagenet_r", inner).content_hash
    root = str(tmp_path / "root")
    assert read("imagenet_r", archive, root=root).content_hash == expected
    (unpacked,) = (tmp_path / "root").glob("*.unpacked")
    changed = unpacked.stat().st_mtime_ns
    assert read("imagenet_r", archive, root=root).content_hash == expected
    assert unpacked.stat().st_mtime_ns == changed
    broken = tmp_path / f"broken.{kind}"
    broken.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(DataError, match=r"cannot be unpacked|was not found"):
        read("imagenet_r", broken, root=root)


@pytest.mark.parametrize("name", SETS)
def test_what_is_absent_is_said_with_its_source_and_its_tree(name: str, tmp_path: Path) -> None:
    (config,) = load([f"benchmark={name}", "strategy=slda", f"benchmark.root={tmp_path}"])
    assert config.backbone.name == "auto"
    with pytest.raises(DataError) as refused:
        read(name, root=str(tmp_path))
    for said in (SETS[name].source, SETS[name].tree, Path(SETS[name].folder).name):
        assert said in str(refused.value)


def test_lists_that_miss_a_picture_or_a_word_are_refused(tmp_path: Path) -> None:
    cub(tmp_path)
    (tmp_path / "images" / "002.Laysan_Albatross" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1\.jpg, which does not exist \(1 of 4 do not\)"):
        read("cub200", tmp_path)
    (tmp_path / "train_test_split.txt").write_text("1 1\n2\n")
    with pytest.raises(DataError, match=r"line 2 is '2'; expected at least 2 words"):
        read("cub200", tmp_path)
    (tmp_path / "train_test_split.txt").write_text("1 1\n")
    with pytest.raises(DataError, match="says nothing of image 2"):
        read("cub200", tmp_path)
