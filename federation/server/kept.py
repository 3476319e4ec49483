"""What a server keeps of a federation, in memory or in books, and how it is taken up again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from protocl.errors import DataError
from protocl.federation.books.books import Books
from protocl.federation.books.noting import noted
from protocl.federation.books.shelves import ContributionShelf, Outline, Recent
from protocl.federation.books.writing import Account, Forgetting
from protocl.federation.exactly_once.server import KnownClients
from protocl.federation.exactly_once.undo import Undo, undo_of
from protocl.federation.server.running_sum import RunningSum
from protocl.federation.wire.codec import pack_exactly
from protocl.federation.wire.statistics import Packed, PackedForm
from protocl.federation.wire.traffic import Ledger
from protocl.federation.wire.validation import RejectedError
from protocl.memory import PrototypeMemory

logger = logging.getLogger(__name__)


MAX_PARTS = 8
"""Contributions of a client that memory keeps as they came; more are added up."""


Place = tuple[Any, Hashable]
"""A table, and a key in it."""


class Contributions:
    """What counts of each client.

    Args:
        form: how contributions are packed.
        kept: leaves out of a contribution what is forgotten of all of them.

    Attributes:
        shelf: those on disk; None where all are in memory.
        recent: client -> what is not on the shelf.
    """

    def __init__(self, form: PackedForm, kept: Callable[[Packed], Packed]) -> None:
        self._form, self._kept = form, kept
        self.shelf: ContributionShelf | None = None
        self.recent: dict[str, Recent] = {}

    def __contains__(self, client: str) -> bool:
        recent = self.recent.get(client, Recent())
        return bool(recent.added) or (recent.keeps and client in (self.shelf or ()))

    def __iter__(self) -> Iterator[str]:
        yield from (client for client in self.shelf or () if client not in self.recent)
        yield from (client for client in self.recent if client in self)

    def of(self, client: str) -> tuple[Packed, ...]:
        """All that counts of a client, oldest first."""
        recent = self.recent.get(client, Recent())
        if self.shelf is None or not recent.keeps:
            return recent.added
        return (*map(self._kept, self.shelf.of(client)), *recent.added)

    def outlines(self, client: str) -> Sequence[Packed | Outline]:
        """What limits ask of them."""
        recent = self.recent.get(client, Recent())
        if self.shelf is None or not recent.keeps:
            return recent.added
        return (*self.shelf.outlines(client), *recent.added)

    def add(self, client: str, packed: Packed) -> None:
        """Keep one more."""
        keeps, added = self.recent.get(client, Recent())
        added = (*added, packed)
        if self.shelf is None and len(added) > MAX_PARTS:
            added = (pack_exactly(self.total(added)),)
        self.recent[client] = Recent(keeps, added)

    def replace(self, client: str, packed: Packed) -> tuple[Packed, ...]:
        """Keep one in place of all before, which are given back."""
        before = self.of(client)
        self.recent[client] = Recent(False, (packed,))
        return before

    def drop(self, client: str) -> None:
        """Keep nothing of a client."""
        if self.shelf is not None:
            self.recent[client] = Recent(False)
        else:
            self.recent.pop(client, None)

    def refine(self) -> None:
        """Leave out what is forgotten of all."""
        self.recent = {
            client: Recent(keeps, tuple(map(self._kept, added)))
            for client, (keeps, added) in self.recent.items()
        }

    def total(self, parts: Sequence[Packed]) -> PrototypeMemory:
        """The sum of some."""
        total = self._form.empty.empty_like()
        if self._form.exact:  # no order changes a bit, and one memory is made instead of many
            together = RunningSum(self._form, total, kept=True)
            for part in parts:
                together.add(part)
            return together.memory
        for part in parts:
            total.merge(self._form.memory(part))
        return total


class KeptState:
    """The sum, the ledger, the contributions, and what is known of clients.

    Args:
        empty: memory without samples that all contributions must fit.
        keep: whether contributions are kept besides the sum.
        means: groups of each class, which have ids of their own.

    Attributes:
        ledger: what was accepted from whom, and what was not.
        known: which client a node is, and what of it is settled.
        names: class id -> name, where classes are known by name.
        keep_contributions: see above.
        erasures: how often something was forgotten or withdrawn.
        receipts: certificates of the level above that are not in the books yet.
    """

    def __init__(self, empty: PrototypeMemory, *, keep: bool, means: int = 1) -> None:
        self._form = PackedForm(empty)
        self.means = means
        self._begin(empty.empty_like(), keep=keep)
        self.ledger = Ledger()
        self.known = KnownClients()
        self.names: dict[int, str] = {}
        self._forgotten_classes: frozenset[int] = frozenset()
        self._kept = Contributions(self._form, self.without_forgotten)
        self._forgettings: list[Forgetting] = []
        self.receipts: list[dict[str, Any]] = []
        self.erasures = 0

    @property
    def empty(self) -> PrototypeMemory:
        """A memory without samples of the kind that is merged; do not change it."""
        return self._form.empty

    @property
    def memory(self) -> PrototypeMemory:
        """The merged memory."""
        return self._sum.memory

    def without_forgotten(self, packed: Packed) -> Packed:
        """A contribution without the classes that are forgotten.

        Raises:
            RejectedError: it holds one that cannot be told apart from the others in it.
        """
        if not self._forgotten_classes:
            return packed
        kept = ~np.isin(packed.class_ids, list(self._forgotten_classes))
        if kept.all():
            return packed
        if self._form.pooled is None:
            return packed.subset(kept, self._form)
        if kept.any():
            raise RejectedError(
                "classes",
                f"class {packed.class_ids[~kept][0]} was forgotten, and shares a moment with the "
                "others in this contribution; send all without it",
            )
        return pack_exactly(self._form.empty)

    # -- changes ----------------------------------------------------------------------------

    def _undo_of(
        self, client: str, names: Iterable[int] = (), places: Iterable[Place] = ()
    ) -> Undo:
        """What takes back a change of the sum, of ``client``'s parts and entries, and of places."""
        mark, in_ledger = self._sum.mark(), self.ledger.undo_of(client)
        in_tables = undo_of(
            [(self._kept.recent, client), *((self.names, class_id) for class_id in names), *places]
        )

        def undo() -> None:
            self._sum.return_to(mark)
            in_tables()
            in_ledger()

        return undo

    # -- checkpoints ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, in a form that :mod:`protocl.io.checkpoint` saves."""
        return {
            "_memory": self.memory,
            "_parts": {
                client: [part.to_tensors() for part in self._kept.of(client)]
                for client in self._kept
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
        self._forgotten_classes = frozenset(state["_forgotten_classes"])
        self._begin(state["_memory"], keep=state["keep_contributions"])
        self._kept.recent = {
            client: Recent(True, tuple(map(Packed.from_tensors, saved)))
            for client, saved in state["_parts"].items()
        }
        self.names, self.ledger = state["names"], Ledger(state["ledger"])

    def _begin(self, memory: PrototypeMemory, *, keep: bool) -> None:
        self.keep_contributions = keep
        self._sum = RunningSum(self._form, memory, kept=keep)

    # -- books ------------------------------------------------------------------------------

    def keep_in(self, books: Books) -> None:
        """Read from books what is in them from now on, and note what is to be written to them."""
        tables = vars(self.known)
        tables |= {name: noted(table) for name, table in self.known.state().items()}
        self.names = noted(self.names)
        books.attach(self.account({}))

    @property
    def unwritten(self) -> bool:
        """Whether something was forgotten that is not in the books yet."""
        return bool(self._forgettings)

    def take_up(self, books: Books) -> bool:
        """Take up what is in books, without what was forgotten since they were written.

        Returns:
            Whether the books hold something that cannot be read any more.

        Raises:
            ValueError, FingerprintError, ConfigError, DataError: they belong to a federation of
                other statistics, to another protocl, or cannot be read.
        """
        said = books.open()
        self.erasures = sum("level" not in one for one in books.certificates())
        self._form.empty.require_compatible(
            PrototypeMemory.described(said["statistics"], feature_map=self._form.empty.feature_map)
        )
        self.known.restore(
            {name: _table(books, name, like) for name, like in KnownClients().state().items()}
        )
        self.names = {int(class_id): name for class_id, name in books.table("names")}
        self._forgotten_classes = frozenset(said["forgotten_classes"])
        self._begin(self._form.empty.empty_like(), keep=said["keep_contributions"])
        self.keep_in(books)
        for table in (*self.known.state().values(), self.names):
            table.changed.clear()
        for client in (unreadable := books.unreadable()):
            self._kept.drop(client)
            self.ledger.replace(client)
            self.known.unlearn(client)
        there = books.memory()
        memory = None if unreadable else there
        whole = self._sum_anew(books) if memory is None else memory
        self._begin(whole, keep=self.keep_contributions)
        return memory is None

    def _sum_anew(self, books: Books) -> PrototypeMemory:
        if not self.keep_contributions:
            raise DataError(
                f"{books.path} is of before a class was forgotten, and without contributions its "
                "sum cannot be read; restore a newer backup, or begin in another folder"
            )
        logger.warning("the books are older than what was forgotten; the sum is made anew")
        for client in sorted(self._kept):
            for part in self._kept.of(client):
                self._sum.add(part)
        return self.memory

    def account(self, more: Mapping[str, Any]) -> Account:
        """What books are to hold, with ``more`` tables."""
        tables = {**self.known.state(), "names": self.names, **more}
        return Account(
            self.memory, self.ledger, self._kept, tables, self._forgotten_classes,
            self._forgettings, self.keep_contributions, self.means, self.receipts,
        )  # fmt: skip


def _table(books: Books, name: str, like: Any) -> Any:
    """A table of what is known of clients, of the type of ``like``."""
    rows = dict(books.table(name))
    if isinstance(like, set):
        return set(rows)
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in rows.items()}
    return Counter(values) if isinstance(like, Counter) else values
