"""The server's state: the sum of all contributions accepted, each exactly once.

Nothing here knows of Flower. Messages may be lost, repeated, late or reordered, clients and server
may die at any moment: the merged memory stays the exact sum over the contributions in the ledger.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from protocl.federation.ledger import Entry, Ledger
from protocl.federation.messages import Contribution, RejectedError
from protocl.memory import PrototypeMemory


class MergedMemory:
    """Merges contributions and remembers which.

    A client numbers its contributions within a random epoch, which lives as long as its state on
    disk, and repeats each until the server has settled it. Hence ``(epoch, seq)`` tells a repeated
    contribution from a new one even where a restarted node comes back under another node id.

    Args:
        empty: memory without samples that all contributions must fit.
        keep_contributions: keep each client's sum besides the merged one. Needed to forget a
            client and to take a client back that lost its state; costs as much memory as all
            clients together hold.

    Attributes:
        memory: the merged memory.
        ledger: what was accepted from whom, and what was not.
        names: class id -> name, where classes are known by name.
        wants_full: clients whose next contribution must be their full state.
    """

    def __init__(self, empty: PrototypeMemory, *, keep_contributions: bool = True) -> None:
        self.memory = empty.empty_like()
        self.keep_contributions = keep_contributions
        self.ledger = Ledger()
        self.names: dict[int, str] = {}
        self.wants_full: set[str] = set()
        self._parts: dict[str, PrototypeMemory] = {}
        self._contributors: set[str] = set()
        self._settled: dict[str, int] = {}
        self._owners: dict[str, str] = {}
        self._lives: dict[str, list[str]] = {}
        self._forgotten: set[str] = set()
        self._forgotten_classes: set[int] = set()

    # -- what arrives -----------------------------------------------------------------------

    def accept(
        self, contribution: Contribution, *, client: str, round_number: int = 0, size: int = 0
    ) -> bool:
        """Merge a contribution, once.

        Args:
            contribution: checked by :func:`protocl.federation.messages.decode`.
            client: who sent it.
            round_number: for the ledger.
            size: bytes of it, for the ledger.

        Returns:
            False if it was merged before.

        Raises:
            RejectedError: it may not be merged; the merged memory is as it was.
        """
        client = self._owners.get(contribution.epoch, client)
        entry = Entry(
            round_number, client, "merged", bytes=size, epoch=contribution.epoch,
            seq=contribution.seq, kind=contribution.kind,
        )  # fmt: skip
        if contribution.seq <= self._settled.get(contribution.epoch, 0):
            self.ledger.add(replace(entry, outcome="duplicate"))
            return False
        self._require_sequence(contribution, client)
        memory = self._without_forgotten(contribution.memory)
        self._merge(memory, client, contribution.kind == "full")
        if contribution.kind == "full":
            self._close_epochs(client)
        self._own(contribution.epoch, client)
        self._settled[contribution.epoch] = contribution.seq
        self.wants_full.discard(client)
        self._contributors.add(client)
        self.names.update(contribution.names)
        self.ledger.add(
            replace(
                entry,
                classes=tuple(memory.classes.tolist()),
                counts=tuple(memory.counts.tolist()),
            )
        )
        return True

    def refuse(
        self, error: RejectedError, *, client: str, round_number: int = 0, size: int = 0,
        epoch: str = "", seq: int = 0,
    ) -> None:  # fmt: skip
        """Note a rejected contribution, and settle it so that it is not sent again.

        A gap in the numbers stays open: the full state that will be asked for fills it.
        """
        client = self._owners.get(epoch, client)
        self.ledger.add(
            Entry(round_number, client, "rejected", bytes=size, epoch=epoch, seq=seq,
                  reason=f"{error.reason}: {error}")
        )  # fmt: skip
        if error.reason != "sequence" and epoch:
            self._own(epoch, client)
            self._settled[epoch] = max(self._settled.get(epoch, 0), seq)

    def settled(self, epoch: str) -> int:
        """Number of the last contribution of an epoch that need not be sent again; 0 for none."""
        return self._settled.get(epoch, 0)

    def settled_of(self, client: str) -> tuple[str, int]:
        """The client's present epoch and the number settled in it; ``("", 0)`` if unknown."""
        lives = self._lives.get(client)
        return (lives[-1], self._settled[lives[-1]]) if lives else ("", 0)

    # -- unlearning -------------------------------------------------------------------------

    def forget_client(self, client: str) -> None:
        """Remove all that ``client`` contributed and accept nothing more from it.

        In fixed point the merged memory is, bit for bit, what it would be if the client had never
        been heard; in floating point up to rounding near 2^-104.

        Raises:
            ValueError: contributions are not kept.
            KeyError: the client contributed nothing.
        """
        if not self.keep_contributions:
            raise ValueError(
                "a client can be forgotten only where contributions are kept; "
                "start the federation with keep_contributions=true"
            )
        if client not in self._parts:
            known = ", ".join(sorted(self._parts)[:10])
            raise KeyError(f"client '{client}' contributed nothing; clients are {known}")
        self.memory.subtract(self._parts.pop(client))
        self._forgotten.add(client)
        self.ledger.forget(client)

    def forget_classes(self, classes: Iterable[int]) -> None:
        """Remove classes from all contributions and leave them out of all to come.

        Raises:
            KeyError: a class is not in the memory.
            ValueError: the level is ``shared``, whose moment cannot be split by class.
        """
        gone = list(classes)
        self.memory.forget(gone)
        for client, part in self._parts.items():
            self._parts[client] = part.copy().forget([c for c in gone if c in part])
        self._forgotten_classes.update(gone)
        self.ledger.forget_classes(gone)
        for class_id in gone:
            self.names.pop(class_id, None)

    def contribution_of(self, client: str) -> PrototypeMemory:
        """A copy of the sum of what ``client`` contributed; KeyError if there is none."""
        return self._parts[client].copy()

    @property
    def clients(self) -> list[str]:
        """Clients that contributed and were not forgotten, sorted."""
        return sorted(self._contributors - self._forgotten)

    # -- checkpoints ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, in a form that :mod:`protocl.checkpoint` saves."""
        return {name: value for name, value in vars(self).items() if name != "ledger"} | {
            "ledger": list(self.ledger)
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            ValueError, FingerprintError: it belongs to a federation of other statistics.
        """
        self.memory._require_compatible(state["memory"])
        vars(self).update(state | {"ledger": Ledger(state["ledger"])})

    # -- parts ------------------------------------------------------------------------------

    def _require_sequence(self, contribution: Contribution, client: str) -> None:
        if client in self._forgotten:
            raise RejectedError("forgotten", f"client '{client}' was forgotten")
        if contribution.kind == "full":
            if client in self._contributors and not self.keep_contributions:
                raise RejectedError(
                    "sequence",
                    f"client '{client}' sends its full state again, which cannot replace what it "
                    "contributed: contributions are not kept",
                )
            return
        expected = self._settled.get(contribution.epoch, 0) + 1
        if expected == 1 or contribution.seq != expected:
            self.wants_full.add(client)
            raise RejectedError(
                "sequence",
                f"delta {contribution.seq} of client '{client}' does not follow what is settled "
                f"({expected - 1}); its full state is asked for",
            )

    def _own(self, epoch: str, client: str) -> None:
        if epoch not in self._owners:
            self._owners[epoch] = client
            self._lives.setdefault(client, []).append(epoch)

    def _close_epochs(self, client: str) -> None:
        """Settle all that earlier lives of a client could still send; it is replaced now."""
        for epoch in self._lives.get(client, ()):
            self._settled[epoch] = sys.maxsize

    def _without_forgotten(self, memory: PrototypeMemory) -> PrototypeMemory:
        if not self._forgotten_classes:
            return memory
        ids = memory.get_buffer("class_ids")
        kept = [class_id for class_id in ids.tolist() if class_id not in self._forgotten_classes]
        return memory if len(kept) == len(ids) else memory.subset(kept)

    def _merge(self, memory: PrototypeMemory, client: str, replaces: bool) -> None:
        before = self._parts.get(client) if self.keep_contributions else None
        try:
            if before is None:
                self.memory.merge(memory)
                part = memory
            elif replaces:
                self.memory = (self.memory - before).merge(memory)
                part = memory
            else:
                part = before + memory
                self.memory.merge(memory)
        except OverflowError as error:
            raise RejectedError("overflow", str(error)) from error
        if self.keep_contributions:
            self._parts[client] = part


def same_statistics(a: PrototypeMemory, b: PrototypeMemory) -> bool:
    """Whether two memories hold the same bits."""
    mine, theirs = dict(a.named_buffers(recurse=False)), dict(b.named_buffers(recurse=False))
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )
