"""What clients found in samples without labels, how right it is, and when they are told."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.federation.reconnaissance.config import Learner
from protocl.metrics.clusters import SplitAccuracy, split_accuracy
from protocl.metrics.confusion import Confusion


@dataclass(frozen=True)
class Finding:
    """What one client made of a mission's samples without labels.

    Attributes:
        step, client: when, and who.
        rows: ``(N,)`` row of each sample, or -1.
        labels: ``(N,)`` true classes, which nobody is told.
    """

    step: int
    client: int
    rows: Tensor
    labels: Tensor

    def names(self) -> dict[int, int]:
        """Row -> the class that most of its samples are of; the lowest among equals."""
        votes: dict[int, Counter[int]] = defaultdict(Counter)
        for row, label in zip(self.rows.tolist(), self.labels.tolist(), strict=True):
            if row >= 0:
                votes[row][label] += 1
        return {row: min(v, key=lambda c: (-v[c], c)) for row, v in votes.items()}


@dataclass(frozen=True)
class DiscoveryReport:
    """How right what was discovered is by now; shares in [0, 1], None where there is nothing.

    Attributes:
        classes: classes that came without labels and that nobody has taught or named.
        categories: categories without a name.
        flagged_new: of the unlabelled samples of such classes in the last missions, those taken
            for new.
        kept_known: of the unlabelled samples of known classes there, those taken for known.
        clustered: of all unlabelled samples taken for new, those in the category of their class;
            those with too few others are in none.
        all, old, new: of the test samples of known and of such classes, with one assignment over
            all (:func:`.split_accuracy`, form v2).
        named: classes that came without labels and have a name by now; None where none is given.
        after_naming: of the test samples of these, those that are answered right.
        labelled: the same by who was told the labels of all these missions from the start, met
            the same nodes, and answers by the same rule.
    """

    classes: int
    categories: int
    flagged_new: float | None
    kept_known: float | None
    clustered: float | None
    all: float
    old: float | None
    new: float | None
    named: int | None = None
    after_naming: float | None = None
    labelled: float | None = None

    def __str__(self) -> str:
        new = "" if self.new is None else f", new {self.new:.4f}"
        return f"{self.categories} categories for {self.classes} classes{new}"


class Discoveries:
    """All findings of a run.

    Args:
        twin: to be told at once what the others find out and are told later; None without names.

    Attributes:
        findings: in their order.
        met: classes that came without labels.
        named: those of them that clients have been told of.
    """

    def __init__(self, twin: Learner | None = None) -> None:
        self.twin = twin
        self.findings: list[Finding] = []
        self.met: set[int] = set()
        self.named: set[int] = set()

    def note(self, finding: Finding, features: Tensor) -> None:
        """Keep what a client found among samples ``(N, D)``."""
        self.findings.append(finding)
        self.met |= set(finding.labels.tolist())
        if self.twin is not None:
            self.twin.learn(finding.client, features, finding.labels)

    def merge(self, meetings: Sequence[tuple[int, int]]) -> None:
        """The twin's nodes meet as the others do."""
        if self.twin is not None:
            self.twin.merge(meetings)

    def tell(self, learner: Learner, step: int) -> set[int]:
        """Tell clients what they found in ``step``; the classes that have a name by it."""
        told: set[int] = set()
        for finding in self.findings:
            if finding.step == step and (names := finding.names()):
                learner.name(finding.client, names)
                told |= set(names.values())
        self.named |= told & self.met
        return told

    def report(
        self, learner: Learner, judge: int, known: set[int], test: tuple[Tensor, Tensor]
    ) -> DiscoveryReport | None:
        """What ``judge`` knows by now; None where nothing was met.

        Args:
            learner: answers.
            judge: the node that is asked.
            known: classes that were taught or named.
            test: samples and classes.
        """
        categories = learner.categories(judge)
        if not self.met or categories is None:
            return None
        x, y = test
        asked = torch.isin(y, torch.tensor(sorted(self.met | known)))
        if not bool(asked.any()):
            return None
        table = Confusion.from_predictions(y[asked], learner.predict(judge, x[asked]))
        shares = split_accuracy(table, known)
        strange = self.met - known
        flagged, clustered = self._flagged(known), self._clustered(learner, judge)
        named, after_naming, labelled = self._beside_twin(learner, judge, x, y)
        return DiscoveryReport(
            len(strange), categories, *flagged, clustered, shares.all, shares.old, shares.new,
            named, after_naming, labelled,
        )  # fmt: skip

    def _beside_twin(
        self, learner: Learner, judge: int, x: Tensor, y: Tensor
    ) -> tuple[int | None, float | None, float | None]:
        """Classes with a name, and how right their test samples are answered, by both."""
        if self.twin is None:
            return None, None, None
        asked = torch.isin(y, torch.tensor(sorted(self.named), dtype=torch.int64))
        mine, theirs = (
            _share(each.predict_openly(judge, x[asked]) == y[asked]) if bool(asked.any()) else None
            for each in (learner, self.twin)
        )
        return len(self.named), mine, theirs

    def _flagged(self, known: set[int]) -> tuple[float | None, float | None]:
        last = [f for f in self.findings if f.step == self.findings[-1].step]
        labels, rows = torch.cat([f.labels for f in last]), torch.cat([f.rows for f in last])
        old = torch.isin(labels, torch.tensor(sorted(known), dtype=torch.int64))
        taken = rows != KNOWN
        return _share(taken[~old]), _share(~taken[old])

    def _clustered(self, learner: Learner, judge: int) -> float | None:
        rows = torch.cat([f.rows for f in self.findings])
        labels = torch.cat([f.labels for f in self.findings])
        placed = rows >= 0
        if not bool(placed.any()):
            return None
        categories = learner.category_of(judge, rows[placed])
        found: SplitAccuracy = split_accuracy(
            Confusion.from_predictions(labels[placed], categories), ()
        )
        return found.all * int(placed.sum()) / int((rows != KNOWN).sum())


KNOWN, TOO_FEW = -1, -2
"""In place of a row: the sample looked known; it was with too few others."""


def _share(flags: Tensor) -> float | None:
    return float(flags.double().mean()) if len(flags) else None
