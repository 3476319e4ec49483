"""Whether the books say the truth: the chain of the ledger, its marks, and the sum."""

from __future__ import annotations

import hmac
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from protocl.errors import ConfigError, DataError
from protocl.federation.books.backup import folder_of_books
from protocl.federation.books.books import FILE
from protocl.federation.books.reading import OpenBooks, opened
from protocl.federation.books.sealing import Key, from_bytes
from protocl.federation.books.shelves import CERTIFICATE, DATA, LABELS, packed_of_bytes
from protocl.federation.books.sums import Sums
from protocl.federation.books.writing import BEGINNING, digest_of, first_outcome, link
from protocl.memory import PrototypeMemory

_TOLERANCE = 1e-12
"""Of floating-point sums, as a share of the largest: they are added up in another order here."""


@dataclass
class Audit:
    """What an audit found.

    Attributes:
        entries: rows of the ledger, certificates included.
        contributions: that are kept, and were added up.
        forgotten: entries of which nothing is left but that there were some.
        rewritten: entries that were written anew when classes were forgotten.
        certificates: of what was forgotten.
        samples: in the merged memory.
        head: the last value of the chain, in hexadecimal digits; note it, and a later audit says
            whether the books still hold all that they held.
        faults: what is not as it should be; empty where all is well.
    """

    entries: int = 0
    contributions: int = 0
    forgotten: int = 0
    rewritten: int = 0
    certificates: int = 0
    samples: int = 0
    head: str = BEGINNING.hex()
    faults: list[str] = field(default_factory=list)


def audit(folder: Path, head: str | None = None) -> Audit:
    """Recompute the chain of the ledger, the mark of each contribution, and their sum.

    It can be done while a server writes: what it reads is as it was between two rounds.

    Args:
        folder: of the books, or of the run or server that they are of.
        head: of an earlier audit, which must be in the chain; None for none.

    Raises:
        ConfigError: there are no books, or of another version; ``head`` is none of an audit.
        DataError: they are damaged, or the keys are not there.
    """
    if head is not None and not re.fullmatch(f"[0-9a-f]{{{len(BEGINNING.hex())}}}", head):
        raise ConfigError(
            f"head={head}: expected all {len(BEGINNING.hex())} digits that an earlier audit printed"
        )
    with opened(folder) as books:
        if (state := books.db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            file = folder_of_books(folder) / FILE
            raise DataError(f"{file} is damaged: {' '.join(state.split())}; restore a backup")
        return _Auditor(books).audit(head)


class _Auditor:
    def __init__(self, books: OpenBooks) -> None:
        self._books, self._keys, self._meta = books.db, books.keys, books.meta
        self._form = books.form
        self._total = self._form.empty.empty_like()
        self._counts: Counter[int] = Counter()
        self._found = Audit()

    def audit(self, head: str | None) -> Audit:
        found, seen = self._found, head in (None, self._found.head)
        query = (
            "SELECT ledger.number, round, ledger.client, bytes, epoch, seq, kind, reason, outcome, "
            "first, ledger.key, labels, seal, mark, chain, data FROM ledger "
            "LEFT JOIN contributions USING (number) ORDER BY number"
        )
        for expected, row in enumerate(self._books.execute(query)):
            self._check_chain(expected, row)
            self._check_row(row)
            seen |= found.head == head
        if not seen:
            found.faults.append(f"head {head} is not in the chain: rows were removed or replaced")
        self._check_sum()
        return found

    def _check_chain(self, expected: int, row: tuple[Any, ...]) -> None:
        number, *fields = row[:8]
        outcome, first, seal, chain = row[8], row[9], row[12], row[14]
        found = self._found
        same = link(bytes.fromhex(found.head), (number, first, *fields), seal) == chain
        if not same or number != expected or first_outcome(outcome) != first:
            found.faults.append(f"row {number} of the ledger, or the one before, was changed")
        found.head = chain.hex()
        found.entries += 1
        found.forgotten += outcome == "forgotten"
        found.certificates += outcome == CERTIFICATE

    def _check_row(self, row: tuple[Any, ...]) -> None:
        number, outcome, name, labels, seal, mark, data = (
            row[i] for i in (0, 8, 10, 11, 12, 13, 15)
        )
        if outcome == "forgotten" and (name, labels, data) != (None, None, None):
            self._found.faults.append(f"row {number} is said to be forgotten, and is there")
        if name is None:
            return
        key = self._keys.find(name)
        if key is None:
            self._found.faults.append(f"row {number} cannot be read: its key was destroyed")
            return
        try:
            self._count(key, labels, data, outcome, mark)
            self._found.rewritten += mark != seal
        except (DataError, ValueError) as error:
            self._found.faults.append(f"row {number}: {error}")

    def _count(
        self, key: Key, labels: bytes, data: bytes | None, outcome: str, mark: bytes
    ) -> None:
        labels = key.open(labels, LABELS)
        content = b"" if data is None else key.open(data, DATA)
        if outcome != "replaced" and not hmac.compare_digest(key.mark(labels, content), mark):
            raise DataError("its mark is not that of what is in it")
        if outcome == "merged":
            arrays, _ = from_bytes(labels)
            self._counts.update(
                dict(zip(arrays["classes"].tolist(), arrays["counts"].tolist(), strict=True))
            )
        if data is not None:
            self._found.contributions += 1
            self._total.merge(self._form.memory(packed_of_bytes(content)))

    def _check_sum(self) -> None:
        found = self._found
        memory = Sums(self._books, self._form.empty).read(self._keys)
        if memory is None:
            found.faults.append("the sum cannot be read: its keys were destroyed; resume the run")
            return
        found.samples = memory.total
        counts = dict(zip(memory.classes.tolist(), memory.counts.tolist(), strict=True))
        if counts != {class_id: n for class_id, n in self._counts.items() if n}:
            found.faults.append("the counts of the ledger are not those of the merged memory")
        if self._meta["keep_contributions"] and not same_sums(self._total, memory):
            found.faults.append("the contributions do not add up to the merged memory")


def same_sums(a: PrototypeMemory, b: PrototypeMemory) -> bool:
    """Whether two memories hold the same sums: the same bits, or in floating point up to 1e-12."""
    if a.exact:
        return digest_of(a) == digest_of(b)
    if not torch.equal(a.classes, b.classes):
        return False
    if not len(a):
        return True
    pairs = [(a.sums, b.sums)]
    if a.level != "mean":
        pairs.append((a.second_moment, b.second_moment))
    return torch.equal(a.counts, b.counts) and all(
        torch.allclose(mine, theirs, rtol=0, atol=_TOLERANCE * float(theirs.abs().max()))
        for mine, theirs in pairs
    )
