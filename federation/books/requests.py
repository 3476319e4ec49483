"""Requests of operators, left beside the books for the server that is writing them."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, cast

from protocl.errors import ConfigError
from protocl.io.atomic import atomic_write

logger = logging.getLogger(__name__)

_POLL = 0.2

Kind = Literal["client", "edge", "class", "move"]


class Wanted(NamedTuple):
    """What shall be forgotten, or who shall be let go.

    Attributes:
        kind: ``client``, ``edge`` (of a root, with all its clients) or ``class``; ``move`` for a
            client that goes to another edge.
        name: as the ledger, or the class list, has it.
        to: name of the other edge, where it is a move.
    """

    kind: Kind
    name: str
    to: str = ""

    def __str__(self) -> str:
        return (
            f"move client {self.name} to {self.to}"
            if self.to
            else f"forget {self.kind} {self.name}"
        )

    @classmethod
    def of(cls, word: str) -> Wanted:
        """Read ``client=NAME``, ``edge=NAME`` or ``class=NAME``.

        Raises:
            ConfigError: it is none of them.

        >>> str(Wanted.of("class=red fox"))
        'forget class red fox'
        """
        kind, equals, name = word.partition("=")
        if not (equals and name) or kind not in ("client", "edge", "class"):
            raise ConfigError(f"{word}: expected client=NAME, edge=NAME or class=NAME")
        return cls(cast(Kind, kind), name)

    @classmethod
    def read(cls, text: str) -> Wanted:
        """What a file of :class:`Requests` holds.

        Raises:
            ValueError, KeyError, TypeError, ConfigError: it is no request.
        """
        values = json.loads(text)
        name, to = values["name"], values.get("to", "")
        if values["kind"] != "move":
            return cls.of(f"{values['kind']}={name}")
        if not all(isinstance(word, str) and word for word in (name, to)):
            raise ValueError("a move needs the names of a client and of an edge")
        return cls("move", name, to)


class Requests:
    """A folder of files, one a request, which are answered by files of the same name.

    Args:
        folder: of the books.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "requests"

    def leave(self, wanted: Wanted) -> str:
        """Ask for something; the name of the request."""
        name = secrets.token_hex(8)
        atomic_write(self._folder / f"{name}.json", json.dumps(wanted._asdict()))
        return name

    def waiting(self) -> Iterator[tuple[str, Wanted]]:
        """Requests without an answer, by name; what is none is put aside as ``*.refused``."""
        for file in sorted(self._folder.glob("*.json")):
            try:
                wanted = Wanted.read(file.read_text(encoding="utf-8"))
            except (ValueError, KeyError, TypeError, ConfigError) as error:
                logger.warning("%s is no request: %s", file, error)
                file.rename(file.with_suffix(".refused"))
                continue
            yield file.stem, wanted

    def answer(self, name: str, text: str, *, done: bool) -> None:
        """Say what became of a request."""
        answer = json.dumps({"done": done, "text": text})
        atomic_write(self._folder / f"{name}.answer", answer)
        (self._folder / f"{name}.json").unlink()

    def take_back(self, name: str) -> bool:
        """Ask no longer; False where it was answered. Nobody else may be writing the books."""
        try:
            (self._folder / f"{name}.json").unlink()
        except FileNotFoundError:
            return False
        return True

    def wait_for(self, name: str, seconds: float) -> str | None:
        """The answer to a request; None where none came in time, and the request still stands.

        Raises:
            ConfigError: it could not be done.
        """
        file, end = self._folder / f"{name}.answer", time.monotonic() + seconds
        while not file.exists():
            if time.monotonic() > end:
                return None
            time.sleep(_POLL)
        answer = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        if not answer["done"]:
            raise ConfigError(answer["text"])
        return str(answer["text"])
