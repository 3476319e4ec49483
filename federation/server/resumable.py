"""What strategies have in common that another process can take up after any round."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from protocl.federation.books.books import Books, InUseError
from protocl.federation.books.database import StillReadError, named
from protocl.federation.books.noting import noted
from protocl.federation.books.requests import Requests, Wanted
from protocl.federation.exactly_once.server import Tombstone
from protocl.federation.server.aggregation import Seconds
from protocl.federation.server.state import MergedMemory
from protocl.federation.server.tombstones import TombstoneFile
from protocl.federation.wire.relayed_grids import MeteredGrid
from protocl.federation.wire.traffic import Traffic
from protocl.io.checkpoint import CheckpointFolder
from protocl.memory import PrototypeMemory
from protocl.metrics.confusion import Confusion

logger = logging.getLogger(__name__)


class LastingStrategy(Strategy):
    """A Flower strategy that measures every message and can be continued from its checkpoints.

    Args:
        checkpoints: folder of the checkpoints; None for none.

    Attributes:
        round: number of rounds finished, also by an earlier process.
        traffic: bytes of every message.
        measuring: seconds that counting them took.
    """

    def __init__(self, checkpoints: Path | None) -> None:
        self.round = 0
        self.traffic = Traffic()
        self.measuring = 0.0
        self._first = 0
        self._checkpoints = None if checkpoints is None else CheckpointFolder(checkpoints)

    @property
    @abstractmethod
    def memory(self) -> PrototypeMemory:
        """The merged memory; read it, do not change it."""

    @abstractmethod
    def outcome(self, number: int) -> Mapping[str, Any]:
        """What round ``number`` brought."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """All that a checkpoint holds besides rounds and traffic."""

    @abstractmethod
    def _take_up(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`_state` gave."""

    def resume(self) -> bool:
        """Continue from the newest checkpoint that is whole.

        Returns:
            False where there is none.

        Raises:
            ConfigError, ValueError, FingerprintError: it belongs to a federation of another kind.
        """
        state = self._checkpoints and self._checkpoints.load_newest({})
        if not state:
            return False
        self._take_up(state)
        for row in state["traffic"]:
            self.traffic.add(*row)
        self.round = state["round"]
        return True

    def start(self, grid: Grid, *arguments: Any, **options: Any) -> Result:
        """Run rounds, as every Flower strategy does, and measure every message.

        Raises:
            AllFailedError: all clients failed in all rounds.
        """
        metered = MeteredGrid(grid, self.traffic, lets_go=True)
        result = super().start(metered, *arguments, **options)
        self.measuring += metered.seconds
        metered.require_answers()
        return result

    def _begin(self, server_round: int) -> None:
        """Count a round on from those of earlier runs; Flower begins with 1 each time."""
        if server_round == 1:
            self._first = self.round
        self.round = self._first + server_round

    def _save(self, finished: int) -> None:
        """Write a checkpoint, after ``finished`` whole rounds."""
        if self._checkpoints is None:
            return
        state = {"round": finished, "traffic": list(self.traffic), **self._state()}
        self._checkpoints.save(self.round, state, {})


class KeepsBooks(LastingStrategy):
    """A strategy whose state is a merged memory and its books, of which a round writes its part.

    Args:
        merged: the server's state.
        folder: of the books; None to keep them in memory.

    Attributes (and those of :class:`LastingStrategy`):
        merged: the server's state; its ledger, its names.
        seconds: where the server's own time went.
        evaluations: round -> confusion over the clients' own test data.
        failed_evaluations: round -> whose evaluations do not count, and why.
        withdrawn: who was forgotten or left, in the order in which it happened.
        requests: of operators, where the books are on disk.
        rows: whether this is a root, whose clients are edges.
    """

    def __init__(self, merged: MergedMemory, folder: Path | None) -> None:
        super().__init__(folder)
        self.merged = merged
        self.seconds = Seconds()
        self.evaluations: dict[int, Confusion] = {}
        self.failed_evaluations: dict[int, list[str]] = {}
        self.withdrawn: list[Tombstone] = []
        self._tombstones = None if folder is None else TombstoneFile(folder)
        self._books = None if folder is None else Books(folder, merged.empty)
        self.requests = None if folder is None else Requests(folder)
        self._begun = False
        self.rows = False

    @property
    def entries(self) -> int:
        """Rows of the ledger on disk, certificates included; 0 without books."""
        return self._books.entries if self._books is not None and self._begun else 0

    @property
    def certificates(self) -> list[dict[str, Any]]:
        """What was forgotten, by the books, oldest first; none without books."""
        return self._books.certificates() if self._books is not None and self._begun else []

    def take_receipts(self, receipts: Iterable[dict[str, Any]]) -> None:
        """Write certificates of the level above into the books, each once."""
        known = {one["row"] for one in self.certificates if "level" in one}
        self.merged.receipts += [one for one in receipts if one["row"] not in known]
        if self.merged.receipts and self._begun:
            self._save_round()

    def writing(self) -> AbstractContextManager[None]:
        """Keep others from writing the books meanwhile."""
        return nullcontext() if self._books is None else self._books.held()

    # -- forgetting -------------------------------------------------------------------------

    def forget_client(self, client: str) -> None:
        """Remove a client's contribution exactly; see :meth:`MergedMemory.forget_client`.

        It can be called again where it was stopped on the way. The client stays away where the
        server goes on from an older checkpoint than the one of now, for who was forgotten is also
        written to a file of its own beside them.
        """
        self._withdraw(self.merged.forget_client(client))

    def release_client(self, client: str, target: str) -> None:
        """Remove a client that goes to another edge; it may come back with a release from there.

        Raises:
            ValueError: contributions are not kept, or the client was forgotten.
            KeyError: the client contributed nothing.
        """
        known = self.merged.known
        if client not in known.left:
            if client in known.forgotten:
                raise ValueError(f"client '{client}' was forgotten, and can go nowhere")
            self.merged.forget_client(client)
        self._withdraw(known.leave(client, target))

    def _withdraw(self, tombstone: Tombstone) -> None:
        if tombstone not in self.withdrawn:
            self.withdrawn.append(tombstone)
        if self._tombstones is not None and tombstone not in self._tombstones:
            self._tombstones.add(tombstone)
        self._save(self.round)

    def forget_classes(self, classes: int | Iterable[int] | Tensor) -> None:
        """Remove classes exactly; see :meth:`MergedMemory.forget_classes`."""
        gone = self.merged.forget_classes(classes)
        if self._tombstones is not None:
            self._tombstones.add_classes(gone)
        self._save(self.round)

    def forget(self, wanted: Wanted) -> str:
        """Forget a client, an edge or a class, or let a client go; what was done, in words.

        Raises:
            KeyError: there is none of that name.
            ValueError: it cannot be forgotten; see :class:`.MergedMemory`.
        """
        if wanted.kind != "class" and (wanted.kind == "edge") != self.rows:
            why = (
                "these are the books of a root, which knows edges only; forget a client at its "
                "edge, or all clients of an edge by edge=NAME"
            )
            why = why if self.rows else "these books are of clients; give client=NAME"
            raise ValueError(f"{wanted.kind}={wanted.name}: {why}")
        before = self.merged.memory.total  # of all, whatever a rule makes of them
        if wanted.kind == "class":
            self.forget_classes(self.merged.class_of(wanted.name))
        elif wanted.kind == "move":
            self.release_client(wanted.name, wanted.to)
        else:
            self.forget_client(wanted.name)
        gone = before - self.merged.memory.total
        done = f"let client {wanted.name} go to {wanted.to}"
        done = done if wanted.to else f"forgot {wanted.kind} {wanted.name}"
        return f"{done}: {gone} samples less, {before - gone} remain"

    def heed(self) -> None:
        """Do what operators asked for meanwhile (:class:`.Requests`)."""
        requests = () if self.requests is None else self.requests.waiting()
        for name, wanted in list(requests):
            assert self.requests is not None
            try:
                text, done = self.forget(wanted), True
            except (KeyError, ValueError, StillReadError) as error:
                text, done = str(error.args[0]), False
            logger.info("asked to %s: %s", wanted, text)
            self.requests.answer(name, text, done=done)

    # -- books ------------------------------------------------------------------------------

    def resume(self) -> bool:
        """See :class:`LastingStrategy`.

        Checkpoints of earlier versions are read, and books take their place.
        """
        if self._books is None:
            return False
        if not self._books.exist:
            return self._migrate()
        with named(self._books.path):
            unread = self.merged.take_up(self._books)
            self._note_evaluations(self._books)
            self._books.take_up_traffic(self.traffic)
        self.round, self._begun = self._books.round, True
        self._bury()
        if unread or self.merged.unwritten:
            # Of before something was forgotten, by a backup or by whoever was stopped on the way.
            with suppress(InUseError), self._books.held():
                self._save_round()
        self._discard_checkpoints()  # by whoever was stopped before it
        return True

    def _migrate(self) -> bool:
        """Continue from a checkpoint of before there were books; False where there is none."""
        if not super().resume():
            return False
        self._save(self.round)
        self._discard_checkpoints()
        return True

    def _discard_checkpoints(self) -> None:
        """Remove those of before there were books, which hold what may have to be forgotten."""
        assert self._checkpoints is not None
        self._checkpoints.discard()

    def _state(self) -> dict[str, Any]:
        return {
            "merged": self.merged.state(),
            "evaluations": {key: value.to_dict() for key, value in self.evaluations.items()},
            "failed_evaluations": self.failed_evaluations,
        }

    def _take_up(self, state: Mapping[str, Any]) -> None:
        self.merged.restore(state["merged"])
        self._bury()
        self.evaluations = {
            key: Confusion.from_dict(value) for key, value in state["evaluations"].items()
        }
        # Checkpoints of before these were kept have none of them.
        self.failed_evaluations = state.get("failed_evaluations", {})

    def _bury(self) -> None:
        if self._tombstones is not None:
            self.withdrawn = list(self._tombstones)
            self.merged.bury(self.withdrawn)
            self.merged.bury_classes(self._tombstones.classes)

    def _note_evaluations(self, books: Books) -> None:
        """Take up evaluations, and note those to come."""
        self.evaluations = {int(n): Confusion.from_dict(v) for n, v in books.table("evaluations")}
        self.failed_evaluations = {int(n): v for n, v in books.table("failed_evaluations")}
        self.evaluations = noted(self.evaluations)
        self.failed_evaluations = noted(self.failed_evaluations)

    def _save_round(self) -> None:
        """Save, and go on where somebody who reads is in the way of what is to be destroyed."""
        try:
            self._save(self.round)
        except StillReadError as error:
            logger.warning("%s; it is tried again after the next round", error)

    def _save(self, finished: int) -> None:
        start = time.perf_counter()
        if self._books is not None:
            self._write(self._books, finished)
        self.seconds.save += time.perf_counter() - start

    def _write(self, books: Books, finished: int) -> None:
        if not self._begun:
            self.merged.keep_in(books)
            self.evaluations = noted(self.evaluations)
            self.failed_evaluations = noted(self.failed_evaluations)
            self._begun = True
        account = self.merged.account({
            "evaluations": self.evaluations, "failed_evaluations": self.failed_evaluations,
        })  # fmt: skip
        plain = getattr(self, "merge", None) is None and getattr(self, "estimate", None) is None
        meta = {"round": finished, "plain": plain, "rows": self.rows}
        books.write(account, self.traffic, meta, self.merged.without_forgotten)
