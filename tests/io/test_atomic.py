"""Files that are whole or absent, also when their writer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocl.io.atomic import atomic_path, atomic_write, discard_partial

_DIES = """
import os, signal, sys
from protocl.io.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half of")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die_while_writing(target: Path) -> None:
    """Have a process killed in the midst of writing ``target``."""
    ended = subprocess.run([sys.executable, "-c", _DIES, str(target)], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_a_new_file_replaces_the_old_and_has_the_usual_rights(tmp_path: Path):
    target = tmp_path / "deep" / "file"
    atomic_write(target, "old")
    atomic_write(target, b"new")
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode == ordinary.stat().st_mode
    assert os.listdir(target.parent) == ["file"]


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path):
    target = tmp_path / "file"
    atomic_write(target, "old")
    with pytest.raises(TypeError), atomic_path(target) as temporary:
        temporary.write_text(7)  # type: ignore[arg-type]
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_of_a_file_is_removed_and_other_files_stay(tmp_path: Path):
    for name in ("a[1]", "a[1].b"):
        atomic_write(tmp_path / name, "old")
        die_while_writing(tmp_path / name)
    assert len(os.listdir(tmp_path)) == 4
    discard_partial(tmp_path / "a[1].b")
    assert len(os.listdir(tmp_path)) == 3
    discard_partial(tmp_path / "a[1]")
    assert sorted(os.listdir(tmp_path)) == ["a[1]", "a[1].b"]
    assert (tmp_path / "a[1]").read_text() == "old"


def test_a_folder_is_cleared_of_all_that_is_half_written(tmp_path: Path):
    die_while_writing(tmp_path / "file")
    die_while_writing(tmp_path / "deeper" / "file")
    (tmp_path / ".lock").touch()
    discard_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "deeper"]
