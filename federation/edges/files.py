"""The folder of an edge: what its server leaves there for the node that speaks to the root.

The server of an edge and its node at the root are processes of their own. The server writes
``row.safetensors`` after each round; the node numbers it and sends it. An operator asks for
withdrawals by files in ``asked``, which the server takes up after its round.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from protocl.errors import ConfigError, DataError
from protocl.federation.books.backup import folder_of_books
from protocl.federation.books.books import Books
from protocl.federation.edges.door import ROSTER, EdgeDoor, own_key, read_roster
from protocl.federation.edges.row import Holding
from protocl.federation.exactly_once.server import Tombstone
from protocl.federation.secure.protocol.identity import public_key
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.wire.messages import Received
from protocl.io.atomic import atomic_path, atomic_write
from protocl.memory import PrototypeMemory
from protocl.memory.file import arrays_of, description_of

logger = logging.getLogger(__name__)

_ROW = "protocl-row-1"


@dataclass(frozen=True)
class EdgeFolder:
    """The files of an edge.

    Attributes:
        path: the server's ``output``.
        name: of the edge; its node and its operator need not know it.
    """

    path: Path
    name: str = ""

    def __call__(self, received: Received) -> Received:
        """See :class:`.EdgeDoor`; whose releases are accepted is read anew each time."""
        return EdgeDoor(self.name, read_roster(self.path / ROSTER))(received)

    @property
    def key(self) -> bytes:
        """The private key with which releases are signed; its public one lies in ``edge.pub``."""
        self.path.mkdir(parents=True, exist_ok=True)
        private = own_key(self.path / "edge.key")
        atomic_write(self.path / "edge.pub", public_key(private).hex() + "\n")
        return private

    @property
    def row(self) -> Path:
        """Of what the edge has."""
        return self.path / "row.safetensors"

    @property
    def above(self) -> Path:
        """Of what the edge's node told the root."""
        return self.path / "above.safetensors"

    def tend(self, strategy: FederatedPrototypes) -> None:
        """Withdraw who is asked for, and leave what the edge has for the root."""
        for file in sorted((self.path / "asked").glob("*.json")):
            try:
                asked = json.loads(file.read_text(encoding="utf-8"))
                if asked["target"]:
                    strategy.release_client(asked["client"], asked["target"])
                else:
                    strategy.forget_client(asked["client"])
            except (KeyError, ValueError, TypeError) as error:
                logger.warning("%s: %s", file.name, error)
                file.rename(file.with_suffix(".refused"))
                continue
            file.unlink()
        self.leave(strategy)

    def leave(self, strategy: FederatedPrototypes) -> None:
        """Leave what the edge has for the root."""
        withdrawn = [tombstone._asdict() for tombstone in strategy.withdrawn]
        save_holding(
            self.row, strategy.memory, strategy.merged.names, withdrawn=withdrawn, edge=self.name,
            erasures=strategy.merged.erasures,
        )  # fmt: skip

    def release(self, client: str) -> Path:
        """Where the release of a client that left is written, and overwritten by the next one."""
        return self.path / "releases" / f"{quote(client, safe='')}.release.json"


def leave_anew(folder: Path, strategy: FederatedPrototypes) -> list[str]:
    """Write the row of an edge anew whose server is not at work; what else to know, in words."""
    edge = EdgeFolder(folder)
    if not edge.row.exists():
        return []
    _, values = load_holding(edge.row)
    EdgeFolder(folder, values["edge"]).leave(strategy)
    if not edge.above.exists():
        return []
    return [f"{edge.above} and the root are as before until the root asks this edge again"]


def ask(folder: Path, client: str, target: str) -> Path:
    """Ask the server of an edge to let a client go, or to forget it, after its round.

    Args:
        folder: the server's ``output``.
        client: as the ledger names it.
        target: name of the edge to which it goes; "" to forget it.

    Returns:
        The file, which is gone once it is done.

    Raises:
        ConfigError: there are no books, no such client contributed, or the edge is not listed.
    """
    known = _contributors(folder_of_books(folder))
    if client not in known:
        raise ConfigError(f"client={client} contributed nothing; clients are {', '.join(known)}")
    edges = read_roster(folder / ROSTER)
    if target and target not in edges:
        raise ConfigError(
            f"to={target}: {folder / ROSTER} has {', '.join(sorted(edges)) or 'no edges'}"
        )
    file = folder / "asked" / f"{quote(client, safe='')}.json"
    atomic_write(file, json.dumps({"client": client, "target": target}))
    return file


def _contributors(place: Path) -> list[str]:
    """Clients of which something counts, of the books in a folder."""
    books = Books(place, PrototypeMemory(1))
    try:
        books.open()
        heard, gone = (
            {client for client, _ in books.table(name)} for name in ("contributors", "forgotten")
        )
        return sorted(heard - gone)
    finally:
        books.close()


def save_holding(
    path: Path, memory: PrototypeMemory, names: Any, **metadata: Any
) -> None:  # fmt: skip
    """Write a memory with what is to be known beside it, the whole file or nothing."""
    header = {
        "format": _ROW,
        "memory": json.dumps(description_of(memory)),
        "names": json.dumps({str(key): name for key, name in names.items()}),
        **{key: json.dumps(value) for key, value in metadata.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: array.contiguous() for name, array in arrays_of(memory).items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_holding(path: Path) -> tuple[Holding, dict[str, Any]]:
    """What :func:`save_holding` wrote, and the metadata.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged: {error}; it is written anew after a round") from error
    if header.get("format") != _ROW:
        raise DataError(f"{path} is no row of an edge (format {header.get('format')!r:.80})")
    values = {key: json.loads(text) for key, text in header.items() if key != "format"}
    memory = PrototypeMemory.from_parts(PrototypeMemory.described(values.pop("memory")), tensors)
    names = {int(key): name for key, name in values.pop("names").items()}
    withdrawals, erasures = len(values.get("withdrawn", ())), values.get("erasures", 0)
    return Holding(memory, names, withdrawals, erasures), values


def tombstones_of(values: dict[str, Any]) -> list[Tombstone]:
    """Who was withdrawn, of the metadata of a row."""
    return [
        Tombstone(**one | {key: tuple(one[key]) for key in ("lives", "locks")})
        for one in values["withdrawn"]
    ]
