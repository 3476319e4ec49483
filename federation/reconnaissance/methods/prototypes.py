"""Method ``prototypes``: each node's memory is the exact sum of the contributions it heard of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from protocl.config.validation import POSITIVE, ranged
from protocl.errors import ConfigError
from protocl.federation.config import MethodInfo
from protocl.federation.methods.head_settings import HeadSettings
from protocl.federation.reconnaissance.config import Learner, LearnerConfig, LearnerSetup
from protocl.federation.reconnaissance.discovered import KNOWN, TOO_FEW
from protocl.federation.reconnaissance.methods.discovery import Discoverer, DiscoverySettings
from protocl.federation.reconnaissance.scenario import SERVER
from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.codec import Precision
from protocl.federation.wire.messages import Contribution, Kind, decode, encode
from protocl.heads.bayesian.head import BayesianPrototypes
from protocl.memory import PrototypeMemory
from protocl.memory.batch import Level
from protocl.open_world.federated import Aliases, Namings
from protocl.open_world.scores import known_scores

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord
    from torch import Tensor

    from protocl.heads.base import Head


@dataclass
class PrototypesLearnerConfig(HeadSettings, LearnerConfig):
    """Settings of :class:`PrototypeLearner`.

    Attributes:
        exact: merge in fixed point, so that the result does not depend on any order by a bit.
        step: quantisation step of fixed point.
        precision: of what is sent: ``exact``, ``float32``, ``float16`` or ``int8``.
        level: statistics to keep where the head needs fewer, for scores of unknown inputs; they
            are sent as well.
        base: file of a memory of classes that help to estimate the covariances of evidence, such
            as those that the backbone was trained on.
        discovery: what samples without labels are taken for.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="Prototypes", stored="sums of class statistics, and the contributions to pass on"
    )

    name: str = "prototypes"
    exact: bool = True
    step: float = ranged(2.0**-16, POSITIVE)
    precision: Precision = "exact"
    level: Level | None = None
    base: str | None = None
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)

    def build(self, setup: LearnerSetup) -> PrototypeLearner:
        """See :class:`protocl.federation.reconnaissance.config.LearnerConfig`."""
        head = self.head.build()
        empty = head.new_memory(
            setup.feature_dim, level=self.level, exact=self.exact, step=self.step,
            fingerprint=setup.fingerprint,
        )  # fmt: skip
        if not empty.provides(head.required_level):
            raise ConfigError(
                f"method.level={self.level}: the head {self.head.name} needs level "
                f"{head.required_level}; leave method.level out"
            )
        discoverer = Discoverer(self.discovery) if setup.discovers else None
        base = None
        if self.base is not None:
            file = Path(self.base).expanduser()
            base = PrototypeMemory.load(file, fingerprint=setup.fingerprint)
        return PrototypeLearner(head, empty, setup.clients, self.precision, discoverer, base)


@dataclass(frozen=True)
class Letter:
    """A contribution as it travels.

    Attributes:
        author: who made it.
        arrays, header: see :func:`protocl.federation.wire.messages.encode`.
        like: what it must fit.
    """

    author: str
    arrays: ArrayRecord
    header: ConfigRecord
    like: PrototypeMemory

    @cached_property
    def contribution(self) -> Contribution:
        """What it says, checked; every reader of the simulation shares it."""
        return decode(self.arrays, self.header, self.like)


class Node:
    """A participant: what it knows, and the letters from which it knows.

    Args:
        empty: memory without samples that all contributions must fit.
    """

    def __init__(self, empty: PrototypeMemory) -> None:
        self.empty = empty
        self.merged = MergedMemory(empty, keep_contributions=False)
        self.letters: dict[str, list[Letter]] = {}

    def read(self, letters: Iterable[Letter]) -> None:
        """Merge letters, those of one author in their order."""
        for letter in letters:
            self.merged.accept(letter.contribution, client=letter.author)
            self.letters.setdefault(letter.author, []).append(letter)

    def news_for(self, other: Node) -> list[Letter]:
        """The letters that ``other`` lacks."""
        return [
            letter
            for author, letters in self.letters.items()
            for letter in letters[len(other.letters.get(author, ())) :]
        ]


class PrototypeLearner(Learner):
    """The paper's prototype averaging, with any head on the merged statistics.

    A node numbers its contributions. Who meets whom passes on every contribution that the other
    lacks, the node's own and those heard of, and each is merged once
    (:class:`.MergedMemory`): a star, a chain and gossip end at the same
    sum, in fixed point the same bits.

    Source: Hendryx et al., Federated Reconnaissance, arXiv 2109.00150, 2021; deltas in place of
    merged means, which would count old samples twice.

    Args:
        head: classifies.
        empty: memory that it needs.
        clients: number of clients.
        precision: of what is sent.
        discoverer: groups samples without labels, if any will come.
        base: see :class:`PrototypesLearnerConfig`.
    """

    def __init__(
        self,
        head: Head,
        empty: PrototypeMemory,
        clients: int,
        precision: Precision,
        discoverer: Discoverer | None = None,
        base: PrototypeMemory | None = None,
    ) -> None:
        self.head = head
        self.empty = empty
        self.precision: Precision = precision
        self.discoverer = discoverer
        self.base = base
        nodes = (SERVER, *range(clients))
        self.nodes = {node: Node(empty) for node in nodes}
        self.strange = {node: Node(empty.empty_like("mean")) for node in nodes}
        self.namings = dict.fromkeys(nodes, Namings())
        self._aliases: dict[int, tuple[object, Aliases]] = {}

    def learn(self, node: int, features: Tensor, labels: Tensor) -> None:
        """Add a contribution of the samples to what ``node`` knows."""
        memory = self.empty.empty_like().update(features, labels)
        self._contribute(self.nodes[node], node, memory, {})
        if self.discoverer is not None:
            self.discoverer.calibrate(node, self.memory(node), features, labels)

    def discover(self, node: int, features: Tensor) -> Tensor:
        """See :class:`Learner`; rows travel beside the named ones, in a memory of their own."""
        if self.discoverer is None:
            return super().discover(node, features)
        theirs = self.strange[node]
        seq = len(theirs.letters.get(_author(node), ())) + 1
        memory, author = self.memory(node), _author(node)
        found, new = self.discoverer.found(node, memory, features, epoch=author, seq=seq)
        if len(found.memory):
            self._contribute(theirs, node, found.memory, found.names)
        rows = torch.where(found.ids < 0, TOO_FEW, found.ids)
        return torch.full((len(features),), KNOWN).masked_scatter(new, rows)

    def name(self, node: int, names: Mapping[int, int]) -> None:
        """See :class:`Learner`; a fact that merges by union."""
        self.namings[node] |= Namings.of({row: str(c) for row, c in names.items()})

    def category_of(self, node: int, rows: Tensor) -> Tensor:
        """See :class:`Learner`."""
        return self.aliases(node).of(rows)

    def categories(self, node: int) -> int | None:
        """See :class:`Learner`."""
        if self.discoverer is None:
            return None
        known = set(self.memory(node).classes.tolist())
        named = set(self._named(node).values())
        return len(set(self.aliases(node).categories) - known - named)

    def aliases(self, node: int) -> Aliases:
        """What the rows without a name are, by all that ``node`` knows."""
        strange, named = self.strange[node].merged.memory, self._named(node)
        if self.discoverer is None or not len(strange):
            return Aliases({})
        state = (self.memory(node).revision, strange.revision, tuple(sorted(named.items())))
        kept = self._aliases.get(node)
        if kept is None or kept[0] != state:
            found = self.discoverer.aliases(self.memory(node), strange, named)
            kept = self._aliases[node] = state, found
        return kept[1]

    def _named(self, node: int) -> dict[int, int]:
        return {row: int(name) for row, name in self.namings[node].names.items()}

    def _contribute(
        self, mine: Node, node: int, memory: PrototypeMemory, names: Mapping[int, str]
    ) -> None:
        author = _author(node)
        number = len(mine.letters.get(author, ())) + 1
        # The first is all that its author has seen, which opens the count.
        kind: Kind = "full" if number == 1 else "delta"
        contribution = Contribution(memory, author, number, kind, names)
        records = encode(contribution, self.precision)
        mine.read([Letter(author, *records, mine.empty)])

    def merge(self, meetings: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """See :class:`Learner`; bytes of the serialised messages."""
        up = down = 0
        for sender, receiver in meetings:
            there = self._send(sender, receiver)
            if SERVER in (sender, receiver):
                up, down = (up, down + there) if sender == SERVER else (up + there, down)
            else:
                up += there + self._send(receiver, sender)
        return up, down

    def predict(self, node: int, features: Tensor) -> Tensor:
        """See :class:`Learner`."""
        if self.discoverer is not None and len(self.strange[node].merged.memory):
            return self.predict_openly(node, features)
        return self.head.fit(self.memory(node)).predict(features)

    def predict_openly(self, node: int, features: Tensor) -> Tensor:
        """See :class:`Learner`; by evidence."""
        if self.discoverer is None:
            return super().predict_openly(node, features)
        memory, strange = self.memory(node), self.strange[node].merged.memory
        return self.discoverer.predict(memory, strange, self.aliases(node), features)

    def known_scores(self, node: int, features: Tensor) -> dict[str, Tensor]:
        """All scores that the memory allows, and what a Bayesian head says."""
        memory = self.memory(node)
        scores = known_scores(memory, features, self.base)
        if isinstance(self.head, BayesianPrototypes):
            self.head.fit(memory)
            scores["bayesian"] = 1 - self.head.unknown_probability(features)
            scores["log_density"] = self.head.log_density(features)
        return scores

    def memory(self, node: int) -> PrototypeMemory:
        """What ``node`` knows."""
        return self.nodes[node].merged.memory

    def state_bytes(self, node: int) -> int:
        """See :class:`Learner`; without the letters, which only gossip has to keep."""
        strange = self.strange[node].merged.memory
        return self.memory(node).nbytes + (strange.nbytes if len(strange) else 0)

    def _send(self, sender: int, receiver: int) -> int:
        """Pass on what the receiver lacks; the bytes of the message."""
        letters = []
        for kept in (self.nodes, self.strange):
            news = kept[sender].news_for(kept[receiver])
            kept[receiver].read(news)
            letters += news
        self.namings[receiver] |= self.namings[sender]
        return _size(letters)


def _author(node: int) -> str:
    return "server" if node == SERVER else f"client-{node}"


def _size(letters: Sequence[Letter]) -> int:
    from flwr.app import RecordDict

    from protocl.federation.wire.compat import content_bytes

    content = RecordDict()
    for number, letter in enumerate(letters):
        content[f"arrays-{number}"] = letter.arrays
        content[f"header-{number}"] = letter.header
    return content_bytes(content) if letters else 0
