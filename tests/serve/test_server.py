"""The command: what it refuses, what it prints, and that it stops."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from protocl import load_model
from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.serve.server import LOOPBACK, Settings, hosts_of
from tests.model.changes.test_ledger import X, made
from tests.serve.process import served


def test_it_prints_a_ready_link_teaches_and_stops(tmp_path: Path) -> None:
    folder = made(tmp_path / "my model")
    with served(folder, Settings(port=0)) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#token=[\w-]{43}", server.link)
        caller = server.caller()
        content = {"class": "d", "features": X[:2].tolist()}
        assert server.post("/teach", content, caller) == 200
        with urllib.request.urlopen(f"{server.link.partition('/#')[0]}/health") as reply:
            assert json.load(reply)["classes"] == 4
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.join(60)
        assert server.process.exitcode in (0, -signal.SIGTERM)
    assert load_model(folder).classes_.tolist() == ["a", "b", "c", "d"]
    assert not (tmp_path / ".my model.served").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "with --allow-host NAME"),
        (["--port", "70000"], "below 65536"),
        (["--undo", "-1"], "0 to 10000 minutes"),
        (["--readers", "0"], "at least one reader"),
        (["--token-file", "TOKEN"], "at least 16 printable ASCII"),
        (["--token-file", "absent"], "No such file"),
    ],
)
def test_what_it_refuses(
    words: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("TOKEN").write_text("short\n")
    assert main(["serve", str(made(tmp_path / "m")), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_model(tmp_path: Path, capsys: Any) -> None:
    assert main(["serve", str(tmp_path), "--port", "0"]) == 3
    assert "is no model" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1.5", "-1", "many", "nan"])
def test_a_threshold_is_a_probability(value: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["serve", str(tmp_path), f"--unknown={value}"])
    assert "expected a number in 0..1, auto or off" in capsys.readouterr().err


def test_a_port_that_is_taken(tmp_path: Path, capsys: Any) -> None:
    folder, other = made(tmp_path / "m"), made(tmp_path / "other")
    with served(folder, Settings(port=0)) as server:
        port = server.link.split(":")[2].split("/")[0]
        assert main(["serve", str(other), "--port", port]) == 2
        assert "choose another with --port" in capsys.readouterr().err
        assert main(["serve", str(folder), "--port", "0"]) == 2
        assert f"is served at http://127.0.0.1:{port}" in capsys.readouterr().err


def test_names_under_which_it_is_reached() -> None:
    assert hosts_of(Settings()) == [*LOOPBACK, "127.0.0.1"]
    assert hosts_of(Settings(host="::", allowed_hosts=["a.example"])) == [*LOOPBACK, "a.example"]
    with pytest.raises(ConfigError):
        hosts_of(Settings(host="0.0.0.0"))
