"""One process changes a model; while it is served, its server alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocl import load_model
from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.model.changes.owner import alone, require_unserved, serving
from tests.model.changes.test_ledger import X, made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "my model")


def test_a_served_model_is_changed_by_its_server_alone(
    folder: Path, tmp_path: Path, capsys: Any
) -> None:
    np.save(tmp_path / "x.npy", X[:2])
    known = load_model(folder)
    before = (folder / "memory.safetensors").read_bytes()
    with serving(folder, "http://127.0.0.1:1"):
        for words in (["teach", str(folder), "--class", "d", str(tmp_path / "x.npy")],
                      ["forget", str(folder), "--class", "a"]):  # fmt: skip
            assert main(words) == 2
            assert "is served at http://127.0.0.1:1: change it there" in capsys.readouterr().err
        with pytest.raises(ConfigError, match="is served at"), serving(folder, "http://other"):
            pass
        (tmp_path / "link").symlink_to(folder)
        with pytest.raises(ConfigError, match="is served at"), alone(tmp_path / "link"):
            pass
        assert main(["predict", str(folder), str(tmp_path / "x.npy")]) == 0
        known.save(folder)  # by the process that serves it
    assert (folder / "memory.safetensors").read_bytes() == before
    assert main(["forget", str(folder), "--class", "a"]) == 0


def test_another_process_does_not_save_over_a_served_model(folder: Path) -> None:
    with serving(folder, "http://127.0.0.1:1"):
        note = folder.parent / ".my model.served"
        note.write_text(json.dumps(json.loads(note.read_text()) | {"process": 1}))
        with pytest.raises(ConfigError, match="is served at"):
            load_model(folder).save(folder)


def test_one_that_is_being_changed_is_not_served(folder: Path) -> None:
    with (
        alone(folder),
        pytest.raises(ConfigError, match="being changed by another process"),
        serving(folder, "http://127.0.0.1:1"),
    ):
        pass


def test_what_a_killed_server_left_keeps_nobody_out(folder: Path) -> None:
    note = folder.parent / ".my model.served"
    note.write_text(json.dumps({"process": 1, "address": "http://gone"}))
    require_unserved(folder)
    assert not note.exists()
    with serving(folder, "http://here"):
        assert json.loads(note.read_text())["address"] == "http://here"
    assert not note.exists()
