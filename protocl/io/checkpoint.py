"""Stop a run at any moment and continue it: the whole state in one verified file.

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
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import dill
import torch
from torch.serialization import default_restore_location

from protocl.errors import ConfigError, DataError
from protocl.io.atomic import atomic_path
from protocl.io.provenance import installed_version

logger = logging.getLogger(__name__)

FORMAT = 2
_MARK = b"protocl-checkpoint-%d" % FORMAT
_DIGEST_BYTES = hashlib.sha256().digest_size
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
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        # Straight to the file: a copy in memory would double what a large memory takes.
        with classes_by_reference():
            torch.save(state, file, pickle_module=_writing_module(shared or {}))
        file.write(_MARK)
        file.write(_digest(file, file.tell()))


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
    _verify(path)
    target = None if device is None else torch.device(device)

    def place(storage: Any, location: str) -> Any:
        return default_restore_location(storage, str(_placed(torch.device(location), target)))

    module = _reading_module(shared or {}, path, target)
    # The archive's directory is looked for from the end, past the checksum that follows it.
    with path.open("rb") as file:
        return torch.load(file, map_location=place, pickle_module=module, weights_only=False)


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
        file.seek(-_DIGEST_BYTES - len(_MARK), os.SEEK_END)
        if file.read(len(_MARK)) != _MARK:
            raise outdated(path)


def outdated(path: Path) -> ConfigError:
    """The error for what another protocl left to be continued."""
    return ConfigError(
        f"{path} is not of format {FORMAT}, the one that protocl {installed_version('protocl')} "
        "continues; start anew without resume=true, or finish with the protocl that began it"
    )


class CheckpointFolder:
    """The checkpoints of one run, one file an experience, round, step or epoch; two are kept.

    Args:
        path: the folder; it is created with the first checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self) -> list[Path]:
        """The checkpoints, newest first."""
        return sorted(self.path.glob("experience-*.ckpt"), reverse=True)

    def save(self, experience: int, state: object, shared: Mapping[str, object]) -> None:
        """Write the state after ``experience`` (from 0), then drop all but the last two."""
        save(self.path / f"experience-{experience:05d}.ckpt", state, shared)
        for old in self.files()[_KEPT:]:
            old.unlink()

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
                return load(file, shared, device)
            except DataError as error:
                logger.warning("%s; continuing from the one before it", error)
        return None


def _save_class(pickler: Any, cls: type) -> None:
    """Save a class by name where that name leads back to it; else leave it to dill."""
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is cls and cls.__module__ not in ("__main__", "builtins"):
        pickler.save_global(cls, name=cls.__qualname__)
    else:
        dill._dill.save_type(pickler, cls)


def _shared(key: str) -> object:
    """Stand-in that the reading side replaces by a look-up; see :func:`_reading_module`."""
    raise DataError(f"this checkpoint refers to '{key}'; read it with protocl.io.checkpoint.load")


def _device(name: str) -> torch.device:
    """Stand-in of a saved ``torch.device``, likewise replaced by the reading side."""
    return torch.device(name)


def _placed(saved: torch.device, target: torch.device | None) -> torch.device:
    return saved if target is None or saved.type == "cpu" else target


def _writing_module(shared: Mapping[str, object]) -> SimpleNamespace:
    """A pickle module for ``torch.save`` that writes shared objects as their keys."""
    keys = {id(value): key for key, value in shared.items()}

    class Pickler(dill.Pickler):
        def reducer_override(self, obj: object) -> Any:
            if isinstance(obj, torch.device):
                # Else Avalanche's own reducer is used, which prints when it is read.
                return _device, (str(obj),)
            key = keys.get(id(obj))
            return NotImplemented if key is None else (_shared, (key,))

    return SimpleNamespace(__name__="protocl.io.checkpoint", Pickler=Pickler)


def _reading_module(
    shared: Mapping[str, object], path: Path, target: torch.device | None
) -> SimpleNamespace:
    """A pickle module for ``torch.load`` that resolves shared objects and devices."""

    def resolve(key: str) -> object:
        if key not in shared:
            raise DataError(f"{path} needs the shared object '{key}', which was not given")
        return shared[key]

    def device(name: str) -> torch.device:
        return _placed(torch.device(name), target)

    replaced = {_shared.__name__: resolve, _device.__name__: device}

    class Unpickler(dill.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == __name__ and name in replaced:
                return replaced[name]
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError) as error:
                raise outdated(path) from error

    return SimpleNamespace(__name__="protocl.io.checkpoint", Unpickler=Unpickler)
