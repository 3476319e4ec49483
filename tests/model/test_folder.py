"""Models on disk: the same answers, the same bytes, nothing else."""

from __future__ import annotations

import json
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
from protocl.errors import DataError, FingerprintError
from protocl.heads import BayesianPrototypes, LinearDiscriminant, Ridge, SharedPrior
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
    model = PrototypeClassifier(head, exact=exact).fit(x, y)
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
