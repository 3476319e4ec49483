"""Requests to forget, left beside the books for the server that is writing them."""

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

Kind = Literal["client", "edge", "class"]


class Wanted(NamedTuple):
    """What shall be forgotten.

    Attributes:
        kind: ``client``, ``edge`` (of a root, with all its clients) or ``class``.
        name: as the ledger, or the class list, has it.
    """

    kind: Kind
    name: str

    @classmethod
    def of(cls, word: str) -> Wanted:
        """Read ``client=NAME``, ``edge=NAME`` or ``class=NAME``.

        Raises:
            ConfigError: it is none of them.

        >>> Wanted.of("class=red fox")
        Wanted(kind='class', name='red fox')
        """
        kind, equals, name = word.partition("=")
        if not (equals and name) or kind not in ("client", "edge", "class"):
            raise ConfigError(f"{word}: expected client=NAME, edge=NAME or class=NAME")
        return cls(cast(Kind, kind), name)


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
                values = json.loads(file.read_text(encoding="utf-8"))
                wanted = Wanted.of(f"{values['kind']}={values['name']}")
            except (ValueError, KeyError, TypeError, ConfigError) as error:
                logger.warning("%s is no request to forget: %s", file, error)
                file.rename(file.with_suffix(".refused"))
                continue
            yield file.stem, wanted

    def answer(self, name: str, text: str, *, done: bool) -> None:
        """Say what became of a request."""
        answer = json.dumps({"done": done, "text": text})
        atomic_write(self._folder / f"{name}.answer", answer)
        (self._folder / f"{name}.json").unlink()

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
