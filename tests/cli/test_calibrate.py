"""``protocl calibrate``, and what the other commands say of it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from protocl import PrototypeClassifier, load_model
from protocl.cli.main import main
from protocl.model.changes.change import Change
from protocl.model.changes.ledger import Ledger
from tests.serve.shapes import folder_of

X, Y = load_digits(return_X_y=True)
X = X / 16
OF_THREES = ("--class", "3", "--held-out", "threes.npy")


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """``six``, a model of digits as vectors, and files of vectors: of a three, taught and not."""
    known = np.flatnonzero(Y < 6)
    PrototypeClassifier("lda", exact=True).fit(X[known[:600]], Y[known[:600]]).save(
        tmp_path / "six"
    )
    threes, sevens = X[known[600:]][Y[known[600:]] == 3], X[Y == 7]
    np.save(tmp_path / "held out.npy", threes[:30])
    np.save(tmp_path / "threes.npy", threes[30:])
    np.save(tmp_path / "sevens.npy", sevens)
    np.save(tmp_path / "taught.npy", X[known[:600]][Y[known[:600]] == 3])
    return tmp_path


def calibrate(root: Path, *words: str) -> int:
    return main(["calibrate", str(root / "six"), *words])


def threes(root: Path) -> tuple[str, ...]:
    return "--class", "3", "--held-out", str(root / "held out.npy")


def predicted(root: Path, file: str, capsys: Any) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["predict", str(root / "six"), str(root / file), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_predict_and_explain_tell_by_the_score(arrays: Path, capsys: Any):
    assert "unknown_by" not in predicted(arrays, "sevens.npy", capsys)[0]
    assert calibrate(arrays, *threes(arrays)) == 0
    assert "unknown by evidence; keeps 95 % of 30 known samples" in capsys.readouterr().out
    for file, least, most in (("threes.npy", 0.0, 0.3), ("sevens.npy", 0.5, 1.0)):
        found = [each["unknown_by"] for each in predicted(arrays, file, capsys)]
        assert {(each["score"], each["note"]) for each in found} == {("evidence", "")}
        assert least <= np.mean([each["is_unknown"] for each in found]) <= most
    main(["predict", str(arrays / "six"), str(arrays / "sevens.npy"), "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[0]["unknown_by_score"] == "evidence"
    for command in ("predict", "explain"):
        main([command, str(arrays / "six"), str(arrays / "sevens.npy")])
        captured = capsys.readouterr()
        assert "unknown by evidence (100 % of known samples score higher)" in captured.out
        assert captured.err == ""


def test_teaching_says_that_it_is_old_now_and_so_does_every_answer(arrays: Path, capsys: Any):
    calibrate(arrays, *threes(arrays), "--score", "energy", "--keep", "0.9")
    capsys.readouterr()
    main(["teach", str(arrays / "six"), "--class", "7", str(arrays / "sevens.npy")])
    said = f"unknown by energy: calibrated before {len(X[Y == 7])} samples (1 new class) were added"
    assert said in capsys.readouterr().err
    for command in ("predict", "explain"):
        main([command, str(arrays / "six"), str(arrays / "threes.npy")])
        captured = capsys.readouterr()
        assert said in captured.err
        assert "by energy (" in captured.out
    main(["info", str(arrays / "six")])
    assert "calibrated before" in " ".join(capsys.readouterr().out.split())
    assert calibrate(arrays, *threes(arrays)) == 0  # by the score that it has
    assert main(["predict", str(arrays / "six"), str(arrays / "threes.npy")]) == 0
    assert capsys.readouterr().err == ""


def test_forgetting_ends_it_and_off_goes_back(arrays: Path, capsys: Any):
    before = predicted(arrays, "sevens.npy", capsys)
    calibrate(arrays, *threes(arrays))
    main(["forget", str(arrays / "six"), "--class", "5"])
    assert "not calibrated, or samples were forgotten since" in capsys.readouterr().err
    assert predicted(arrays, "threes.npy", capsys)[0]["unknown_by"]["is_unknown"] is None
    assert calibrate(arrays, "--off") == 0
    assert "the probability of one class more" in capsys.readouterr().out
    assert not (arrays / "six" / "unknown.json").exists()
    assert predicted(arrays, "sevens.npy", capsys)[0].keys() == before[0].keys()


def test_what_was_taught_can_be_left_out(arrays: Path, capsys: Any):
    assert calibrate(arrays, "--class", "3", "--taught", str(arrays / "taught.npy")) == 0
    left_out = load_model(arrays / "six").calibration_
    assert calibrate(arrays, "--class", "3", "--held-out", str(arrays / "taught.npy")) == 0
    naive = load_model(arrays / "six").calibration_
    assert left_out.histogram.threshold() < naive.histogram.threshold()


def test_merging_keeps_that_of_the_first(arrays: Path, capsys: Any):
    shutil.copytree(arrays / "six", arrays / "twin")
    calibrate(arrays, *threes(arrays))
    for first, second, said in (
        ("six", "twin", "unknown by evidence: calibrated before 600 samples were added"),
        ("twin", "six", f"what counts as unknown is not merged: that of {arrays / 'six'}"),
    ):
        both = str(arrays / f"of {first}")
        assert main(["merge", str(arrays / first), str(arrays / second), "-o", both]) == 0
        assert said in capsys.readouterr().err


def test_a_journal_that_can_be_undone_stays(arrays: Path, capsys: Any):
    ledger = Ledger.open(arrays / "six")
    ledger.change(Change("teach", 7, X[Y == 7][:9]))
    assert calibrate(arrays, *threes(arrays)) == 0
    assert load_model(arrays / "six").unknown_note == ""
    again = Ledger.open(arrays / "six")
    assert len(again.changes()) == 1
    again.fold(all_of_them=True)
    assert load_model(arrays / "six").unknown_note == ""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--off", "--keep", "0.9"], 2, "--off takes no other options"),
        (["--class", "7", "--held-out", "sevens.npy"], 3, "classes [7] are not known"),
        (
            ["--class", "3", "--held-out", "threes.npy", "--score", "enrgy"],
            2,
            "did you mean 'energy'?",
        ),
        (
            ["--class", "3", "--held-out", "threes.npy", "--keep", "95"],
            3,
            "keep=95.0: expected a share",
        ),
        (["--class", "3", "--held-out", "none.npy"], 3, "there is no sample in these files"),
        (["--class", "3", "--held-out", "narrow.npy"], 3, "X has 63 features"),
        (["--class", "3", "--held-out", "nan.npy"], 3, "contains NaN"),
        (["--held-out", "nowhere"], 2, "nowhere is no folder"),
    ],
)
def test_what_it_refuses(
    arrays: Path, monkeypatch: Any, capsys: Any, words: list[str], code: int, message: str
):
    monkeypatch.chdir(arrays)
    np.save("none.npy", X[:0])
    np.save("narrow.npy", X[:30, 1:])
    np.save("nan.npy", np.full((30, 64), np.nan))
    assert calibrate(arrays, *words) == code
    assert message in capsys.readouterr().err
    assert not (arrays / "six" / "unknown.json").exists()


def test_few_samples_are_warned_of_in_one_line(arrays: Path, capsys: Any):
    np.save(arrays / "few.npy", X[Y == 3][-3:])
    assert calibrate(arrays, "--class", "3", "--held-out", str(arrays / "few.npy")) == 0
    err = capsys.readouterr().err
    assert err == ("3 samples are too few to tell where 95 % of them lie: give 20 or more\n")


def test_pictures(tmp_path: Path, capsys: Any):
    folder_of(tmp_path / "train", ("cross", "ring"), 4)
    folder_of(tmp_path / "held out", ("cross", "ring"), 3, first=4)
    model = str(tmp_path / "shapes")
    new = ("--new", "--backbone", "conv4", "--image-size", "16", "--head", "lda")
    assert main(["teach", model, *new, str(tmp_path / "train")]) == 0
    assert (
        main(["calibrate", model, "--held-out", str(tmp_path / "held out"), "--keep", "0.5"]) == 0
    )
    files = sorted(map(str, (tmp_path / "held out").rglob("*.png")))
    known = load_model(model)
    assert isinstance(known, PrototypeClassifier)
    assert (known.unknown(files) >= 0.5).sum() == 3
    assert main(["calibrate", model, "--taught", str(tmp_path / "train"), "--keep", "0.5"]) == 0
