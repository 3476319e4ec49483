"""A served model whose score of unknown inputs is calibrated: marked, said, and undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from starlette.testclient import TestClient

from protocl import PrototypeClassifier
from tests.serve.client import ALLOWED, asking, forget, teach

X, Y = load_digits(return_X_y=True)
X = X / 16
KNOWN = np.flatnonzero(Y < 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = PrototypeClassifier("lda", unknown_score="evidence", exact=True)
    model.fit(X[KNOWN[:500]], Y[KNOWN[:500]])
    model.calibrate_unknown(X[KNOWN[500:800]], Y[KNOWN[500:800]]).save(tmp_path / "m")
    return tmp_path / "m"


def predictions(client: TestClient, rows: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.post(
        "/predict", json={"features": X[rows].tolist()}
    ).json()["predictions"]
    return found


def notes(client: TestClient) -> set[str]:
    """All that is said of the calibration, which must be one thing."""
    (found,) = predictions(client, KNOWN[800:801])
    reply = client.post("/explain", json={"features": X[:1].tolist()}).json()
    return {
        found["unknown_by"]["note"],
        reply["explanations"][0]["unknown_by"]["note"],
        client.get("/classes").json()["unknown_note"],
    }


def test_marked_by_what_was_kept(folder: Path):
    sevens, known = np.flatnonzero(Y == 7)[:60], KNOWN[800:860]
    with asking(folder) as client:
        about = client.get("/classes").json()
        assert (about["unknown_threshold"], about["unknown_by"]) == (0.95, "evidence")
        assert notes(client) == {""}
        for rows, least, most in ((known, 0.0, 0.2), (sevens, 0.4, 1.0)):
            found = predictions(client, rows)
            marks = [each["is_unknown"] for each in found]
            assert marks == [each["unknown_by"]["is_unknown"] for each in found]
            assert marks == [each["unknown"] >= 0.95 for each in found]
            assert least <= np.mean(marks) <= most
    with asking(folder, unknown=0.0) as client:
        assert all(each["is_unknown"] for each in predictions(client, known))
    with asking(folder, unknown=None) as client:
        assert not any(each["is_unknown"] for each in predictions(client, sevens))


def test_a_lesson_is_said_and_can_be_undone(folder: Path):
    with asking(folder) as client:
        lesson = teach(client, 7, X[Y == 7][:9].tolist()).json()["change"]
        (said,) = notes(client)
        assert said.startswith("calibrated before 9 samples (1 new class) were added: calibrate")
        client.post("/undo", json={"change": lesson}, headers=ALLOWED)
        assert notes(client) == {""}
        gone = forget(client, 3).json()["change"]
        (said,) = notes(client)
        assert "samples were forgotten since" in said
        (found,) = predictions(client, KNOWN[:1])
        assert (found["is_unknown"], found["unknown"]) == (False, None)
        assert client.get("/classes").json()["unknown_threshold"] is None
        client.post("/undo", json={"change": gone}, headers=ALLOWED)
        assert notes(client) == {""}
        assert predictions(client, KNOWN[:1])[0]["unknown"] is not None


def test_nothing_of_it_stays_when_a_class_is_forgotten_for_good(folder: Path):
    assert b'"bins"' in (folder / "unknown.json").read_bytes()
    with asking(folder) as client:
        forget(client, 3, now=True)
    assert b'"bins"' not in (folder / "unknown.json").read_bytes()
    with asking(folder) as client:
        (said,) = notes(client)
        assert said.startswith("not calibrated")


def test_by_default_it_is_a_probability(tmp_path: Path):
    PrototypeClassifier("lda").fit(X[KNOWN], Y[KNOWN]).save(tmp_path / "m")
    with asking(tmp_path / "m") as client:
        about = client.get("/classes").json()
        assert (about["unknown_threshold"], about["unknown_by"]) == (0.5, None)
        (found,) = predictions(client, [0])
        assert found["unknown_by"] is None
        assert found["is_unknown"] == (found["unknown"] >= 0.5)
