"""The server's state: the sum of all contributions accepted, each exactly once.

Nothing here knows of Flower. Messages may be lost, repeated, late or reordered, clients and server
may die at any moment: the merged memory stays the exact sum over the contributions in the ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocl.federation.exactly_once.server import KnownClients, Tombstone, name_of_life
from protocl.federation.exactly_once.undo import Undo, undo_of
from protocl.federation.server.running_sum import RunningSum
from protocl.federation.wire.codec import pack_exactly
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, Received
from protocl.federation.wire.statistics import Packed, PackedForm
from protocl.federation.wire.traffic import Entry, Ledger
from protocl.federation.wire.validation import (
    RejectedError,
    require_few_classes,
    require_share,
    until,
)
from protocl.memory import PrototypeMemory
from protocl.memory.rows import class_id_tensor, groups_of, present_groups

logger = logging.getLogger(__name__)

_MAX_PARTS = 8
"""Contributions of a client that are kept as they came; more are added up."""

Place = tuple[Any, Hashable]


class MergedMemory:
    """Merges contributions and remembers which.

    Three parts: what is known of the clients decides what is to be merged
    (:class:`.KnownClients`), the contributions are kept, and their sum is the memory. Every change
    of them happens in all of them, or, whatever fails and whenever, in none.

    Args:
        empty: memory without samples that all contributions must fit.
        keep_contributions: keep what each client sent besides the merged sum. Needed to forget a
            client and to take a client back that lost its state; costs the bytes that all clients
            sent, of a client that sends often no more than those of some contributions.
        limits: of the classes and the sums of one client, and of the classes of all.
        means: groups of each class, which have ids of their own (:class:`.SubSamples`).

    Attributes:
        ledger: what was accepted from whom, and what was not.
        known: which client a node is, and what of it is settled.
        names: class id -> name, where classes are known by name.
    """

    def __init__(
        self,
        empty: PrototypeMemory,
        *,
        keep_contributions: bool = True,
        limits: Limits | None = None,
        means: int = 1,
    ) -> None:
        self._form = PackedForm(empty)
        self._sum = RunningSum(self._form, empty.empty_like(), kept=keep_contributions)
        self.keep_contributions = keep_contributions
        self._limits = limits or Limits()
        self._means = means
        self.ledger = Ledger()
        self.known = KnownClients()
        self.names: dict[int, str] = {}
        self._last_ids: NDArray[np.int64] | None = None
        self._last_listed: tuple[int, ...] = ()
        self._parts: dict[str, tuple[Packed, ...]] = {}
        self._forgotten_classes: frozenset[int] = frozenset()

    @property
    def memory(self) -> PrototypeMemory:
        """The merged memory."""
        return self._sum.memory

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
        packed = self._without_forgotten(whole)
        self._require_room(packed, client, contribution.kind == "full")
        merged = self._listed(packed.class_ids), tuple(packed.counts.tolist())
        samples = int(whole.counts.sum())
        undo = self._undo_of(client, contribution.names, known.places(contribution, client, node))
        try:
            self._merge(packed, client, contribution.kind == "full")
            lost = known.settle(contribution, client, node, samples, round_number)
            self.names.update(contribution.names)
            self._enter(Entry(round_number, client, "merged", *merged, *labels), lost)
        except BaseException:
            undo()
            raise
        return True

    def _undo_of(
        self, client: str, names: Iterable[int] = (), places: Iterable[Place] = ()
    ) -> Undo:
        """What takes back a change of the sum, of ``client``'s parts and entries, and of places."""
        mark, in_ledger = self._sum.mark(), self.ledger.undo_of(client)
        in_tables = undo_of(
            [(self._parts, client), *((self.names, class_id) for class_id in names), *places]
        )

        def undo() -> None:
            self._sum.return_to(mark)
            in_tables()
            in_ledger()

        return undo

    def _enter(self, entry: Entry, lost: int) -> None:
        """Enter what was merged in the ledger; a full state in place of what was before."""
        if entry.kind == "full":
            self.ledger.replace(entry.client)
        if lost:
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
        reason = f"{error.reason}: {error}"
        client = self.known.refuse(client, epoch, f"{reason} ({until(error.reason)})")
        labels = (size, name_of_life(epoch), seq, "", reason)
        self.ledger.add(Entry(round_number, client, "rejected", (), (), *labels))

    # -- unlearning -------------------------------------------------------------------------

    def forget_client(self, client: str) -> Tombstone:
        """Remove all that ``client`` contributed and accept nothing more from it.

        In fixed point the merged memory is, bit for bit, what it would be if the client had never
        been heard; in floating point up to the rounding of :data:`.accumulator.TERMS` additions.

        Returns:
            By which an older state of the server forgets it too (:meth:`bury`).

        Raises:
            ValueError: contributions are not kept.
            KeyError: the client contributed nothing.
        """
        if not self.keep_contributions:
            raise ValueError(
                "a client can be forgotten only where contributions are kept; "
                "start the federation with keep_contributions=true"
            )
        if client in self.known.forgotten:
            return self.known.forget(client)  # by whoever was stopped before it was written down
        if client not in self._parts:
            known = ", ".join(sorted(self._parts)[:10])
            raise KeyError(f"client '{client}' contributed nothing; clients are {known}")
        self._remove(client)
        return self.known.forget(client)

    def bury(self, tombstones: Iterable[Tombstone]) -> None:
        """Forget who was forgotten after the state that was restored."""
        for tombstone in tombstones:
            for client in self.known.bury(tombstone):
                self._remove(client)

    def _remove(self, client: str) -> None:
        """Take all of a client away, and accept nothing more from it."""
        rest = self._sum.without(self._parts.get(client, ()))
        undo = self._undo_of(client, places=[(self.known.forgotten, client)])
        try:
            self._sum.take(rest)
            self._parts.pop(client, None)
            self.ledger.forget(client)
            self.known.forgotten.add(client)
        except BaseException:
            undo()
            raise

    def forget_classes(self, classes: int | Iterable[int] | Tensor) -> None:
        """Remove classes from all contributions and leave them out of all to come.

        Raises:
            KeyError: a class is not in the memory, and was not forgotten before.
            ValueError: the level is ``shared``, whose moment cannot be split by class.
        """
        asked = groups_of(class_id_tensor(classes).tolist(), self._means)
        gone = asked - self._forgotten_classes
        rest = self.memory.copy().forget(present_groups(gone, self.memory.classes, self._means))
        before = self._parts, self._forgotten_classes
        undo = self._undo_of("", gone)
        try:
            self._sum.take(rest)
            self._forgotten_classes |= gone
            kept = self._without_forgotten
            self._parts = {name: tuple(map(kept, parts)) for name, parts in self._parts.items()}
            self.ledger.forget_classes(sorted(gone))
            for class_id in gone:
                self.names.pop(class_id, None)
        except BaseException:
            self._parts, self._forgotten_classes = before
            undo()
            raise

    def contribution_of(self, client: str) -> PrototypeMemory:
        """A copy of the sum of what ``client`` contributed; KeyError if there is none."""
        total = self._form.empty.empty_like()
        for part in self._parts[client]:
            total.merge(self._form.memory(part))
        return total

    @property
    def clients(self) -> list[str]:
        """Clients that contributed and were not forgotten, sorted."""
        return sorted(self.known.contributors - self.known.forgotten)

    # -- checkpoints ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, in a form that :mod:`protocl.io.checkpoint` saves."""
        return {
            "_memory": self.memory,
            "_parts": {
                client: [part.to_tensors() for part in parts]
                for client, parts in self._parts.items()
            },
            "_forgotten_classes": set(self._forgotten_classes),
            "keep_contributions": self.keep_contributions,
            "names": self.names,
            "ledger": list(self.ledger),
            "known": self.known.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            ValueError, FingerprintError: it belongs to a federation of other statistics.
        """
        self._form.empty.require_compatible(state["_memory"])
        self.known.restore(state.get("known", {}))
        self.keep_contributions = state["keep_contributions"]
        self._sum = RunningSum(self._form, state["_memory"], kept=self.keep_contributions)
        self._parts = {
            client: tuple(map(Packed.from_tensors, saved))
            for client, saved in state["_parts"].items()
        }
        self._forgotten_classes = frozenset(state["_forgotten_classes"])
        self.names, self.ledger = state["names"], Ledger(state["ledger"])

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

    def _without_forgotten(self, packed: Packed) -> Packed:
        if not self._forgotten_classes:
            return packed
        kept = ~np.isin(packed.class_ids, list(self._forgotten_classes))
        return packed if kept.all() else packed.subset(kept, self._form)

    def _require_room(self, packed: Packed, client: str, replaces: bool) -> None:
        """Refuse more classes, or larger sums, than the limits allow."""
        parts = () if replaces else self._parts.get(client, ())
        require_share(parts, packed, self._limits)
        own = [part.class_ids for part in parts]
        if not (replaces or self.keep_contributions):
            own = [np.array(entry.classes) for entry in self.ledger.merged_of(client)]
        require_few_classes(own, self._sum.class_ids, packed.class_ids, self._limits, self._means)

    def _merge(self, packed: Packed, client: str, replaces: bool) -> None:
        parts = self._parts.get(client, ())
        if replaces and parts:
            self._sum.replace(parts, packed)
            parts = ()
        else:
            self._sum.add(packed)
        if self.keep_contributions:
            self._parts[client] = (*parts, packed)
            if len(parts) >= _MAX_PARTS:
                self._parts[client] = (pack_exactly(self.contribution_of(client)),)


def same_statistics(a: PrototypeMemory, b: PrototypeMemory) -> bool:
    """Whether two memories hold the same bits."""
    mine, theirs = dict(a.named_buffers(recurse=False)), dict(b.named_buffers(recurse=False))
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )
