"""The script that runs checks and measurements, which ends in time and keeps what it has."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.cuda.__main__ import OVERRUN, main, run

SLOW = "import time; print('begun'); time.sleep(600)"


def test_what_takes_too_long_is_ended_and_what_it_said_kept(tmp_path: Path) -> None:
    code, _ = run([sys.executable, "-c", SLOW], tmp_path / "log.txt", time.monotonic() + 4)
    assert code == OVERRUN
    assert (tmp_path / "log.txt").read_text() == "begun\n"


def test_others_end_with_their_own_code(tmp_path: Path) -> None:
    code, seconds = run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log.txt", None)
    assert code == 3
    assert seconds < 600


def test_a_step_that_a_signal_ends_has_not_ended_well(tmp_path: Path) -> None:
    code, _ = run(
        [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], tmp_path / "l", None
    )
    assert code == 128 + 11


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_no_time_at_all_is_refused(minutes, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["tests.cuda", "--minutes", minutes])
    with pytest.raises(SystemExit):
        main()
    assert "expected more than 0" in capsys.readouterr().err
