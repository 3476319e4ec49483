"""Stop a run at any moment and continue it: the whole state in verified files.

A checkpoint holds Python objects and is read with pickle: load only files that you wrote.

Avalanche's own ``save_checkpoint`` fails with every ``torch.optim`` optimizer
(``PicklingError: Can't pickle sentinel``), since ``torch.optim`` deletes the names of its
submodules and dill then tries to save the optimizer's class by value. The way out::

    from avalanche.checkpointing import save_checkpoint
    from protocl.io.checkpoint import classes_by_reference

    with classes_by_reference():
        save_checkpoint(strategy, "run.pth")     # maybe_load_checkpoint needs no such block
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import dill
import torch

from protocl.errors import ConfigError, DataError
from protocl.io.atomic import atomic_path
from protocl.io.pickling import StatePickler, StateUnpickler
from protocl.io.pieces import PieceFolder
from protocl.io.provenance import installed_version

logger = logging.getLogger(__name__)

FORMAT = 4
_MARK = b"protocl-checkpoint-%d" % FORMAT
_DIGEST_BYTES = hashlib.sha256().digest_size
_LENGTH_BYTES = 8
_KEPT = 2  # the newest, and one before it in case the newest is damaged


@contextmanager
def classes_by_reference() -> Iterator[None]:
    """Within the block dill saves every importable class by its name, as pickle does.

    Outside of it dill behaves as before. Use it around ``save_checkpoint`` of Avalanche.
    """
    dispatch = dill.Pickler.dispatch
    before = dispatch[type]
    dispatch[type] = _save_class
    try:
        yield
    finally:
        dispatch[type] = before


def save(path: Path, state: object, shared: Mapping[str, object] | None = None) -> None:
    """Write ``state`` to ``path``, whole or not at all.

    Args:
        path: the file; an older one of that name is replaced.
        state: any object that dill can save, such as an Avalanche strategy.
        shared: large objects that the reader has anyway (the training data). They are saved as
            their key; the reader passes its own under the same keys.
    """
    _write(path, state, shared or {}, None)


def load(
    path: Path,
    shared: Mapping[str, object] | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """Read what :func:`save` wrote.

    Args:
        path: the file.
        shared: the objects that stand for the keys given to :func:`save`.
        device: takes the place of the accelerator that tensors were on, in the state's own
            ``torch.device`` values as well; what was on the CPU stays there. By default all goes
            back to where it was.

    Raises:
        DataError: the file is truncated or changed, or needs a shared object that is missing.
        ConfigError: an earlier protocl wrote it.
    """
    return _read(path, shared or {}, device, None)


def _write(
    path: Path, state: object, shared: Mapping[str, object], pieces: PieceFolder | None
) -> None:
    """A file of the tensors that are in no piece, the pickle, an index of both, and a checksum."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # Straight to the file: a copy in memory would double what a large memory takes.
        content = _Summed(file)
        stream = io.BytesIO()
        pickler = StatePickler(stream, shared, content.put, pieces)
        with classes_by_reference():
            pickler.dump(state)
        begin = content.put(stream.getbuffer())
        index = {"pickle": [begin, len(stream.getbuffer())], "pieces": sorted(pickler.used)}
        text = json.dumps(index).encode()
        content.put(text + len(text).to_bytes(_LENGTH_BYTES) + _MARK)
        file.write(content.digest)


def _read(
    path: Path,
    shared: Mapping[str, object],
    device: torch.device | str | None,
    pieces: PieceFolder | None,
) -> Any:
    _verify(path)
    target = None if device is None else torch.device(device)
    begin, size = _index(path)["pickle"]
    with path.open("rb") as file:
        file.seek(begin)
        stream = io.BytesIO(file.read(size))
    state = StateUnpickler(stream, path, shared, target, pieces, outdated).load()
    torch._utils._validate_loaded_sparse_tensors()
    return state


class _Summed:
    """A file that is written from its beginning to its end, and its checksum so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def put(self, content: bytes | memoryview) -> int:
        """Append ``content``, and tell where it begins."""
        begin = self._file.tell()
        self._file.write(content)
        self._digest.update(content)
        return begin

    @property
    def digest(self) -> bytes:
        return self._digest.digest()


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first ``size`` bytes; the file is left behind them."""
    file.seek(0)
    digest = hashlib.sha256()
    while size:
        piece = file.read(min(size, 1 << 20))
        digest.update(piece)
        size -= len(piece)
    return digest.digest()


def _verify(path: Path) -> None:
    """Compare a file with the checksum at its end, and its format with ours."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _DIGEST_BYTES or _digest(file, size - _DIGEST_BYTES) != file.read():
            raise DataError(
                f"{path} is damaged: its {size} bytes do not match their checksum; "
                "delete it to continue from the checkpoint before it"
            )
    if not _is_marked(path):
        raise outdated(path)


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _DIGEST_BYTES - len(_MARK)))
        return file.read(len(_MARK)) == _MARK


def _index(path: Path) -> dict[str, Any]:
    """Where the pickle of a checkpoint of this format lies, and which pieces it refers to."""
    end = path.stat().st_size - _DIGEST_BYTES - len(_MARK) - _LENGTH_BYTES
    with path.open("rb") as file:
        file.seek(end)
        size = int.from_bytes(file.read(_LENGTH_BYTES))
        file.seek(end - size)
        index: dict[str, Any] = json.loads(file.read(size))
    return index


def outdated(path: Path) -> ConfigError:
    """The error for what another protocl left to be continued."""
    return ConfigError(
        f"{path} is not of format {FORMAT}, the one that protocl {installed_version('protocl')} "
        "continues; start anew without resume=true, or finish with the protocl that began it"
    )


class CheckpointFolder:
    """The checkpoints of one run, one file an experience, round, step or epoch; two are kept.

    Beside them lie the large arrays that they refer to (:mod:`.pieces`): what has not changed
    since the last checkpoint is not written again. Whenever the process is killed, the newest
    checkpoint and all that it refers to are whole; the next one removes what no other needs.

    Args:
        path: the folder; it is created with the first checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pieces = PieceFolder(path / "arrays")

    def files(self) -> list[Path]:
        """The checkpoints, newest first."""
        return sorted(self.path.glob("experience-*.ckpt"), reverse=True)

    def save(self, experience: int, state: object, shared: Mapping[str, object]) -> None:
        """Write the state after ``experience`` (from 0), then drop all but the last two."""
        _write(self.path / f"experience-{experience:05d}.ckpt", state, shared, self._pieces)
        files = self.files()
        for old in files[_KEPT:]:
            old.unlink()
        self._pieces.keep({name for file in files[:_KEPT] for name in _pieces_of(file)})

    def load_newest(
        self,
        shared: Mapping[str, object],
        device: torch.device | str | None = None,
    ) -> Any | None:
        """The newest state that is whole, or None; damaged files are passed over with a warning.

        Arguments are those of :func:`load`.
        """
        for file in self.files():
            try:
                return _read(file, shared, device, self._pieces)
            except DataError as error:
                logger.warning("%s; continuing from the one before it", error)
        return None

    def discard(self) -> None:
        """Remove all checkpoints and what they refer to."""
        for file in self.files():
            file.unlink()
        self._pieces.keep(set())


def _pieces_of(path: Path) -> list[str]:
    """Names of the pieces that a checkpoint refers to; none where it cannot be read anyway."""
    try:
        return list(_index(path)["pieces"]) if _is_marked(path) else []
    except (ValueError, KeyError, OSError):
        return []


def _save_class(pickler: Any, cls: type) -> None:
    """Save a class by name where that name leads back to it; else leave it to dill."""
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is cls and cls.__module__ not in ("__main__", "builtins"):
        pickler.save_global(cls, name=cls.__qualname__)
    else:
        dill._dill.save_type(pickler, cls)
