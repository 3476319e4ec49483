"""Who may change a model: one process at a time, and while it is served its server alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from protocl.errors import ConfigError
from protocl.io.atomic import atomic_write, locked


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for others that change the model, whatever way to its folder they were given.

    Raises:
        ConfigError: it is served.
    """
    require_unserved(folder)
    with locked(_place(folder)):
        yield


@contextmanager
def serving(folder: Path, address: str) -> Iterator[None]:
    """Be the one that changes a model.

    Raises:
        ConfigError: it is served already, or being changed.
    """
    require_unserved(folder)
    busy = f"{folder} is being changed by another process: wait until that has finished"
    with held(folder, busy):
        note = json.dumps({"process": os.getpid(), "address": address})
        try:
            atomic_write(_note(folder), note + "\n")
            yield
        finally:
            _note(folder).unlink(missing_ok=True)


def require_unserved(folder: Path, *, but_by_us: bool = False) -> None:
    """Refuse to change a model that a server holds.

    Args:
        folder: of the model.
        but_by_us: allow it where the server is this process.

    Raises:
        ConfigError: it is served.
    """
    try:
        note = json.loads(_note(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return
    if but_by_us and note["process"] == os.getpid():
        return
    served = (
        f"{folder} is served at {note['address']}: change it there (POST /teach, POST "
        "/forget, or its page), or stop the server first"
    )
    with held(folder, served):
        _note(folder).unlink(missing_ok=True)  # left by one that was killed


@contextmanager
def held(folder: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of a model, or refuse at once.

    Raises:
        ConfigError: with the text of ``refusal``: another process holds it.
    """
    lock = _lock(folder)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(refusal) from error
    try:
        yield
    finally:
        lock.release()


def _place(folder: Path) -> Path:
    place = folder.resolve()
    return place.parent / f".{place.name}"


def _lock(folder: Path) -> FileLock:
    return FileLock(f"{_place(folder)}.lock")


def _note(folder: Path) -> Path:
    return Path(f"{_place(folder)}.served")
