"""Method ``prototypes``: each node's memory is the exact sum of the contributions it heard of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from protocl.config.validation import POSITIVE, ranged
from protocl.errors import ConfigError
from protocl.federation.config import MethodInfo
from protocl.federation.methods.head_settings import HeadSettings
from protocl.federation.reconnaissance.config import Learner, LearnerConfig, LearnerSetup
from protocl.federation.reconnaissance.scenario import SERVER
from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.codec import Precision
from protocl.federation.wire.messages import Contribution, Kind, decode, encode
from protocl.heads.bayesian.head import BayesianPrototypes
from protocl.memory.batch import Level
from protocl.open_world.scores import known_scores

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord
    from torch import Tensor

    from protocl.heads.base import Head
    from protocl.memory import PrototypeMemory


@dataclass
class PrototypesLearnerConfig(HeadSettings, LearnerConfig):
    """Settings of :class:`PrototypeLearner`.

    Attributes:
        exact: merge in fixed point, so that the result does not depend on any order by a bit.
        step: quantisation step of fixed point.
        precision: of what is sent: ``exact``, ``float32``, ``float16`` or ``int8``.
        level: statistics to keep where the head needs fewer, for scores of unknown inputs; they
            are sent as well.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        title="Prototypes", stored="sums of class statistics, and the contributions to pass on"
    )

    name: str = "prototypes"
    exact: bool = True
    step: float = ranged(2.0**-16, POSITIVE)
    precision: Precision = "exact"
    level: Level | None = None

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
        return PrototypeLearner(head, empty, setup.clients, self.precision)


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
    """

    def __init__(
        self, head: Head, empty: PrototypeMemory, clients: int, precision: Precision
    ) -> None:
        self.head = head
        self.empty = empty
        self.precision: Precision = precision
        self.nodes = {node: Node(empty) for node in (SERVER, *range(clients))}

    def learn(self, node: int, features: Tensor, labels: Tensor) -> None:
        """Add a contribution of the samples to what ``node`` knows."""
        mine = self.nodes[node]
        author = _author(node)
        number = len(mine.letters.get(author, ())) + 1
        # The first is all that its author has seen, which opens the count.
        kind: Kind = "full" if number == 1 else "delta"
        memory = self.empty.empty_like().update(features, labels)
        records = encode(Contribution(memory, author, number, kind), self.precision)
        mine.read([Letter(author, *records, self.empty)])

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
        return self.head.fit(self.memory(node)).predict(features)

    def known_scores(self, node: int, features: Tensor) -> dict[str, Tensor]:
        """All scores that the memory allows, and what a Bayesian head says."""
        memory = self.memory(node)
        scores = known_scores(memory, features)
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
        return self.memory(node).nbytes

    def _send(self, sender: int, receiver: int) -> int:
        """Pass on what the receiver lacks; the bytes of the message."""
        letters = self.nodes[sender].news_for(self.nodes[receiver])
        self.nodes[receiver].read(letters)
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
