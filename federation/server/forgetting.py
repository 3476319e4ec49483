"""Taking clients and classes out of the server's state, as if they had never been in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from protocl.federation.books.writing import Forgetting, digest_of
from protocl.federation.exactly_once.server import Tombstone
from protocl.federation.server.kept import KeptState
from protocl.federation.wire.statistics import Packed
from protocl.memory import PrototypeMemory
from protocl.memory.rows import class_id_of, class_id_tensor, groups_of, present_groups


class Forgets(KeptState):
    """A state from which clients and classes can be removed."""

    def forget_client(self, client: str) -> Tombstone:
        """Remove all that ``client`` contributed and accept nothing more from it.

        It is known by its node and by the lives of its state. Of a node never heard of, in a life
        never heard of, nobody can tell that it was forgotten under another name.

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
        if client not in self._kept:
            known = _listed(sorted(self._kept))
            raise KeyError(f"client '{client}' contributed nothing; clients are {known}")
        self._remove(client)
        return self.known.forget(client)

    def bury(self, tombstones: Iterable[Tombstone]) -> None:
        """Forget who was forgotten after the state that was restored."""
        for tombstone in tombstones:
            before = set(self.known.forgotten)
            for client in self.known.bury(tombstone):
                if client not in before or client in self._kept:
                    self._remove(client)

    def bury_classes(self, classes: Iterable[int]) -> None:
        """Forget the classes that were forgotten after the state that was restored.

        Raises:
            ValueError: they share a moment with others in contributions that were restored.
        """
        lacking = frozenset(classes) - self._forgotten_classes
        if lacking:
            self._forget_groups(lacking, lacking.intersection(self.memory.classes.tolist()))

    def _remove(self, client: str) -> None:
        """Take all of a client away, and accept nothing more from it."""
        rest, before = self._sum.without(self._kept.of(client)), digest_of(self.memory)
        undo = self._undo_of(client, places=[(self.known.forgotten, client)])
        try:
            self._sum.take(rest)
            self._kept.drop(client)
            self.ledger.forget(client)
            self.known.forgotten.add(client)
            self._note_forgetting(f"client {client}", before)
        except BaseException:
            undo()
            raise

    def forget_classes(self, classes: int | Iterable[int] | Tensor) -> frozenset[int]:
        """Remove classes from all contributions and leave them out of all to come.

        At level ``shared`` those contributions are removed that hold nothing else: what a class
        adds to a moment that others share is known where it came alone.

        Returns:
            Ids of all groups that are forgotten now.

        Raises:
            KeyError: a class is not in the memory, and was not forgotten before.
            ValueError: at level ``shared`` a contribution holds one of them among other classes.
        """
        asked = groups_of(class_id_tensor(classes).tolist(), self.means)
        gone = asked - self._forgotten_classes
        present = present_groups(gone, self.memory.classes, self.means)
        if gone:
            self._forget_groups(gone, present)
        return self._forgotten_classes

    def class_of(self, name: str) -> int:
        """The id of a class by its name, or by its number where classes have none.

        A class that was forgotten is still found, so that whoever was stopped asks again.

        Raises:
            KeyError: there is no such class.
        """
        named = {known: class_id for class_id, known in self.names.items()}
        present = set((self.memory.classes // self.means).tolist())
        if name in named:
            return named[name] // self.means
        if (class_id := class_id_of(name)) in self._forgotten_classes:
            return class_id
        if name.isdecimal() and int(name) in present | self._forgotten_classes:
            return int(name)
        without = sorted(present - {class_id // self.means for class_id in named.values()})
        known = _listed([*named, *map(str, without)])
        raise KeyError(f"class '{name}' is not in the merged memory; classes are {known}")

    def _forget_groups(self, gone: frozenset[int], present: Iterable[int] | None = None) -> None:
        rest = self._sum_without(gone, gone if present is None else present)
        digest, before = digest_of(self.memory), (self._kept.recent, self._forgotten_classes)
        what = f"classes {', '.join(str(self.names.get(c, c)) for c in sorted(gone))}"
        undo = self._undo_of("", gone)
        try:
            self._sum.take(rest)
            self._forgotten_classes |= gone
            self._kept.refine()
            self.ledger.forget_classes(sorted(gone))
            for class_id in gone:
                self.names.pop(class_id, None)
            self._note_forgetting(what, digest)
        except BaseException:
            self._kept.recent, self._forgotten_classes = before
            undo()
            raise

    def _sum_without(self, gone: frozenset[int], present: Iterable[int]) -> PrototypeMemory:
        """The merged memory without classes."""
        if self._form.pooled is None:
            return self.memory.copy().forget(present)
        if not self.keep_contributions:
            raise ValueError(
                "the level is shared, whose moment cannot be split by class without contributions; "
                "start the federation with keep_contributions=true, or with a head of level full"
            )
        alone: list[Packed] = []
        mixed: set[str] = set()
        for client in self._kept:
            for part in self._kept.of(client):
                here = np.isin(part.class_ids, list(gone))
                if here.all() and here.any():
                    alone.append(part)
                elif here.any():
                    mixed.add(client)
        if mixed:
            clients = sorted(mixed)
            raise ValueError(
                f"classes {sorted(gone)} came among others, with which they share a moment at "
                f"level shared, from {len(clients)} clients: {_listed(clients)}; let them withdraw "
                "the classes, or forget the clients"
            )
        return self._sum.without(alone)

    def _note_forgetting(self, what: str, before: bytes, *row: Any) -> None:
        self.erasures += 1
        self._forgettings.append(Forgetting(what, before, digest_of(self.memory), *row))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "none"
