"""Models on disk: the same answers, the same bytes, nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from protocl import PrototypeClassifier, load_model, save_model
from protocl.backbones import Backbone, BackboneConfig
from protocl.backbones.base import Origin
from protocl.errors import CapacityError, DataError, FingerprintError
from protocl.heads import BayesianPrototypes, LinearDiscriminant, Ridge, SharedPrior
from protocl.memory import file as memory_file
from protocl.model import encoder
from protocl.model.folder import DESCRIPTION, MEMORY
from protocl.registry import HEADS

NAMES = np.array(["otter", "oak", "Ärger mit ö", "日本", "a,b\nc"])


def sums(rows: int = 60, width: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positive features of five classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % len(NAMES)
    return rng.random((rows, width)) + y[:, None] / 4, NAMES[y]


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("head", HEADS.names())
def test_what_is_read_answers_as_what_was_written(head: str, exact: bool, tmp_path: Path):
    x, y = sums()
    few = {"dim": 20} if head in ("klda_ensemble", "anacp") else None
    model = PrototypeClassifier(head, head_options=few, exact=exact).fit(x, y)
    model.save(tmp_path / "model")
    read = load_model(tmp_path / "model")
    assert isinstance(read, PrototypeClassifier)
    np.testing.assert_array_equal(read.scores(x), model.scores(x))
    np.testing.assert_array_equal(read.predict(x), model.predict(x))
    np.testing.assert_array_equal(read.predict_proba(x), model.predict_proba(x))
    np.testing.assert_array_equal(read.unknown(x), model.unknown(x))
    assert read.memory_.exact is exact


@pytest.mark.parametrize(
    "head",
    [
        LinearDiscriminant(0.3, dtype=torch.float32),
        Ridge(projection=16),
        BayesianPrototypes(SharedPrior(precision=torch.full((4,), 2.0)), 0.5, covariance="diag"),
    ],
)
def test_settings_of_heads_are_kept(head: Any, tmp_path: Path):
    x, y = sums()
    model = PrototypeClassifier(head).fit(x, y)
    model.save(tmp_path / "model")
    read = PrototypeClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(read.scores(x), model.scores(x))
    assert repr(read.head_) == repr(model.head_)


@pytest.mark.parametrize("labels", [[-3, 7, 2**40], [True, False, True], ["b", "a", "c"]])
def test_labels_keep_their_type(labels: list[Any], tmp_path: Path):
    x = np.array([[0.0], [1.0], [5.0], [0.1], [1.1], [5.1]])
    model = PrototypeClassifier("nearest_mean").fit(x, labels * 2)
    model.save(tmp_path / "model")
    read = PrototypeClassifier.load(tmp_path / "model")
    assert read.classes_.tolist() == sorted(set(labels))
    assert read.predict(x).tolist() == model.predict(x).tolist()
    assert read.partial_fit(x, labels * 2).memory_.total == 12


@given(order=st.permutations(range(20)), gone=st.sampled_from(NAMES.tolist()))
@settings(max_examples=15, deadline=None)
def test_forgotten_is_never_had_byte_for_byte(
    order: list[int], gone: str, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("models")
    x, y = sums(20)
    order = np.array(order)
    model = PrototypeClassifier("lda", exact=True).fit(x[order[:7]], y[order[:7]])
    model.partial_fit(x[order[7:]], y[order[7:]]).forget(classes=[gone]).save(folder / "had")
    kept = y != gone
    PrototypeClassifier("lda", exact=True).fit(x[kept], y[kept]).save(folder / "never")
    assert content(folder / "had") == content(folder / "never")


def test_models_that_were_taught_apart_merge_by_names(tmp_path: Path):
    x, y = sums()
    half = np.arange(len(x)) % 2 == 0
    for part, rows in (("one", half), ("other", ~half)):
        PrototypeClassifier("ridge", exact=True).fit(x[rows], y[rows]).save(tmp_path / part)
    both = load_model(tmp_path / "one")
    both.merge(load_model(tmp_path / "other")).save(tmp_path / "both")
    PrototypeClassifier("ridge", exact=True).fit(x, y).save(tmp_path / "all")
    assert content(tmp_path / "both") == content(tmp_path / "all")


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        PrototypeClassifier("lda").fit(*sums()).save(tmp_path / "model")
        return tmp_path / "model"

    @pytest.mark.parametrize("name", [DESCRIPTION, MEMORY])
    def test_a_changed_byte_is_noticed(self, folder: Path, name: str):
        file = folder / name
        data = bytearray(file.read_bytes())
        data[-9] ^= 1
        file.write_bytes(data)
        with pytest.raises(DataError, match=name):
            load_model(folder)

    @pytest.mark.parametrize("name", [DESCRIPTION, MEMORY])
    def test_a_missing_file_is_named(self, folder: Path, name: str):
        (folder / name).unlink()
        with pytest.raises(DataError, match=name):
            load_model(folder)

    def test_a_later_format_is_refused(self, folder: Path):
        found = json.loads((folder / DESCRIPTION).read_text())
        (folder / DESCRIPTION).write_text(json.dumps(found | {"format_version": 2}))
        with pytest.raises(DataError, match="upgrade protocl"):
            load_model(folder)

    def test_what_is_no_model_is_not_overwritten(self, tmp_path: Path):
        (tmp_path / "thesis.txt").write_text("five years of work")
        with pytest.raises(DataError, match="choose another folder"):
            PrototypeClassifier("lda").fit(*sums()).save(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]

    def test_nor_a_model_of_another_head(self, folder: Path):
        before = content(folder)
        with pytest.raises(DataError, match="another head"):
            PrototypeClassifier("ridge").fit(*sums()).save(folder)
        assert content(folder) == before

    def test_what_has_not_learned_is_not_written(self, tmp_path: Path):
        with pytest.raises(ValueError, match="not learned yet"):
            save_model(PrototypeClassifier("lda"), tmp_path / "model")
        assert not (tmp_path / "model").exists()


def edited(folder: Path, keys: tuple[Any, ...], value: Any) -> None:
    """Change a description as one would who wants it believed: with its checksum."""
    found = json.loads((folder / DESCRIPTION).read_text())
    del found["checksum"]
    part = found
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    text = json.dumps(found, sort_keys=True).encode()
    found["checksum"] = hashlib.sha256(text).hexdigest()
    (folder / DESCRIPTION).write_text(json.dumps(found))


SMALL = BackboneConfig(name="conv4", width=4, image_size=16)
NETWORK = ("backbone", "parts", 0, "settings")


class TestHostile:
    """Folders from elsewhere: nothing is executed, fetched or allocated beyond what they hold."""

    @pytest.fixture(scope="class")
    def source(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("models") / "pictures"
        PrototypeClassifier("lda", backbone=SMALL).fit(*pictures()).save(folder)
        return folder

    @pytest.mark.parametrize(
        ("keys", "value", "message"),
        [
            (("head", "name"), "os:system", "unknown head"),
            (("head", "settings"), {"shrink": 1}, "head 'lda' cannot be made"),
            (("head", "settings", "shrinkage"), "much", "expected 'auto'"),
            (("head", "settings", "dtype"), {"torch.dtype": "load"}, "'load' is no dtype"),
            (("head", "settings", "dtype"), {}, "no dtype"),
            (("head", "settings", "dtype"), {"protocl.Prior": "dataclass"}, "none of our priors"),
            (("head", "settings", "dtype"), {"protocl.Prior": "Tensor"}, "none of our priors"),
            (NETWORK, {"name": "conv4", "checkpoint": "/etc/passwd"}, "outside of the model"),
            (NETWORK, {"name": "timm/resnet18", "pretrained": True}, "would be downloaded"),
            (NETWORK, {"name": "evil"}, "unknown backbone"),
            (NETWORK, {"name": 3}, "valid string"),
            ((*NETWORK, "width"), 10**7, "smaller than the"),
            ((*NETWORK, "width"), "4", "valid integer"),
            ((*NETWORK, "wide"), 4, "unknown settings"),
            (("backbone", "parts", 0, "input_shape"), [3, 10**6, 10**6], "shape of an image"),
            (("backbone", "parts"), [{}] * 3, "damaged"),
            (("shape",), [3, 10**6, 10**6], "shape of an image"),
            (("shape",), [3, 0, 4], "greater than 0"),
            (("batch_size",), -1, "greater than 0"),
        ],
    )
    def test_a_forged_description_is_refused(
        self, source: Path, tmp_path: Path, keys: tuple[Any, ...], value: Any, message: str
    ):
        folder = shutil.copytree(source, tmp_path / "model")
        edited(folder, keys, value)
        with pytest.raises(DataError, match=message):
            load_model(folder)

    def test_a_projection_that_does_not_fit_is_not_drawn(self, tmp_path: Path):
        PrototypeClassifier("ridge").fit(*sums()).save(tmp_path / "model")
        edited(tmp_path / "model", ("head", "settings", "projection"), 10**14)
        with pytest.raises(CapacityError, match="projection of 4 features"):
            load_model(tmp_path / "model")

    @pytest.mark.parametrize(
        "labels",
        [["a", "b", "c", "d", 3], [["a"]] * 5, "abcde", {"a": 1}, [None] * 5, 5, [1, True]],
    )
    def test_labels_of_several_kinds_are_refused(self, tmp_path: Path, labels: Any):
        PrototypeClassifier("lda").fit(*sums()).save(tmp_path / "model")
        header, arrays = memory_file.read(tmp_path / "model" / MEMORY)
        own = {name: text for name, text in header.items() if not name.startswith("format")}
        forged = own | {"labels": json.dumps(labels)}
        memory_file.write(tmp_path / "model" / MEMORY, forged, arrays)
        with pytest.raises(DataError, match="no labels"):
            load_model(tmp_path / "model")


class TestSwapped:
    """A memory copied from another model is noticed, not answered from."""

    @pytest.mark.parametrize("other", ["mahalanobis", "ridge"])
    def test_of_another_feature_map(self, other: str, tmp_path: Path):
        options = {"projection": 8} if other == "ridge" else {}
        PrototypeClassifier("lda").fit(*sums()).save(tmp_path / "one")
        PrototypeClassifier(other, head_options=options).fit(*sums()).save(tmp_path / "other")
        for one, two in (("one", "other"), ("other", "one")):
            mixed = shutil.copytree(tmp_path / one, tmp_path / f"{one} with {two}")
            shutil.copy(tmp_path / two / MEMORY, mixed)
            with pytest.raises(DataError, match="belongs to another model"):
                load_model(mixed)

    def test_of_another_backbone(self, tmp_path: Path):
        x, y = pictures()
        for seed in (1, 2):
            config = BackboneConfig(name="conv4", width=4, image_size=16, seed=seed)
            PrototypeClassifier("lda", backbone=config).fit(x, y).save(tmp_path / str(seed))
        PrototypeClassifier("lda").fit(*sums(width=4)).save(tmp_path / "features")
        PrototypeClassifier("lda").fit(*sums(width=9)).save(tmp_path / "wide")
        for one, two in (("1", "2"), ("features", "1"), ("2", "wide")):
            mixed = shutil.copytree(tmp_path / one, tmp_path / f"{one} with {two}")
            shutil.copy(tmp_path / two / MEMORY, mixed)
            with pytest.raises(FingerprintError, match="belongs to another model"):
                load_model(mixed)


class Tiny(nn.Module):
    """A user's own network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1)).relu()


def pictures(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8), NAMES[np.arange(count) % 3]


class TestBackbones:
    def test_weights_that_are_drawn_are_kept(self, tmp_path: Path):
        x, y = pictures()
        config = BackboneConfig(name="conv4", width=4, image_size=16, seed=5)
        model = PrototypeClassifier("lda", backbone=config).fit(x, y)
        model.save(tmp_path / "model")
        assert (tmp_path / "model" / "backbone.safetensors").exists()
        np.testing.assert_array_equal(load_model(tmp_path / "model").scores(x), model.scores(x))

    def test_a_network_of_the_users_own_is_asked_for(self, tmp_path: Path):
        x, y = pictures()
        model = PrototypeClassifier("lda", backbone=Backbone(Tiny(), 5, architecture="tiny"))
        model.fit(x, y).save(tmp_path / "model")
        with pytest.raises(DataError, match="tiny was a network of its owner's"):
            load_model(tmp_path / "model")
        fresh = Backbone(Tiny(), 5, architecture="tiny")
        read = load_model(tmp_path / "model", backbone=fresh)
        np.testing.assert_array_equal(read.scores(x), model.scores(x))
        with pytest.raises((DataError, FingerprintError)):
            load_model(tmp_path / "model", backbone=Backbone(nn.Flatten(), 5, architecture="no"))

    def test_another_network_of_the_same_weights_is_refused(self, tmp_path: Path):
        x, y = pictures()
        model = PrototypeClassifier("lda", backbone=Backbone(Tiny(), 5, architecture="tiny"))
        model.fit(x, y).save(tmp_path / "model")
        resized = Backbone(Tiny(), 5, architecture="tiny", image_size=8)
        with pytest.raises(FingerprintError, match="not the backbone tiny"):
            load_model(tmp_path / "model", backbone=resized)

    def test_saving_again_builds_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        x, y = pictures()
        config = BackboneConfig(name="conv4", width=4, image_size=16)
        model = PrototypeClassifier("lda", backbone=config).fit(x, y)
        model.save(tmp_path / "model")
        monkeypatch.setattr(
            "protocl.model.kept_backbone.build_unscaled", lambda *_: pytest.fail("it was built")
        )
        model.partial_fit(x[:2], y[:2]).save(tmp_path / "model")

    def test_one_that_resizes_is_built_once_for_its_own_size(self, monkeypatch: pytest.MonkeyPatch):
        built: list[Backbone] = []

        def resizing(config: BackboneConfig, shape: tuple[int, ...], seed: int) -> Backbone:
            own = Backbone(Tiny(), 5, architecture="tiny", image_size=8)
            own.origin = Origin({}, shape)
            built.append(own)
            return own

        monkeypatch.setattr(encoder, "build_unscaled", resizing)
        made = encoder.Encoder.of("any", np.zeros((2, 3, 20, 30), dtype=np.uint8))
        assert built == [made.backbone]
        assert made.backbone.origin is not None
        assert made.backbone.origin.input_shape == (3, 8, 8)
