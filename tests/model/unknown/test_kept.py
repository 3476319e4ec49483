"""``unknown.json``: what is written is read, what is damaged is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from protocl.errors import DataError
from protocl.model.description import checksum_of
from protocl.model.unknown.kept import UNKNOWN, read_unknown, write_unknown
from protocl.open_world.calibration import ScoreCalibration
from tests.open_world.test_evidence import world


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    memory, x, labels = world()
    write_unknown(tmp_path, "evidence", ScoreCalibration.of("evidence", memory, x, labels, keep=1))
    return tmp_path


def test_read_as_written(folder: Path):
    memory, x, labels = world()
    score, calibration = read_unknown(folder)
    expected = ScoreCalibration.of("evidence", memory, x, labels, keep=1)
    assert score == "evidence"
    assert calibration is not None
    assert torch.equal(calibration.histogram.counts, expected.histogram.counts)
    assert calibration.lapsed(memory) == ""
    assert (calibration.keep, calibration.samples) == (1.0, len(x))
    before = (folder / UNKNOWN).read_bytes()
    write_unknown(folder, score, calibration)
    assert (folder / UNKNOWN).read_bytes() == before


def test_a_score_alone_and_none(folder: Path):
    _, calibration = read_unknown(folder)
    write_unknown(folder, "energy", calibration)  # which is of another score
    assert read_unknown(folder) == ("energy", None)
    for _ in range(2):
        write_unknown(folder, None, calibration)
        assert read_unknown(folder) == (None, None)


def test_damage(folder: Path):
    whole = (folder / UNKNOWN).read_text()
    for text in ("", "[]", "{}", whole[:-9], whole.replace('"keep": 1.0', '"keep": 0.5'), "\x00"):
        (folder / UNKNOWN).write_text(text)
        with pytest.raises(DataError, match="is damaged"):
            read_unknown(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "is damaged"),
        ({"calibration": {"keep": 2.0}}, "is damaged"),
        ({"score": "of_nobody"}, "install the package that brings it"),
    ],
)
def test_other_contents(folder: Path, change: dict[str, object], message: str):
    content = json.loads((folder / UNKNOWN).read_text()) | change
    del content["checksum"]
    content["checksum"] = checksum_of(content)
    (folder / UNKNOWN).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_unknown(folder)


def test_impossible_bins(folder: Path):
    content = json.loads((folder / UNKNOWN).read_text())
    del content["checksum"]
    content["calibration"]["histogram"]["bins"][0] = -1
    content["checksum"] = checksum_of(content)
    (folder / UNKNOWN).write_text(json.dumps(content))
    with pytest.raises(DataError, match="has bins 0 to"):
        read_unknown(folder)
