"""Completion by a shell: the way that bash asks, and what it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocl.cli.completion import settings, shell_code
from protocl.cli.main import main
from protocl.config.presets import group_names
from protocl.registry import HEADS


def offered(line: str, tmp_path: Path) -> list[str]:
    """What a shell is told when Tab is pressed at the end of ``line``."""
    answer = tmp_path / "answer"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())),
        "COMP_TYPE": "9",
    }
    code = "import sys; from protocl.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    return answer.read_text().split("\n")


def test_a_shell_is_told_commands_options_and_settings(tmp_path: Path) -> None:
    assert {"run", "federate", "predict", "completion"} <= set(
        map(str.strip, offered("protocl ", tmp_path))
    )
    assert [one.strip() for one in offered("protocl list strategies --no", tmp_path)] == [
        "--no-samples"
    ]
    assert "slda" in "".join(offered("protocl run strategy=sl", tmp_path))


def test_names_and_sweeps_are_completed() -> None:
    assert settings("run", "strategy=nap") == ["strategy=napa_vq", "strategy=napa_vq_released"]
    assert settings("run", "strategy.head=") == [f"strategy.head={name}" for name in HEADS.names()]
    assert settings("run", "strategy=slda,ranpac_") == ["strategy=slda,ranpac_1000"]
    assert settings("federate", "federation=digits_s") == [
        "federation=digits_secure", "federation=digits_stream",
    ]  # fmt: skip
    assert settings("federate", "method=prot") == ["method=protected", "method=prototypes"]
    assert "pretraining=" in settings("pretrain", "")
    assert settings("run", "lr=") == settings("run", "nonsense") == settings("walk", "x=") == []
    assert settings("run", "strategy=é") == []
    assert len(settings("run", "experiment=")) == len(group_names("experiment"))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_are_given_their_code(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == shell_code(shell)
    assert "protocl" in shell_code(shell)


def test_bash_takes_the_code(tmp_path: Path) -> None:
    script = f"{shell_code('bash')}\ncomplete -p protocl"
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "_python_argcomplete" in told.stdout


def test_other_shells_are_refused() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "fish"])
    assert ended.value.code == 2
