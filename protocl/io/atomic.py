"""Files that are either whole or absent."""

from __future__ import annotations

import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"
_PATIENCE = 2.0
"""Seconds after which a wait is reported."""


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its place when the block ends well.

    The file is flushed to disk before it is renamed, and removed when the block raises: a
    reader sees the old content or the new, never a part of it. Missing folders are created.
    Only a killed process leaves the temporary file: see :func:`discard_partial`.

    Raises:
        OSError: the file cannot be written; safetensors' own error for it is none.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_PARTIAL)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        flush(target.parent)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(target: str | os.PathLike[str], content: bytes | memoryview | str) -> None:
    """Write ``content`` (text as UTF-8) to ``target``, whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def is_occupied(target: Path) -> bool:
    """Whether ``target`` is there, and not an empty folder that :func:`atomic_folder` replaces."""
    return target.exists() and (not target.is_dir() or any(target.iterdir()))


@contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place when the block ends well.

    ``target`` is absent, or an empty folder. It is whole or as it was at any moment.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    name = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=_PARTIAL)
    temporary = Path(name)
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for file in temporary.iterdir():
            flush(file)
        temporary.replace(target)
        flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard_partial(target: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of ``target``: a file, or a folder with all below it.

    For the one process that may write there, such as the holder of its lock.
    """
    target = Path(target)
    if target.is_dir():
        left = target.rglob(f".*{_PARTIAL}")
    else:
        left = target.parent.glob(f".{glob.escape(target.name)}.*{_PARTIAL}")
    for path in list(left):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, saying so if another process makes us wait for it.

    Missing folders are created. The system frees the lock if its holder dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        logger.info("waiting for another process that is computing %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
