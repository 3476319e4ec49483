"""What every client contributed, and what every message cost."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from protocl.errors import AllFailedError
from protocl.io.atomic import atomic_write
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


class Ledger:
    """All entries in the order in which they were made."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: list[Entry] = []
        self._merged: dict[str, list[int]] = {}  # client -> places of what counts of it
        for entry in entries:
            self.add(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, entry: Entry) -> None:
        """Append ``entry``."""
        if entry.outcome == "merged":
            self._merged.setdefault(entry.client, []).append(len(self._entries))
        self._entries.append(entry)

    def undo_of(self, client: str) -> Callable[[], None]:
        """What takes back changes that concern ``client``, or the classes of all entries."""
        entries, number = self._entries, len(self._entries)
        places = list(self._merged.get(client, ()))
        own = [entries[place] for place in places]

        def undo() -> None:
            del entries[number:]
            for place, entry in zip(places, own, strict=True):
                entries[place] = entry
            self._entries = entries
            self._merged.pop(client, None)
            if places:
                self._merged[client] = places

        return undo

    def merged_of(self, client: str) -> Iterator[Entry]:
        """The entries of what counts of ``client``."""
        return (self._entries[place] for place in self._merged.get(client, ()))

    def replace(self, client: str) -> None:
        """Mark what ``client`` contributed as replaced by what comes next."""
        for place in self._merged.pop(client, ()):
            self._entries[place] = self._entries[place]._replace(outcome="replaced")

    def forget(self, client: str) -> None:
        """Mark what ``client`` contributed as forgotten; its classes and counts are erased."""
        self._entries = [
            entry._replace(outcome="forgotten", classes=(), counts=())
            if entry.client == client and entry.outcome in ("merged", "replaced")
            else entry
            for entry in self._entries
        ]
        self._merged.pop(client, None)

    def forget_classes(self, classes: int | Iterable[int] | Tensor) -> None:
        """Erase ``classes`` from every entry."""
        gone = set(class_id_tensor(classes).tolist())
        self._entries = [_without(entry, gone) for entry in self._entries]

    def outcomes(self, round_number: int | None = None) -> Counter[str]:
        """How many entries had each outcome, in one round or in all."""
        return Counter(
            entry.outcome for entry in self if round_number is None or entry.round == round_number
        )

    def reasons(self) -> Counter[str]:
        """How many contributions were rejected for each reason."""
        return Counter(
            entry.reason.partition(":")[0] for entry in self if entry.outcome == "rejected"
        )

    def require_merged(self) -> None:
        """Refuse to call it a success where clients sent something, and nothing was ever merged.

        Raises:
            AllFailedError: quotes the reason that came most often.
        """
        outcomes = self.outcomes()
        reasons = Counter(entry.reason for entry in self if entry.reason)
        if reasons and not outcomes["merged"] + outcomes["forgotten"]:
            ((reason, number),) = reasons.most_common(1)
            raise AllFailedError(
                f"nothing was merged: {outcomes['failed']} failures of clients and "
                f"{outcomes['rejected']} refused contributions, {number} of them: {reason}"
            )

    def save(self, path: Path) -> None:
        """Write one JSON object a line, the whole file or nothing."""
        atomic_write(path, "".join(json.dumps(entry._asdict()) + "\n" for entry in self))

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Read what :meth:`save` wrote."""
        lines = path.read_text(encoding="utf-8").splitlines()
        return cls(_entry(json.loads(line)) for line in lines)


def _entry(values: dict[str, Any]) -> Entry:
    lists = {key: tuple(values[key]) for key in ("classes", "counts")}
    return Entry(**{**values, **lists})


def _without(entry: Entry, gone: set[int]) -> Entry:
    kept = [
        (class_id, count)
        for class_id, count in zip(entry.classes, entry.counts, strict=True)
        if class_id not in gone
    ]
    if len(kept) == len(entry.classes):
        return entry
    return entry._replace(
        classes=tuple(c for c, _ in kept), counts=tuple(count for _, count in kept)
    )


@dataclass
class Traffic:
    """Bytes of every message, measured on its serialised records.

    Attributes:
        rows: ``(round, client, message type, direction, bytes)``.
    """

    rows: list[tuple[int, str, str, Direction, int]] = field(default_factory=list)

    def add(
        self, round_number: int, client: str, message_type: str, direction: Direction, size: int
    ) -> None:
        """Note one message."""
        self.rows.append((round_number, client, message_type, direction, size))

    def total(self, direction: Direction, round_number: int | None = None) -> int:
        """Bytes up or down, in one round or in all."""
        return sum(
            size
            for number, _, _, way, size in self.rows
            if way == direction and round_number in (None, number)
        )

    def by_type(self, round_number: int | None = None) -> dict[str, dict[str, int]]:
        """``{"train": {"up": bytes, "down": bytes}, ...}``, in one round or in all."""
        totals: dict[str, dict[str, int]] = {}
        for number, _, kind, way, size in self.rows:
            if round_number in (None, number):
                totals.setdefault(kind, {"up": 0, "down": 0})[way] += size
        return totals

    def save(self, path: Path) -> None:
        """Write a CSV table, the whole file or nothing."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("round", "client", "message_type", "direction", "bytes"))
        writer.writerows(self.rows)
        atomic_write(path, text.getvalue())
