"""A model that is read while it changes: every change is kept, undone, and folded exactly."""

from __future__ import annotations

import time
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeClassifier, load_model
from protocl.errors import ConfigError, DataError
from protocl.model.changes.change import Change
from protocl.model.changes.ledger import Ledger
from protocl.model.folder import MEMORY

RNG = np.random.default_rng(0)
X = np.abs(RNG.normal(size=(30, 6))).astype(np.float32)
Y = np.array(["a", "b", "c"] * 10)


def made(folder: Path, head: str = "lda", exact: bool = True, **more: Any) -> Path:
    PrototypeClassifier(head, exact=exact, **more).fit(X, Y).save(folder)
    return folder


def lesson(label: str, seed: int, count: int = 3) -> Change:
    features = np.abs(np.random.default_rng(seed).normal(size=(count, 6)))
    return Change("teach", label, features.astype(np.float32))


def state(folder: Path) -> bytes:
    return (folder / MEMORY).read_bytes()


def journals(folder: Path) -> list[Path]:
    return list(folder.glob("journal-*"))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("head", ["nearest_mean", "lda", "ridge", "mahalanobis", "bayesian"])
def test_what_was_changed_is_read_at_once_and_after_folding(
    head: str, exact: bool, tmp_path: Path
) -> None:
    ledger = Ledger.open(made(tmp_path / "m", head, exact))
    ledger.change(lesson("d", 1))
    ledger.change(Change("forget", "a"))
    ledger.change(Change("forget", "b", X[1:2]))
    expected = ledger.now.scores(X)
    np.testing.assert_array_equal(load_model(tmp_path / "m").scores(X), expected)
    assert ledger.fold(all_of_them=True)
    assert journals(tmp_path / "m") == []
    np.testing.assert_array_equal(load_model(tmp_path / "m").scores(X), expected)
    assert not ledger.fold(all_of_them=True)


@given(undone=st.sets(st.integers(0, 4)), reopened=st.booleans(), exact=st.booleans())
@settings(max_examples=5, deadline=None)
def test_undone_is_never_made_byte_for_byte(
    undone: set[int], reopened: bool, exact: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("models")
    made(root / "undone", exact=exact)
    made(root / "never", exact=exact)
    ledger, never = Ledger.open(root / "undone"), Ledger.open(root / "never")
    changes = [lesson("d", 1), lesson("e", 2), lesson("a", 3), Change("forget", "b"),
               lesson("b", 4)]  # fmt: skip
    for n, change in enumerate(changes):
        ledger.change(change)
        if n not in undone:
            never.change(change)
    for n in undone:
        ledger.undo(changes[n].id)
    ledger = Ledger.open(root / "undone") if reopened else ledger
    for each in (ledger, never):
        each.fold(all_of_them=True)
    assert state(root / "undone") == state(root / "never")


def test_a_change_that_a_later_one_builds_on_is_not_undone_first(tmp_path: Path) -> None:
    ledger = Ledger.open(made(tmp_path / "m"))
    first, second = lesson("d", 1), Change("forget", "d")
    ledger.change(first)
    ledger.change(second)
    with pytest.raises(
        ConfigError, match=f"undo first what changed that class since .forget d, {second.id}"
    ):
        ledger.undo(first.id)
    ledger.undo(second.id)
    ledger.undo(first.id)
    assert ledger.now.classes_.tolist() == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="undone already"):
        ledger.undo(first.id)


def test_after_ten_minutes_changes_are_folded_and_stay(tmp_path: Path) -> None:
    ledger = Ledger.open(made(tmp_path / "m"))
    old = Change("teach", "d", X[:2] + 1, time=time.time() - 601)
    ledger.change(old)
    ledger.change(lesson("e", 2))
    with pytest.raises(ConfigError, match="last 10 minutes"):
        ledger.undo(old.id)
    expected = ledger.now.scores(X)
    assert ledger.fold()
    assert [change.label for change in ledger.changes()] == ["e"]
    np.testing.assert_array_equal(Ledger.open(tmp_path / "m").now.scores(X), expected)
    ledger.undo(ledger.changes()[0].id)
    assert ledger.now.classes_.tolist() == ["a", "b", "c", "d"]


def test_killed_between_the_steps_of_folding_nothing_counts_twice(tmp_path: Path) -> None:
    ledger = Ledger.open(made(tmp_path / "m"))
    ledger.change(Change("teach", "d", X[:2] + 1, time=time.time() - 601))
    ledger.change(lesson("e", 2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").glob("*.*")}
    expected = ledger.now.scores(X)
    ledger.fold()
    after = {path.name: path.read_bytes() for path in (tmp_path / "m").glob("*.*")}
    for name, content in (before | after).items():  # both journals, and either statistics
        (tmp_path / "m" / name).write_bytes(content)
    for statistics in (before, after):
        (tmp_path / "m" / MEMORY).write_bytes(statistics[MEMORY])
        np.testing.assert_array_equal(load_model(tmp_path / "m").scores(X), expected)
    assert len(journals(tmp_path / "m")) == 2
    Ledger.open(tmp_path / "m")
    assert len(journals(tmp_path / "m")) == 1


def test_saving_ends_the_journal(tmp_path: Path) -> None:
    ledger = Ledger.open(made(tmp_path / "m"))
    ledger.change(lesson("d", 1))
    known = load_model(tmp_path / "m")
    known.forget(classes=["d"]).save(tmp_path / "m")  # the statistics are what they were
    assert journals(tmp_path / "m") == []
    assert load_model(tmp_path / "m").classes_.tolist() == ["a", "b", "c"]


def test_what_fails_changes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    ledger = Ledger.open(made(tmp_path / "m"))
    before, known = ledger.now.scores(X), ledger.now
    for change, error in [
        (Change("teach", "d", X[:, :3]), ValueError),
        (Change("teach", "d", X[:2] * np.nan), ValueError),
        (Change("teach", 3, X[:2]), TypeError),
        (Change("forget", "z"), KeyError),
        (Change("forget", "a", X[:10] + 9), ValueError),
        (Change("teach", "d", np.full((1, 6), 1e200)), OverflowError),
    ]:
        with pytest.raises(error):
            ledger.change(change)
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        ledger.change(lesson("d", 1))
    monkeypatch.undo()
    assert ledger.now is known
    np.testing.assert_array_equal(load_model(tmp_path / "m").scores(X), before)
    ledger.change(lesson("e", 1))
    assert load_model(tmp_path / "m").classes_.tolist() == ["a", "b", "c", "e"]


def test_a_reader_keeps_what_it_took(tmp_path: Path) -> None:
    ledger = Ledger.open(made(tmp_path / "m", "ridge"))
    known = ledger.now
    before = known.scores(X)
    ledger.change(lesson("d", 1))
    np.testing.assert_array_equal(known.scores(X), before)


def test_all_can_be_forgotten_and_taught_anew(tmp_path: Path) -> None:
    ledger = Ledger.open(made(tmp_path / "m"))
    for label in "abc":
        ledger.change(Change("forget", label))
    ledger.fold(all_of_them=True)
    ledger = Ledger.open(tmp_path / "m")
    assert len(ledger.now.classes_) == 0
    ledger.change(lesson("z", 1))
    assert ledger.now.predict(X[:1]).tolist() == ["z"]


@pytest.mark.parametrize("labels", [[3, 5], [-1, 2**40], [True, False]])
def test_labels_keep_their_type(labels: list[Any], tmp_path: Path) -> None:
    PrototypeClassifier("nearest_mean").fit(X[:4], labels * 2).save(tmp_path / "m")
    ledger = Ledger.open(tmp_path / "m")
    ledger.change(Change("teach", labels[0], X[4:6]))
    assert load_model(tmp_path / "m").classes_.tolist() == sorted(labels)
    assert load_model(tmp_path / "m").memory_.total == 6


class TestJournal:
    def test_a_torn_line_was_never_answered(self, tmp_path: Path) -> None:
        ledger = Ledger.open(made(tmp_path / "m"))
        ledger.change(lesson("d", 1))
        (journal,) = journals(tmp_path / "m")
        whole = journal.read_bytes()
        with journal.open("ab") as file:
            file.write(lesson("e", 2).line()[:-20])
        assert load_model(tmp_path / "m").classes_.tolist() == ["a", "b", "c", "d"]
        assert journal.read_bytes() != whole  # a reader does not write
        ledger = Ledger.open(tmp_path / "m")
        assert journal.read_bytes() == whole
        ledger.change(lesson("f", 3))
        assert load_model(tmp_path / "m").classes_.tolist() == ["a", "b", "c", "d", "f"]

    @pytest.mark.parametrize("place", [0, 40, 200, -5])
    def test_a_changed_byte_is_noticed(self, place: int, tmp_path: Path) -> None:
        ledger = Ledger.open(made(tmp_path / "m"))
        ledger.change(lesson("d", 1))
        (journal,) = journals(tmp_path / "m")
        content = bytearray(journal.read_bytes())
        content[place] ^= 1
        journal.write_bytes(content)
        with pytest.raises(DataError, match="damaged in line 1"):
            load_model(tmp_path / "m")

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_change_is_read_as_it_was_written(self, dtype: Any) -> None:
        change = Change("teach", 'é/<b>"\n', X[:3].astype(dtype))
        read = Change.read(change.line())
        assert (read.kind, read.label, read.id, read.time) == (
            "teach", change.label, change.id, change.time,
        )  # fmt: skip
        assert read.features is not None
        assert read.features.dtype == dtype
        np.testing.assert_array_equal(read.features, X[:3].astype(dtype))


class TestTwins:
    def test_a_copy_learns_on_its_own(self) -> None:
        for head in ("ridge", "lda", "bayesian"):
            known = PrototypeClassifier(head).fit(X, Y)
            before = known.scores(X)
            twin = copy(known).partial_fit(X[:3] + 1, ["d"] * 3)
            assert known.classes_.tolist() == ["a", "b", "c"]
            np.testing.assert_array_equal(known.scores(X), before)
            expected = PrototypeClassifier(head).fit(X, Y).partial_fit(X[:3] + 1, ["d"] * 3)
            np.testing.assert_array_equal(twin.scores(X), expected.scores(X))

    def test_of_one_that_has_not_learned(self) -> None:
        assert copy(PrototypeClassifier("ridge")).fit(X, Y).classes_.tolist() == ["a", "b", "c"]

    def test_a_sum_of_classifiers_that_have_answered_chooses_anew(self) -> None:
        one = PrototypeClassifier("ridge", exact=True).fit(X[:15] * 9, Y[:15])
        one.predict(X)
        other = PrototypeClassifier("ridge", exact=True).fit(X[15:], Y[15:])
        both = PrototypeClassifier("ridge", exact=True).fit(X[:15] * 9, Y[:15])
        both.partial_fit(X[15:], Y[15:])
        np.testing.assert_array_equal((one + other).scores(X), both.scores(X))


def test_a_model_of_another_version_is_taught(tmp_path: Path) -> None:
    from protocl.model import description, folder

    made(tmp_path / "m")
    found = description.read_description(tmp_path / "m")
    content = found.model_dump(mode="json") | {"versions": {"protocl": "0.0", "torch": "1.0"}}
    content["checksum"] = description.checksum_of(content)
    (tmp_path / "m" / folder.DESCRIPTION).write_text(folder.json.dumps(content))
    load_model(tmp_path / "m").partial_fit(X[:2], ["d", "d"]).save(tmp_path / "m")
    assert load_model(tmp_path / "m").classes_.tolist() == ["a", "b", "c", "d"]


def test_what_can_be_undone_is_told_while_a_change_is_made(tmp_path: Path) -> None:
    """Else whoever asks for it would hold up a reader, and readers are few."""
    ledger = Ledger.open(made(tmp_path / "m"))
    with ledger._writing:
        assert ledger.changes() == []
