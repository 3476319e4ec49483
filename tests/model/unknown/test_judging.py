"""A classifier that tells the unknown by a score: calibrated, told when that is old, forgotten."""

from __future__ import annotations

import warnings
from copy import copy
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits

from protocl import PrototypeClassifier, load_model
from protocl.errors import CalibrationWarning, ConfigError

X, Y = load_digits(return_X_y=True)
X = X / 16
KNOWN = Y < 6
TAUGHT, HELD_OUT = np.flatnonzero(KNOWN)[:600], np.flatnonzero(KNOWN)[600:800]
ASKED = np.flatnonzero(KNOWN)[800:]


def taught(**more: object) -> PrototypeClassifier:
    known = PrototypeClassifier("lda", unknown_score="evidence", **more)
    return known.fit(X[TAUGHT], Y[TAUGHT])


def calibrated(**more: object) -> PrototypeClassifier:
    return taught(**more).calibrate_unknown(X[HELD_OUT], Y[HELD_OUT])


def test_it_keeps_what_it_was_asked_to_and_flags_digits_never_taught():
    known = calibrated()
    assert 0.9 < (known.unknown(X[ASKED]) < 0.95).mean() < 0.98  # later writers differ a little
    assert (known.unknown(X[~KNOWN]) >= 0.95).mean() > 0.4
    guesses, explained = known.guesses(X[~KNOWN][:3]), known.explain(X[~KNOWN][:3])
    np.testing.assert_array_equal([g.unknown for g in guesses], known.unknown(X[~KNOWN][:3]))
    assert [g.verdict for g in guesses] == [e.verdict for e in explained]
    value = known.known_scores(X[~KNOWN][:1])["evidence"][0]
    assert guesses[0].verdict is not None
    assert guesses[0].verdict.value == pytest.approx(value)


def test_by_default_nothing_changes():
    plain, scored = PrototypeClassifier("lda").fit(X[TAUGHT], Y[TAUGHT]), calibrated()
    assert {g.verdict for g in plain.guesses(X[:5])} == {None}
    assert plain.unknown_note == ""
    np.testing.assert_array_equal(plain.predict_proba(X[:5]), scored.predict_proba(X[:5]))
    back = scored.set_params(unknown_score=None)
    np.testing.assert_array_equal(back.unknown(X), plain.unknown(X))
    with pytest.raises(ValueError, match="needs no calibration; choose a score"):
        plain.calibrate_unknown(X[HELD_OUT], Y[HELD_OUT])


def test_what_is_taught_later_is_said_with_every_answer():
    known = calibrated()
    known.partial_fit(X[~KNOWN][:7], Y[~KNOWN][:7])
    with pytest.warns(CalibrationWarning, match=r"before 7 samples \(4 new classes\) were added"):
        known.unknown(X[:1])
    assert "before 7 samples" in known.guesses(X[:1])[0].verdict.note
    known.calibrate_unknown(X[HELD_OUT], Y[HELD_OUT])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known.unknown(X[:1])


def test_forgetting_ends_it():
    for forget in ({"classes": [3]}, {"X": X[TAUGHT[:2]], "y": Y[TAUGHT[:2]]}):
        known = calibrated(exact=True).forget(**forget)
        assert known.calibration_ is None
        with pytest.raises(ValueError, match="samples were forgotten since"):
            known.unknown(X[:1])
        (guess,) = known.guesses(X[:1])
        assert guess.unknown is None
        assert guess.best
    emptied = calibrated().forget(classes=range(6))
    assert emptied.unknown_note == ""


def test_it_is_of_one_score():
    known = calibrated().set_params(unknown_score="energy")
    with pytest.raises(ValueError, match="unknown_score='energy': not calibrated"):
        known.unknown(X[:1])
    with pytest.raises(ConfigError, match="unknown score of unknown inputs 'x'"):
        known.set_params(unknown_score="x").guesses(X[:1])


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"classes \[6, 9\] are not known"):
        taught().calibrate_unknown(X[:10], [6, 9] * 5)
    with pytest.raises(ValueError, match="keep='much'"):
        taught().calibrate_unknown(X[HELD_OUT], Y[HELD_OUT], keep="much")
    with pytest.raises(ValueError, match="not fitted"):
        PrototypeClassifier(unknown_score="evidence").calibrate_unknown(X, Y)
    known = calibrated()
    with pytest.raises(ValueError, match="were never added"):
        known.calibrate_unknown(X[HELD_OUT], Y[HELD_OUT], taught=True)
    np.testing.assert_array_equal(known.unknown(X[:9]), calibrated().unknown(X[:9]))


def test_copies_and_clones():
    known = calibrated()
    twin = copy(known).partial_fit(X[~KNOWN], Y[~KNOWN])
    assert twin.unknown_note
    assert not known.unknown_note
    assert clone(known).unknown_score == "evidence"
    assert clone(known).calibration_ is None
    assert known.fit(X[TAUGHT], Y[TAUGHT]).calibration_ is None


def test_merged_it_is_that_of_the_first_and_old():
    first, second = calibrated(), taught()
    merged = first + second
    assert merged.unknown_note.startswith("calibrated before 600 samples were added")
    assert "not calibrated" in (second + first).unknown_note


@pytest.mark.parametrize("exact", [True, False])
def test_saved_and_loaded(exact: bool, tmp_path: Path):
    known = calibrated(exact=exact)
    known.save(tmp_path / "m")
    read = load_model(tmp_path / "m")
    assert isinstance(read, PrototypeClassifier)
    assert read.unknown_note == ""
    np.testing.assert_array_equal(read.unknown(X), known.unknown(X))
    read.forget(classes=[2]).save(tmp_path / "m")
    never = PrototypeClassifier("lda", unknown_score="evidence", exact=exact)
    others = TAUGHT[Y[TAUGHT] != 2]
    never.fit(X[others], Y[others]).save(tmp_path / "never")
    files = {file.name for file in (tmp_path / "m").iterdir()}
    for name in files if exact else ():
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "never" / name).read_bytes()
    read.set_params(unknown_score=None).save(tmp_path / "m")
    assert files - {file.name for file in (tmp_path / "m").iterdir()} == {"unknown.json"}


@pytest.mark.parametrize("huge", [1e30, -1e30, 1e150])
def test_inputs_far_off(huge: float):
    known = calibrated()
    assert known.unknown(np.full((1, 64), huge)) == [1.0]
