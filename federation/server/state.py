"""The server's state: the sum of all contributions accepted, each exactly once.

Nothing here knows of Flower. Messages may be lost, repeated, late or reordered, clients and server
may die at any moment: the merged memory stays the exact sum over the contributions in the ledger.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from protocl.federation.books.writing import digest_of
from protocl.federation.exactly_once.server import name_of_life
from protocl.federation.server.forgetting import Forgets
from protocl.federation.wire.codec import pack_exactly
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, Received
from protocl.federation.wire.replies import storable
from protocl.federation.wire.statistics import Packed
from protocl.federation.wire.traffic import Entry
from protocl.federation.wire.validation import (
    RejectedError,
    require_few_classes,
    require_share,
    until,
)
from protocl.memory import PrototypeMemory

logger = logging.getLogger(__name__)


class MergedMemory(Forgets):
    """Merges contributions and remembers which.

    Three parts: what is known of the clients decides what is to be merged
    (:class:`.KnownClients`), the contributions are kept, and their sum is the memory. Every change
    of them happens in all of them, or, whatever fails and whenever, in none.

    Args:
        empty: memory without samples that all contributions must fit.
        keep_contributions: keep what each client sent besides the merged sum. Needed to forget a
            client and to take a client back that lost its state; costs the bytes that all clients
            sent: on disk where there are books, else in memory, and there of a client that sends
            often no more than those of some contributions.
        limits: of the classes and the sums of one client, and of the classes of all.
        means: groups of each class, which have ids of their own (:class:`.SubSamples`).

    Attributes: see :class:`.KeptState`.
    """

    def __init__(
        self,
        empty: PrototypeMemory,
        *,
        keep_contributions: bool = True,
        limits: Limits | None = None,
        means: int = 1,
    ) -> None:
        super().__init__(empty, keep=keep_contributions, means=means)
        self._limits = limits or Limits()
        self._last_ids: NDArray[np.int64] | None = None
        self._last_listed: tuple[int, ...] = ()

    # -- what arrives -----------------------------------------------------------------------

    def accept(
        self,
        contribution: Contribution | Received,
        *,
        client: str,
        round_number: int = 0,
        size: int = 0,
    ) -> bool:
        """Merge a contribution, once.

        Args:
            contribution: checked by :class:`.MessageReader`; what was received is not copied.
            client: who sent it.
            round_number: for the ledger.
            size: bytes of it, for the ledger.

        Returns:
            False if it was merged before.

        Raises:
            RejectedError: it may not be merged; the merged memory is as it was.
        """
        node, known = client, self.known
        verdict = known.judge(
            contribution, node, replaceable=self.keep_contributions, now=round_number
        )
        client = verdict.client
        labels = (size, name_of_life(contribution.epoch), contribution.seq, contribution.kind)
        if verdict.outcome == "refuse":
            raise RejectedError(verdict.reason, verdict.text)
        if verdict.outcome == "duplicate":
            known.repeat(contribution, client, node, round_number)
            self.ledger.add(Entry(round_number, client, "duplicate", (), (), *labels))
            return False
        whole = self._packed(contribution)
        packed = self.without_forgotten(whole)
        self._require_room(packed, client, contribution.kind == "full")
        merged = self._listed(packed.class_ids), tuple(packed.counts.tolist())
        samples = int(whole.counts.sum())
        undo = self._undo_of(client, contribution.names, known.places(contribution, client, node))
        before = digest_of(self.memory) if contribution.withdraws else b""
        try:
            self._merge(packed, client, contribution.kind == "full")
            lost = known.settle(contribution, client, node, samples, round_number)
            self.names.update(contribution.names)
            entry = Entry(round_number, client, "merged", *merged, *labels)
            self._enter(entry, lost, withdraws=contribution.withdraws)
            if contribution.withdraws:
                row: tuple[str | int, ...] = ()
                if contribution.row:
                    row = (client, name_of_life(contribution.epoch), contribution.seq)
                self._note_forgetting(f"what client {client} withdrew", before, *row)
        except BaseException:
            undo()
            raise
        return True

    def _enter(self, entry: Entry, lost: int, *, withdraws: bool) -> None:
        """Enter what was merged in the ledger; a full state in place of what was before."""
        if withdraws:
            self.ledger.forget(entry.client)
            entry = entry._replace(
                reason=f"withdrawn by the client: {lost}" if lost else "withdrawn"
            )
        elif entry.kind == "full":
            self.ledger.replace(entry.client)
        if lost and not withdraws:
            entry = entry._replace(reason=f"lost with a restored client: {lost}")
            logger.warning("client %s lost with a restored client: %d samples", entry.client, lost)
        self.ledger.add(entry)

    def refuse(
        self, error: RejectedError, *, client: str, round_number: int = 0, size: int = 0,
        epoch: str = "", seq: int = 0,
    ) -> None:  # fmt: skip
        """Note a rejected contribution.

        It is not settled, for what is in the way may pass; its sender is told why, and until when
        it is in the way (:attr:`.KnownClients.refused`).
        """
        # A text may quote what books and messages do not hold: half a letter, a shape of 3,000.
        reason = storable(f"{error.reason}: {error}")
        client = self.known.refuse(client, epoch, f"{reason} ({until(error.reason)})")
        labels = (size, name_of_life(epoch), seq, "", reason)
        self.ledger.add(Entry(round_number, client, "rejected", (), (), *labels))

    # -- questions --------------------------------------------------------------------------

    def contribution_of(self, client: str) -> PrototypeMemory:
        """A copy of the sum of what ``client`` contributed; KeyError if there is none."""
        if client not in self._kept:
            raise KeyError(client)
        return self._kept.total(self._kept.of(client))

    @property
    def clients(self) -> list[str]:
        """Clients that contributed and were not forgotten, sorted."""
        return sorted(self.known.contributors - self.known.forgotten)

    # -- parts ------------------------------------------------------------------------------

    def _listed(self, class_ids: NDArray[np.int64]) -> tuple[int, ...]:
        """Class ids for the ledger; contributions with the same array share one tuple."""
        if class_ids is not self._last_ids:
            self._last_ids, self._last_listed = class_ids, tuple(class_ids.tolist())
        return self._last_listed

    def _packed(self, contribution: Contribution | Received) -> Packed:
        if isinstance(contribution, Received):
            return contribution.statistics
        self._form.empty.require_compatible(contribution.memory)
        try:
            return pack_exactly(contribution.memory)
        except OverflowError as error:
            raise RejectedError("overflow", str(error)) from error

    def _require_room(self, packed: Packed, client: str, replaces: bool) -> None:
        """Refuse more classes, or larger sums, than the limits allow."""
        parts = () if replaces else self._kept.outlines(client)
        require_share(parts, packed, self._limits)
        own = [part.class_ids for part in parts]
        if not (replaces or self.keep_contributions):
            own = [np.array(entry.classes) for entry in self.ledger.merged_of(client)]
        require_few_classes(own, self._sum.class_ids, packed.class_ids, self._limits, self.means)

    def _merge(self, packed: Packed, client: str, replaces: bool) -> None:
        if not self.keep_contributions:
            self._sum.add(packed)
        elif not replaces:
            self._sum.add(packed)
            self._kept.add(client, packed)
        elif before := self._kept.replace(client, packed):
            self._sum.replace(before, packed)
        else:
            self._sum.add(packed)


def same_statistics(a: PrototypeMemory, b: PrototypeMemory) -> bool:
    """Whether two memories hold the same bits."""
    mine, theirs = dict(a.named_buffers(recurse=False)), dict(b.named_buffers(recurse=False))
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )
