"""The folder of an edge: what its server leaves there for the node that speaks to the root.

The server of an edge and its node at the root are processes of their own. The server writes
``row.safetensors`` after each round; the node numbers it and sends it, and notes the numbers in
``above.json``.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from protocl.errors import DataError
from protocl.federation.edges.door import ROSTER, EdgeDoor, own_key, read_roster
from protocl.federation.edges.row import Holding, RowState
from protocl.federation.exactly_once.server import Tombstone
from protocl.federation.secure.protocol.identity import public_key
from protocl.federation.server.state import same_statistics
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.wire.messages import Received
from protocl.io.atomic import atomic_path, atomic_write
from protocl.memory import PrototypeMemory
from protocl.memory.file import arrays_of, description_of

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
        """Of what the edge's node told the root, without any statistics."""
        return self.path / "above.json"

    def leave(self, strategy: FederatedPrototypes) -> None:
        """Leave what the edge has for the root, and take the root's certificates into the books."""
        strategy.take_receipts(told_above(self.above).receipts)
        withdrawn = [tombstone._asdict() for tombstone in strategy.withdrawn]
        save_holding(
            self.row, strategy.row, strategy.merged.names, withdrawn=withdrawn, edge=self.name,
            erasures=strategy.merged.erasures, entries=strategy.entries,
            stamp=self._stamp_of(strategy.row),
        )  # fmt: skip

    def _stamp_of(self, memory: PrototypeMemory) -> str:
        """The stamp of the row that is there where it holds the same bits; else another one."""
        try:
            last, _ = load_holding(self.row)
        except DataError:  # absent, or damaged, and written anew
            return secrets.token_hex(8)
        return last.stamp if same_statistics(last.memory, memory) else secrets.token_hex(8)

    def release(self, client: str) -> Path:
        """Where the release of a client that left is written, and overwritten by the next one."""
        return self.path / "releases" / f"{quote(client, safe='')}.release.json"


def leave_anew(folder: Path, strategy: FederatedPrototypes, *, known: bool) -> list[str]:
    """Write the row of an edge anew whose server is not at work; what else to know, in words.

    Args:
        folder: of the server.
        strategy: whose books they are.
        known: whether it can make the row; else that is removed.
    """
    edge = EdgeFolder(folder)
    if not edge.row.exists():
        return []
    _, values = load_holding(edge.row)
    if not known:
        edge.row.unlink()
        return [
            f"{edge.row} is removed; start the server, which writes it anew, and tells the root"
        ]
    EdgeFolder(folder, values["edge"]).leave(strategy)
    return ["the root is as before until it asks this edge again"]


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
    try:
        marks = len(values["withdrawn"]), *(values[key] for key in ("erasures", "stamp", "entries"))
    except KeyError as error:
        raise DataError(f"{path} has no {error}; it is written anew after a round") from error
    return Holding(memory, names, *marks), values


def told_above(path: Path) -> RowState:
    """What an edge's node told the root, of ``above.json``; nothing where there is no file.

    Raises:
        DataError: the file is damaged.
    """
    if not path.exists():
        return RowState()
    try:
        return RowState.read(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged: {error!r:.200}; remove it, and the next row replaces all before"
        ) from error


def tombstones_of(values: dict[str, Any]) -> list[Tombstone]:
    """Who was withdrawn, of the metadata of a row."""
    return [
        Tombstone(**one | {key: tuple(one[key]) for key in ("lives", "locks")})
        for one in values["withdrawn"]
    ]
