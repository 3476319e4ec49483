"""How nodes of a reconnaissance discover: what is new, which rows, which category."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from protocl.config.validation import AT_LEAST_0, AT_LEAST_1, POSITIVE_SHARE, SHARE, Range, ranged
from protocl.errors import ConfigError
from protocl.federation.reconnaissance.scenario import SERVER
from protocl.memory import PrototypeMemory
from protocl.open_world.categories import Rows
from protocl.open_world.evidence import TwoCovariance
from protocl.open_world.federated import (
    Aliases,
    Found,
    OffsetTable,
    agree,
    group,
    provisional_rows,
    refined,
)
from protocl.open_world.scores.evidence import Evidence
from protocl.open_world.thresholds import ScoreHistogram

_PARTS = 5
"""Of samples that are left out in turn for a threshold."""

_ENOUGH = 100
"""Samples behind a threshold: with fewer, a share of 5 % is a matter of chance."""


_RATIO = Range(
    "a log odds ratio, such as 0.0 or -100.0; inf for never", lambda value: not math.isnan(value)
)


@dataclass
class DiscoverySettings:
    """What is taken for new, and what for one category.

    Attributes:
        detect: tell new samples from known ones first; without it all unlabelled ones are new.
        keep: share of known samples that shall be taken for known.
        shrinkage: see :class:`.TwoCovariance`.
        offset: log odds ratio above which rows join; None to choose it by clustering classes known
            from the start, which are left out of the covariances for it.
        calibration_classes: how many of these.
        passes: see :func:`.refined`; 0 leaves groups as they were joined.
        dissolve: whether samples of groups that are too small to be sent go to larger ones.
        absorb: log odds ratio above which a category without a name is a known class.
        least, most: see :func:`.provisional_rows`.
    """

    detect: bool = True
    keep: float = ranged(0.95, POSITIVE_SHARE)
    shrinkage: float = ranged(0.3, SHARE)
    offset: float | None = ranged(None, _RATIO)
    calibration_classes: int = ranged(100, AT_LEAST_1)
    passes: int = ranged(0, AT_LEAST_0)
    dissolve: bool = False
    absorb: float = ranged(0.0, _RATIO)
    least: int = ranged(5, AT_LEAST_1)
    most: int = ranged(500, AT_LEAST_1)


class Discoverer:
    """What all nodes share: settings, and what was calibrated on classes known from the start.

    Args:
        settings: of the method.

    Attributes:
        offset: log odds ratio above which rows join; None until it is known.
        thresholds: node -> evidence from which on a sample is taken for known; that of the server
            serves all who have none.
    """

    def __init__(self, settings: DiscoverySettings) -> None:
        self.settings = settings
        self.offset = settings.offset
        self.thresholds: dict[int, float] = {}

    def calibrate(
        self, node: int, memory: PrototypeMemory, features: Tensor, labels: Tensor
    ) -> None:
        """Choose threshold and offset by samples of ``node`` that are in ``memory``.

        A threshold goes stale when classes are added, so each mission with labels chooses it anew,
        where it has samples enough; the offset is chosen once.
        """
        if not memory.provides("shared") or len(memory) < 2:
            return
        if self.settings.detect:
            score = Evidence(self.settings.shrinkage)
            histogram = ScoreHistogram.of(score, memory, features, labels, parts=_PARTS)
            if histogram.samples >= _ENOUGH:
                self.thresholds[node] = histogram.threshold(self.settings.keep)
        if self.offset is None and len(labels.unique()) >= 8:
            self.offset = self._chosen(memory, features, labels)

    def found(
        self, node: int, memory: PrototypeMemory, features: Tensor, *, epoch: str, seq: int
    ) -> tuple[Found, Tensor]:
        """Rows of what is new among samples ``(N, D)``, and which of them ``(N,)`` are new.

        Raises:
            ConfigError: the memory lacks what evidence needs, or nothing was calibrated.
        """
        evidence = TwoCovariance(self.settings.shrinkage)
        if lacking := evidence.lacks(memory):
            raise ConfigError(
                f"scenario.unlabelled: {lacking}: give method.level=shared, and "
                "benchmark.base_classes that are known from the start"
            )
        if self.offset is None:
            raise ConfigError(
                "scenario.unlabelled: fewer than 8 classes are known from the start, by which to "
                "choose at what evidence rows join; give method.discovery.offset=-100"
            )
        evidence.fit(memory)
        new = torch.ones(len(features), dtype=torch.bool)
        if self.settings.detect:
            # Without any threshold: what is likelier new than known.
            default = self.thresholds.get(SERVER, 0.0)
            new = evidence.known(features) < self.thresholds.get(node, default)
        groups = group(evidence, features[new], self.offset)
        most, least = self.settings.most, self.settings.least
        smallest = least if self.settings.dissolve else 1
        groups = refined(evidence, features[new], groups, self.settings.passes, least=smallest)
        rows = provisional_rows(
            memory, features[new], groups, epoch=epoch, seq=seq, least=least, most=most
        )
        return rows, new

    def aliases(
        self, memory: PrototypeMemory, strange: PrototypeMemory, named: Mapping[int, int]
    ) -> Aliases:
        """What rows without a name are, by all that a node knows."""
        if not len(strange):
            return Aliases({})
        assert self.offset is not None  # there are rows
        evidence = TwoCovariance(self.settings.shrinkage)
        absorb = self.settings.absorb
        return agree(evidence, memory, strange, offset=self.offset, absorb=absorb, named=named)

    def predict(
        self, memory: PrototypeMemory, strange: PrototypeMemory, aliases: Aliases, x: Tensor
    ) -> Tensor:
        """Classes and categories ``(N,)`` of samples by the largest evidence."""
        evidence = TwoCovariance(self.settings.shrinkage).fit(memory)
        rows = evidence.rows(strange)
        renamed = Rows(aliases.of(rows.ids), rows.counts, rows.coordinates)
        everything = evidence.known_rows.beside(renamed)
        together = everything.grouped(everything.ids.unique(return_inverse=True)[1])
        return together.ids[evidence.same(evidence.of_samples(x), together).argmax(1)]

    def _chosen(self, memory: PrototypeMemory, features: Tensor, labels: Tensor) -> float:
        """Cluster some classes by covariances of the others."""
        classes = labels.unique()
        held_out = classes[:: max(2, len(classes) // self.settings.calibration_classes)]
        mine = torch.isin(labels, held_out[: self.settings.calibration_classes])
        x, y = features[mine], labels[mine]
        evidence = TwoCovariance(self.settings.shrinkage)
        evidence.fit(memory - memory.empty_like().update(x, y))
        # In halves of each class, for a client has but a part of a category.
        order = y.argsort(stable=True)
        one, other = (OffsetTable.of(evidence, x[h], y[h]) for h in (order[::2], order[1::2]))
        return (one + other).best
