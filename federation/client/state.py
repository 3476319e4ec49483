"""What a client must not lose: its memory, and what the server has not yet acknowledged.

Flower keeps a client's ``Context`` only as long as the process and the run live, and delivers
nothing twice. So the state is the client's own, on its disk, and changes before anything is sent.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protocl.errors import DataError
from protocl.federation.server.clients import Settled
from protocl.federation.wire.messages import Contribution, Kind
from protocl.io.atomic import atomic_path
from protocl.memory import PrototypeMemory
from protocl.memory.file import arrays_of, description_of

_FORMATS = ("protocl-client-1", "protocl-client-2")
_MAX_PENDING = 8
_MAX_LIVES = 16  # of which a server that was set back knows one, it may be hoped


@dataclass
class ClientState:
    """The client's side of the exchange.

    Attributes:
        memory: statistics of all samples counted so far.
        counted: number of data chunks counted so far.
        epoch: random text, drawn once; a state that is lost is followed by another epoch.
        seq: number of the last contribution made.
        pending: contributions that the server has not acknowledged, oldest first.
        names: class id -> name, where classes are known by name.
        replaces: the epochs before this one, where this client began anew, newest last.
        server: the server's state that was heard of last.
        acknowledged: the highest number that it had settled.
    """

    memory: PrototypeMemory
    counted: int = 0
    epoch: str = field(default_factory=lambda: secrets.token_hex(16))
    seq: int = 0
    pending: list[Contribution] = field(default_factory=list)
    names: Mapping[int, str] = field(default_factory=dict)
    replaces: tuple[str, ...] = ()
    server: str = ""
    acknowledged: int = 0

    def hear(self, server: str, settled: Settled) -> None:
        """Drop what the server has settled, and notice if it or this client was set back.

        Args:
            server: names the server's state; another one after each restore.
            settled: with this client, as far as the server knows.
        """
        known = settled.epoch == self.epoch and settled.seq <= self.seq
        if known and settled.seq >= self.acknowledged:
            self._drop(settled)
        elif known and server != self.server:
            self.acknowledged = settled.seq
            self.send_everything()
        elif not known and (settled.epoch == self.epoch or (settled.epoch and self.seq)):
            # The server has heard more than this state knows of, or of another life.
            self.begin_anew()
        # Else the client is new to the server, or its request was overtaken by a later one.
        self.server = server

    def _drop(self, settled: Settled) -> None:
        """Drop what is settled; begin anew where it is something else under the same number."""
        self.acknowledged = settled.seq
        self.pending = [c for c in self.pending if c.seq > settled.seq]
        unsettled = sum(c.memory.total for c in self.pending)
        replaced = any(c.kind == "full" for c in self.pending)
        if not replaced and settled.samples != self.memory.total - unsettled:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Send the full state under another epoch, which replaces all that was sent before."""
        self.replaces = (*self.replaces, self.epoch)[-_MAX_LIVES:]
        self.epoch = secrets.token_hex(16)
        self.seq, self.acknowledged, self.pending = 0, 0, []
        self.send_everything()

    def contribute(self, delta: PrototypeMemory, counted: int) -> None:
        """Add new samples to the memory and to what is to be sent.

        Args:
            delta: statistics of samples not counted before.
            counted: number of chunks counted with them.
        """
        if len(delta):
            self.memory.merge(delta)
            # The first contribution replaces whatever an earlier life of this client sent.
            if self.seq == 0 or len(self.pending) >= _MAX_PENDING:
                self.send_everything()
            else:
                self._append(delta, "delta")
        self.counted = counted

    def send_everything(self) -> None:
        """Send the full state in place of what is pending."""
        newest = self.pending[-1] if self.pending else None
        if len(self.memory) and (newest is None or newest.kind != "full"):
            self.pending = []
            self._append(self.memory.copy(), "full")

    def _append(self, memory: PrototypeMemory, kind: Kind) -> None:
        self.seq += 1
        names = {int(c): self.names[int(c)] for c in memory.classes} if self.names else {}
        self.pending.append(Contribution(memory, self.epoch, self.seq, kind, names, self.replaces))


class StateStore(Protocol):
    """A store of the states of clients."""

    def open(self, client: str, empty: PrototypeMemory) -> AbstractContextManager[ClientState]:
        """The state of ``client``, for a ``with`` block that saves it when it ends well.

        Args:
            client: name of the client.
            empty: memory without samples, of which a new client starts.
        """


class StatesInProcess:
    """States of simulated clients, gone with the process."""

    def __init__(self) -> None:
        self._states: dict[str, ClientState] = {}

    @contextmanager
    def open(self, client: str, empty: PrototypeMemory) -> Iterator[ClientState]:
        """See :class:`StateStore`."""
        if client not in self._states:
            self._states[client] = ClientState(empty.empty_like())
        yield self._states[client]


class NoStates:
    """Every client begins anew with every message; for simulations of one round."""

    @contextmanager
    def open(self, client: str, empty: PrototypeMemory) -> Iterator[ClientState]:
        """See :class:`StateStore`."""
        yield ClientState(empty.empty_like())


class StatesOnDisk:
    """States on disk, a file for each client: one that is killed goes on where it was.

    Args:
        folder: made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def open(self, client: str, empty: PrototypeMemory) -> Iterator[ClientState]:
        """See :class:`StateStore`.

        Raises:
            DataError: the file is damaged, or holds statistics of another kind.
            FingerprintError: it was made with another backbone.
        """
        path = self.folder / f"{client}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        # A killed node may leave a process of its own behind that still answers a message.
        with FileLock(f"{path}.lock"):
            state = _load(path, empty) if path.exists() else ClientState(empty.empty_like())
            yield state
            _save(path, state)


def _save(path: Path, state: ClientState) -> None:
    memories = {"memory": state.memory} | {f"{c.seq}": c.memory for c in state.pending}
    tensors = {
        f"{key}/{name}": array.contiguous()
        for key, memory in memories.items()
        for name, array in arrays_of(memory).items()
    }
    header = {
        "format": _FORMATS[-1],
        "memory": json.dumps(description_of(state.memory)),
        "state": json.dumps(
            {
                "counted": state.counted,
                "epoch": state.epoch,
                "seq": state.seq,
                "pending": [[c.seq, c.kind] for c in state.pending],
                "names": {str(key): name for key, name in state.names.items()},
                "replaces": state.replaces,
                "server": state.server,
                "acknowledged": state.acknowledged,
            }
        ),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def _load(path: Path, empty: PrototypeMemory) -> ClientState:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is damaged: {error}; delete it and the client sends all its data again"
        ) from error
    if header.get("format") not in _FORMATS:
        raise DataError(f"{path} is not the state of a client (format {header.get('format')!r})")
    values = json.loads(header["state"])
    like = PrototypeMemory.described(json.loads(header["memory"]), feature_map=empty.feature_map)
    empty.require_compatible(like)
    memory = _memory(like, tensors, "memory")
    names = {int(key): name for key, name in values["names"].items()}
    state = ClientState(memory, values["counted"], values["epoch"], values["seq"], names=names)
    # Files of before these were kept have none of them.
    state.replaces = tuple(values.get("replaces", ()))
    state.server, state.acknowledged = values.get("server", ""), values.get("acknowledged", 0)
    for seq, kind in values["pending"]:
        part = _memory(like, tensors, str(seq))
        known = {int(c): names[int(c)] for c in part.classes} if names else {}
        state.pending.append(Contribution(part, state.epoch, seq, kind, known, state.replaces))
    return state


def _memory(like: PrototypeMemory, tensors: dict[str, Tensor], key: str) -> PrototypeMemory:
    own = {
        name.removeprefix(f"{key}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{key}/")
    }
    return PrototypeMemory.from_parts(like, own)
