"""The commands that take a client or a class out of a federation."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from protocl.errors import ConfigError, DataError, writing_to
from protocl.federation.books.backup import (
    GIVE_ROOM,
    back_up,
    folder_of_books,
    place_of_keys,
    restore,
)
from protocl.federation.books.books import Books, InUseError
from protocl.federation.books.requests import Requests, Wanted
from protocl.federation.cli.written import merged_by, take_rule, write_outputs
from protocl.federation.edges.door import ROSTER, read_roster
from protocl.federation.edges.files import EdgeFolder
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.memory import PrototypeMemory

_PATIENCE = 60.0
"""Seconds to wait for a server that is at work between two rounds."""

_PAUSE = 1.0
"""Seconds after which one looks whether who was asked has ended."""


def forget(folder: Path, word: str, seconds: float = _PATIENCE) -> list[str]:
    """Forget ``client=NAME``, ``edge=NAME`` or ``class=NAME``, whether a server is at work or not.

    Args:
        folder: of a run or a deployed server, or of its books.
        word: see above.
        seconds: to wait for a server that is at work; it does it between two rounds.

    Returns:
        What was done, and what else must be done, in words.

    Raises:
        ConfigError: there are no books, or nothing of that name, or it cannot be forgotten.
    """
    return _carry_out(folder_of_books(folder), Wanted.of(word), seconds)


def let_go(folder: Path, client: str, to: str, seconds: float = _PATIENCE) -> list[str]:
    """Let a client go to another edge, whether the server of this one is at work or not.

    Args:
        folder: of the deployed server of an edge.
        client: as its ledger names it.
        to: name of the other edge, as ``edges.json`` has it.
        seconds: see :func:`forget`.

    Returns:
        See :func:`forget`.

    Raises:
        ConfigError: there are no books, or no such client or edge, or it was forgotten.
    """
    place = folder_of_books(folder)
    edges = read_roster(place.parent / ROSTER)
    if to not in edges:
        listed = ", ".join(sorted(edges)) or "no edges"
        raise ConfigError(f"to={to}: {place.parent / ROSTER} has {listed}")
    said = _carry_out(place, Wanted("move", client, to), seconds)
    release = EdgeFolder(place.parent).release(client)
    return [*said, f"once the root is without it, its release is here: {release}"]


def _carry_out(place: Path, wanted: Wanted, seconds: float) -> list[str]:
    strategy = _opened(place)
    try:
        with strategy.writing():
            return _forget_here(strategy, place, wanted)
    except InUseError:
        return _ask(strategy, place, wanted, seconds)


def bring_back(folder: Path, file: Path) -> list[str]:
    """Restore a backup, without what was forgotten since; where that fails, all is as before.

    Args:
        folder: see :func:`forget`.
        file: see :func:`.backup.restore`.

    Returns:
        See :func:`forget`.

    Raises:
        ConfigError, DataError: see :func:`.backup.restore`, or nothing can be made of the backup.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give that of the run, or the server's output")
    place_of_keys(folder)
    with writing_to(folder, GIVE_ROOM), TemporaryDirectory(dir=folder) as temporary:
        before = Path(temporary) / "before"
        with suppress(ConfigError, DataError):  # they may be lost or damaged
            back_up(folder, before)
        restore(folder, file)
        try:
            return catch_up(folder)
        except (ConfigError, DataError, OSError):
            if before.exists():
                restore(folder, before)
            raise


def catch_up(folder: Path) -> list[str]:
    """Leave out of books that were restored what was forgotten since, on disk as well.

    Args:
        folder: see :func:`forget`.

    Returns:
        See :func:`forget`.

    Raises:
        ConfigError, DataError: they cannot be read, or somebody is writing them.
    """
    place = folder_of_books(folder)
    strategy = _opened(place)
    with strategy.writing():
        try:
            strategy.resume()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return write_outputs(strategy, place.parent)


def _forget_here(strategy: FederatedPrototypes, place: Path, wanted: Wanted) -> list[str]:
    strategy.resume()
    before = merged_by(strategy)
    strategy.heed()  # what a server was asked for that is not at work any more
    try:
        said = strategy.forget(wanted)
    except (KeyError, ValueError) as error:
        if isinstance(error, ConfigError | DataError):
            raise
        raise ConfigError(str(error.args[0])) from error
    return [said, *write_outputs(strategy, place.parent, before)]


def _ask(
    strategy: FederatedPrototypes, place: Path, wanted: Wanted, seconds: float
) -> list[str]:  # fmt: skip
    """Have it done by who writes the books, or do it as soon as nobody does any more."""
    requests, end = Requests(place), time.monotonic() + seconds
    name = requests.leave(wanted)
    while (left := end - time.monotonic()) > 0:
        if answer := requests.wait_for(name, min(left, _PAUSE)):
            return [answer]
        with suppress(InUseError), strategy.writing():
            if requests.take_back(name):
                return _forget_here(strategy, place, wanted)
    return ["asked the server that is at work; it does so between two rounds"]


def _opened(place: Path) -> FederatedPrototypes:
    """A server of the kind whose books these are, without its clients."""
    books = Books(place, PrototypeMemory(1))
    said = books.open()
    books.close()
    strategy = FederatedPrototypes(
        PrototypeMemory.described(said["statistics"]),
        keep_contributions=said["keep_contributions"],
        checkpoints=place,
        rows=said.get("rows", False),
    )
    strategy.merged.means = said["means"]
    if not said["plain"]:
        take_rule(strategy, place.parent)
    return strategy
