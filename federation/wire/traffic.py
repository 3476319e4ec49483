"""What every client contributed, and what every message cost."""

from __future__ import annotations

import csv
import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from protocl.errors import AllFailedError
from protocl.io.atomic import atomic_path
from protocl.memory.rows import class_id_tensor

Outcome = Literal["merged", "duplicate", "rejected", "failed", "replaced", "forgotten"]
Direction = Literal["up", "down"]


class Entry(NamedTuple):
    """One contribution that arrived, or one client that failed to answer.

    Attributes:
        round: number of the round in which it was handled, from 1.
        client: the client it counts for.
        outcome: ``merged``; ``duplicate`` of one merged before; ``rejected`` or ``failed`` with a
            reason; ``replaced`` or ``forgotten`` where a merged one was, by a later full state of
            its client, or removed.
        classes: ``(C,)`` class ids, empty unless merged or replaced.
        counts: ``(C,)`` samples of each.
        bytes: of its arrays and description, serialised.
        epoch: name of its life, by :func:`.exactly_once.server.name_of_life`.
        seq, kind: see :class:`protocl.federation.wire.messages.Contribution`.
        reason: why it was rejected, what failed, or what was lost with what it replaced.
    """

    round: int
    client: str
    outcome: Outcome
    classes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    bytes: int = 0
    epoch: str = ""
    seq: int = 0
    kind: str = ""
    reason: str = ""


class OlderEntries(Protocol):
    """Entries that are on disk, by their numbers there."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[int, Entry]]: ...

    def of_client(self, client: str, outcomes: Sequence[Outcome]) -> list[tuple[int, Entry]]:
        """Those of a client that have one of the outcomes."""

    def outcomes(self, round_number: int | None) -> Counter[str]:
        """How many have each outcome, in one round or in all."""

    def reasons(self, outcome: Outcome | None) -> Counter[str]:
        """How often each reason was given, for one outcome or for all."""


class Changed(NamedTuple):
    """An entry on disk that is another one since."""

    before: Entry
    now: Entry


class Ledger:
    """All entries in the order in which they were made.

    Args:
        entries: to begin with.
        older: entries on disk, which are before those.

    Attributes:
        recent: entries that are not on disk.
        changed: client -> number of an entry on disk -> how it changed since.
        erased: classes that are to be left out of all entries on disk.
    """

    def __init__(self, entries: Iterable[Entry] = (), older: OlderEntries | None = None) -> None:
        self.older = older
        self.recent: list[Entry] = []
        self.changed: dict[str, dict[int, Changed]] = {}
        self.erased: frozenset[int] = frozenset()
        self._ordered = True
        self._merged: dict[str, list[int]] = {}  # client -> places in recent of what counts of it
        for entry in entries:
            self.add(entry)

    def __len__(self) -> int:
        return len(self.recent) + (0 if self.older is None else len(self.older))

    def __iter__(self) -> Iterator[Entry]:
        for number, entry in self.older or ():
            yield self._as_it_is(number, entry)
        yield from self.recent

    def add(self, entry: Entry) -> None:
        """Append ``entry``."""
        if entry.outcome == "merged":
            self._merged.setdefault(entry.client, []).append(len(self.recent))
        self._ordered &= not self.recent or self.recent[-1].round <= entry.round
        self.recent.append(entry)

    def saved(self) -> None:
        """Be told that all is on disk."""
        self.recent, self._merged, self._ordered = [], {}, True
        self.changed, self.erased = {}, frozenset()

    def undo_of(self, client: str) -> Callable[[], None]:
        """What takes back changes that concern ``client``, or the classes of all entries."""
        entries, number = self.recent, len(self.recent)
        places = list(self._merged.get(client, ()))
        own = [entries[place] for place in places]
        changed, erased, changed_here = self.changed, self.erased, self.changed.get(client)

        def undo() -> None:
            del entries[number:]
            for place, entry in zip(places, own, strict=True):
                entries[place] = entry
            self.recent, self.changed, self.erased = entries, changed, erased
            self._merged.pop(client, None)
            if places:
                self._merged[client] = places
            changed.pop(client, None)
            if changed_here is not None:
                changed[client] = changed_here

        return undo

    def merged_of(self, client: str) -> Iterator[Entry]:
        """The entries of what counts of ``client``."""
        for _, entry in self._older_of(client, ("merged",)):
            yield entry
        yield from (self.recent[place] for place in self._merged.get(client, ()))

    def replace(self, client: str) -> None:
        """Mark what ``client`` contributed as replaced by what comes next."""
        self._change(client, ("merged",), lambda entry: entry._replace(outcome="replaced"))
        for place in self._merged.pop(client, ()):
            self.recent[place] = self.recent[place]._replace(outcome="replaced")

    def forget(self, client: str) -> None:
        """Mark what ``client`` contributed as forgotten; its classes and counts are erased."""
        counted: tuple[Outcome, ...] = ("merged", "replaced")
        self._change(client, counted, _forgotten)
        self.recent = [
            _forgotten(entry) if entry.client == client and entry.outcome in counted else entry
            for entry in self.recent
        ]
        self._merged.pop(client, None)

    def forget_classes(self, classes: int | Iterable[int] | Tensor) -> None:
        """Erase ``classes`` from every entry."""
        gone = frozenset(class_id_tensor(classes).tolist())
        self.recent = [_without(entry, gone) for entry in self.recent]
        self.changed = {
            client: {n: Changed(old, _without(new, gone)) for n, (old, new) in changes.items()}
            for client, changes in self.changed.items()
        }
        self.erased = self.erased | gone

    def outcomes(self, round_number: int | None = None) -> Counter[str]:
        """How many entries had each outcome, in one round or in all."""
        found: Counter[str] = Counter(e.outcome for e in self._of_round(round_number))
        if self.older is None:
            return found
        found += self.older.outcomes(round_number)
        for before, now in (c for own in self.changed.values() for c in own.values()):
            if round_number in (None, before.round):
                found[before.outcome] -= 1
                found[now.outcome] += 1
        return +found

    def reasons(self) -> Counter[str]:
        """How many contributions were rejected for each reason."""
        reasons = Counter(entry.reason for entry in self.recent if entry.outcome == "rejected")
        if self.older is not None:
            reasons += self.older.reasons("rejected")
        found: Counter[str] = Counter()
        for reason, number in reasons.items():
            found[reason.partition(":")[0]] += number
        return found

    def require_merged(self) -> None:
        """Refuse to call it a success where clients sent something, and nothing was ever merged.

        Raises:
            AllFailedError: quotes the reason that came most often.
        """
        outcomes = self.outcomes()
        if outcomes["merged"] + outcomes["forgotten"]:
            return
        reasons = Counter(entry.reason for entry in self.recent if entry.reason)
        if self.older is not None:
            reasons += self.older.reasons(None)
        if reasons:
            ((reason, number),) = reasons.most_common(1)
            raise AllFailedError(
                f"nothing was merged: {outcomes['failed']} failures of clients and "
                f"{outcomes['rejected']} refused contributions, {number} of them: {reason}"
            )

    def save(self, path: Path) -> None:
        """Write one JSON object a line, the whole file or nothing."""
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry._asdict()) + "\n" for entry in self)

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Read what :meth:`save` wrote."""
        lines = path.read_text(encoding="utf-8").splitlines()
        return cls(_entry(json.loads(line)) for line in lines)

    # -- parts ------------------------------------------------------------------------------

    def _of_round(self, number: int | None) -> Iterable[Entry]:
        """The entries of a round, which mostly follow each other, that are not on disk."""
        if number is None:
            return self.recent
        if not self._ordered:
            return (entry for entry in self.recent if entry.round == number)
        begin = bisect_left(self.recent, number, key=lambda entry: entry.round)
        return self.recent[begin : bisect_right(self.recent, number, key=lambda e: e.round)]

    def _as_it_is(self, number: int, entry: Entry) -> Entry:
        """What has become of an entry on disk."""
        change = self.changed.get(entry.client, {}).get(number)
        return _without(entry if change is None else change.now, self.erased)

    def _older_of(self, client: str, outcomes: Sequence[Outcome]) -> list[tuple[int, Entry]]:
        """Entries on disk of a client that have one of the outcomes now."""
        if self.older is None:
            return []
        every = self.older.of_client(client, ("merged", "replaced"))
        now = ((number, self._as_it_is(number, entry)) for number, entry in every)
        return [(number, entry) for number, entry in now if entry.outcome in outcomes]

    def _change(
        self, client: str, outcomes: Sequence[Outcome], change: Callable[[Entry], Entry]
    ) -> None:
        own = dict(self.changed.get(client, {}))
        for number, entry in self._older_of(client, outcomes):
            before = own[number].before if number in own else entry
            own[number] = Changed(before, change(entry))
        if own:
            self.changed[client] = own


def _forgotten(entry: Entry) -> Entry:
    return entry._replace(outcome="forgotten", classes=(), counts=())


def _entry(values: dict[str, Any]) -> Entry:
    lists = {key: tuple(values[key]) for key in ("classes", "counts")}
    return Entry(**{**values, **lists})


def _without(entry: Entry, gone: frozenset[int]) -> Entry:
    if not gone.intersection(entry.classes):
        return entry
    kept = [
        (class_id, count)
        for class_id, count in zip(entry.classes, entry.counts, strict=True)
        if class_id not in gone
    ]
    return entry._replace(
        classes=tuple(c for c, _ in kept), counts=tuple(count for _, count in kept)
    )


Row = tuple[int, str, str, Direction, int]
"""Round, client, message type, direction and bytes of a message."""


class Traffic:
    """Bytes of every message, measured on its serialised records.

    Attributes:
        rows: ``(round, client, message type, direction, bytes)`` of those that are not on disk.
        older: gives those on disk, where some are.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.older: Callable[[], Iterable[Row]] | None = None
        self._totals: Counter[tuple[int, str, Direction]] = Counter()

    def add(
        self, round_number: int, client: str, message_type: str, direction: Direction, size: int
    ) -> None:
        """Note one message."""
        self.rows.append((round_number, client, message_type, direction, size))
        self._totals[round_number, message_type, direction] += size

    def saved(self, older: Callable[[], Iterable[Row]]) -> None:
        """Be told that all are on disk, and how to get at them."""
        self.rows, self.older = [], older

    def take_up(
        self, totals: Iterable[tuple[int, str, Direction, int]], older: Callable[[], Iterable[Row]]
    ) -> None:
        """Begin with messages on disk: their bytes by round, type and direction, and each."""
        self._totals = Counter({(number, kind, way): size for number, kind, way, size in totals})
        self.rows, self.older = [], older

    def total(self, direction: Direction, round_number: int | None = None) -> int:
        """Bytes up or down, in one round or in all."""
        return sum(
            size
            for (number, _, way), size in self._totals.items()
            if way == direction and round_number in (None, number)
        )

    def by_type(self, round_number: int | None = None) -> dict[str, dict[str, int]]:
        """``{"train": {"up": bytes, "down": bytes}, ...}``, in one round or in all."""
        totals: dict[str, dict[str, int]] = {}
        for (number, kind, way), size in self._totals.items():
            if round_number in (None, number):
                totals.setdefault(kind, {"up": 0, "down": 0})[way] += size
        return totals

    def __iter__(self) -> Iterator[Row]:
        yield from () if self.older is None else self.older()
        yield from self.rows

    def save(self, path: Path) -> None:
        """Write a CSV table, the whole file or nothing."""
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("round", "client", "message_type", "direction", "bytes"))
            writer.writerows(self)
