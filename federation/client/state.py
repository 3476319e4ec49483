"""What a client must not lose: its memory, and what the server has not yet acknowledged.

Flower keeps a client's ``Context`` only as long as the process and the run live, and delivers
nothing twice. So the state is the client's own, on its disk, and changes before anything is sent.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protocl.errors import ConfigError, DataError
from protocl.federation.exactly_once.client import Life, Pending, Settled
from protocl.federation.exactly_once.release import Release
from protocl.federation.wire.messages import Contribution
from protocl.federation.wire.statistics import extremes, narrowest
from protocl.io.atomic import atomic_path
from protocl.memory import PrototypeMemory
from protocl.memory.file import arrays_of, description_of

RELEASE = ".release.json"
"""How the file beside a state ends that lets its client go to another edge."""

_FORMATS = ("protocl-client-1", "protocl-client-2", "protocl-client-3")


class Resting(NamedTuple):
    """Statistics without the module around them, which takes as many bytes as ten small classes.

    Attributes:
        like: a memory of their kind, which many share.
        parts: as :meth:`.PrototypeMemory.parts` gives them; of whole numbers the narrowest type.
        fingerprint, rounded: of the memory.
    """

    like: PrototypeMemory
    parts: dict[str, NDArray[Any]]
    fingerprint: str | None
    rounded: bool

    @classmethod
    def of(cls, memory: PrototypeMemory, like: PrototypeMemory) -> Resting:
        """What a memory holds."""
        parts = {name: _narrowed(part.cpu().numpy()) for name, part in memory.parts().items()}
        return cls(like, parts, memory.fingerprint, memory.rounded)

    def awake(self) -> PrototypeMemory:
        """A memory of its own."""
        wide = {
            name: torch.from_numpy(part if part.dtype == np.float64 else part.astype(np.int64))
            for name, part in self.parts.items()
        }
        memory = PrototypeMemory.from_parts(self.like, wide)
        memory.fingerprint, memory.rounded = self.fingerprint, self.rounded
        return memory


def _narrowed(part: NDArray[Any]) -> NDArray[Any]:
    """A copy."""
    if part.dtype == np.float64:
        return part.copy()
    return part.astype(narrowest(*map(int, extremes(part))))


@dataclass
class ClientState:
    """The client's side of the exchange.

    Attributes:
        memory: statistics of all samples counted so far.
        counted: number of data chunks counted so far.
        life: what is settled of them, and what is still to be sent.
        names: class id -> name, where classes are known by name.
        release: signed, of the edge that this client left; "" for none.
        withdraws: whether the server has not settled yet that something is taken back.
    """

    memory: PrototypeMemory
    counted: int = 0
    life: Life = field(default_factory=Life)
    names: Mapping[int, str] = field(default_factory=dict)
    withdraws: bool = False
    _statistics: Mapping[int, PrototypeMemory | Resting] = field(default_factory=dict)
    release: str = ""

    @property
    def pending(self) -> list[Contribution]:
        """Contributions that the server has not settled, oldest first."""
        return [self._labelled(pending) for pending in self.life.pending]

    def arrive(self, edge: str) -> None:
        """Come to an edge; see :meth:`.Life.arrive`.

        Raises:
            ConfigError: this client's samples are counted at another one, which has not released
                it, or not for this one.
        """
        release = Release.read(self.release)[0] if self.release else None
        if not self.life.arrive(edge, release):
            raise ConfigError(
                f"this client's samples are counted at edge '{self.life.edge}', not at '{edge}'; "
                f"to move it, protocl federate release FOLDER client=NAME to={edge} on the old "
                "edge, and put the file that it writes beside this client's state"
            )
        self._keep_pending()

    def hear(self, server: str, settled: Settled, prove: bool = True) -> None:
        """See :meth:`.Life.hear`."""
        self.life.hear(server, settled, prove)
        self.withdraws &= bool(self.life.pending)
        self._keep_pending()

    def contribute(self, delta: PrototypeMemory, counted: int) -> None:
        """Add new samples to the memory and to what is to be sent.

        Args:
            delta: statistics of samples not counted before.
            counted: number of chunks counted with them.
        """
        if len(delta):
            if any(one is self.memory for one in self._statistics.values()):
                self.memory = self.memory.copy()  # what is pending stays what it was
            self.memory.merge(delta)
            self.life.contribute(delta.total)
            self._keep_pending(delta)
        self.counted = counted

    def withdraw(self, statistics: PrototypeMemory) -> None:
        """Take samples back: the server forgets what it has of them, and keeps the rest.

        The next message holds all that remains, which the server checks as it checks everything,
        and takes in place of what it has; of that it then keeps nothing.

        Args:
            statistics: of the samples, of the kind of the client's memory; all of it to withdraw
                everything. Of a class at level ``shared`` they are those of its samples alone.

        Raises:
            ValueError: the client never contributed such samples.
        """
        self.memory = self.memory.copy().subtract(statistics)
        self.life.withdraw(statistics.total)
        self.withdraws = True
        self._keep_pending()

    def send_everything(self) -> None:
        """Send the full state in place of what is pending."""
        self.life.send_everything()
        self._keep_pending()

    def _keep_pending(self, delta: PrototypeMemory | None = None) -> None:
        """Keep the statistics of what is pending and of nothing else; of the newest ``delta``."""
        kept = {}
        for seq, kind, _ in self.life.pending:
            if seq in self._statistics:
                kept[seq] = self._statistics[seq]
            else:
                kept[seq] = delta if delta is not None and kind == "delta" else self.memory
        self._statistics = kept

    def at_rest(self, empty: PrototypeMemory) -> tuple[ClientState, Resting]:
        """The same state with ``empty`` for a memory, and that memory.

        Statistics that are pending are mostly settled before anybody looks at them again.
        """
        memory = Resting.of(self.memory, empty)
        pending = {
            seq: one if isinstance(one, Resting)
            else memory if one is self.memory else Resting.of(one, empty)
            for seq, one in self._statistics.items()
        }  # fmt: skip
        resting = copy(self)  # with what a user's client class may have put into it
        resting.memory, resting._statistics = empty, pending
        return resting, memory

    def _labelled(self, pending: Pending) -> Contribution:
        memory, life = self._statistics[pending.seq], self.life
        memory = memory.awake() if isinstance(memory, Resting) else memory
        names = {int(c): self.names[int(c)] for c in memory.classes} if self.names else {}
        return Contribution(
            memory, life.epoch, pending.seq, pending.kind, names, life.replaces, life.shares,
            life.secret if life.proves else "",
            self.release if life.proves and life.moves else "",
            withdraws=self.withdraws and pending.kind == "full",
        )  # fmt: skip


class StateStore(Protocol):
    """A store of the states of clients."""

    def open(self, client: str, empty: PrototypeMemory) -> AbstractContextManager[ClientState]:
        """The state of ``client``, for a ``with`` block that saves it when it ends well.

        Args:
            client: name of the client.
            empty: memory without samples, of which a new client starts.
        """


class StatesInProcess:
    """States of simulated clients, gone with the process.

    Args:
        awake: how many are kept as they are; of those beyond, the statistics are arrays alone
            between two messages, a third of the bytes for a sixth more of a round's time.
    """

    def __init__(self, awake: int = 1000) -> None:
        self._awake = awake
        self._states: dict[str, tuple[ClientState, Resting | None]] = {}

    @contextmanager
    def open(self, client: str, empty: PrototypeMemory) -> Iterator[ClientState]:
        """See :class:`StateStore`; what a block did that raises is kept as well."""
        if client not in self._states:
            rests = len(self._states) >= self._awake
            new = ClientState(empty.empty_like())
            self._states[client] = new.at_rest(empty) if rests else (new, None)
        state, memory = self._states[client]
        if memory is None:
            yield state
            return
        state = copy(state)
        state.memory = memory.awake()
        try:
            yield state
        finally:
            self._states[client] = state.at_rest(empty)


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
            release = self.folder / f"{client}{RELEASE}"
            state.release = release.read_text(encoding="utf-8") if release.exists() else ""
            yield state
            _save(path, state)


def _save(path: Path, state: ClientState) -> None:
    # Safetensors writes no bytes under two names.
    memories = {"memory": state.memory} | {
        f"{c.seq}": c.memory.copy() if c.memory is state.memory else c.memory for c in state.pending
    }
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
                "withdraws": state.withdraws,
                "names": {str(key): name for key, name in state.names.items()},
                **asdict(state.life),
                "pending": [[p.seq, p.kind] for p in state.life.pending],
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
    parts = {seq: _memory(like, tensors, str(seq)) for seq, _ in values["pending"]}
    life = Life(
        values["epoch"],
        values["seq"],
        # Files of before these were kept have none of them.
        tuple(values.get("replaces", ())),
        tuple(values.get("shares", ())),
        memory.total,
        [Pending(seq, kind, parts[seq].total) for seq, kind in values["pending"]],
        values.get("server", ""),
        values.get("acknowledged", 0),
        values.get("secret") or secrets.token_hex(16),
        edge=values.get("edge", ""),
        moves=values.get("moves", 0),
    )
    return ClientState(memory, values["counted"], life, names, bool(values.get("withdraws")), parts)


def _memory(like: PrototypeMemory, tensors: dict[str, Tensor], key: str) -> PrototypeMemory:
    own = {
        name.removeprefix(f"{key}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{key}/")
    }
    return PrototypeMemory.from_parts(like, own)
