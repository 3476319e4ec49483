"""The server's side of protected federations, as a Flower ``Strategy``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from protocl.errors import ConfigError, ProtoclError
from protocl.federation.privacy.release import (
    NoisyVector,
    PrivateRelease,
    PrivateSum,
    memory_of,
    terms_of,
)
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.secure.aggregator import masked_sum
from protocl.federation.secure.channel import NothingNewError, RoundChannel
from protocl.federation.secure.keys import (
    SMALLEST_GROUP,
    Agreement,
    SecureAggregationError,
)
from protocl.federation.secure.progress import Span, SummedParts
from protocl.federation.secure.unfinished_sum import UnfinishedSum
from protocl.federation.server.resumable import LastingStrategy
from protocl.federation.server.sampling import choose_nodes
from protocl.federation.wire.replies import describe
from protocl.memory import PrototypeMemory
from protocl.memory.summation import overflows

logger = logging.getLogger(__name__)

Vector = NDArray[np.int64]


class ProtectedPrototypes(LastingStrategy):
    """Adds up vectors of statistics that are masked, noisy, or both.

    In every round the clients asked send what they have that is not in the sum; what a client
    sends is summed once, or offered again in a later round. A round adds nothing where too few have
    something new to hide each other, where clients leave, or where the noise does not suffice; it
    waits for a later one, and :attr:`failures` says why. Without noise the merged memory equals the
    plain merge of the same statistics, bit for bit.

    A secure round is four messages to each client, all sent while Flower asks for the messages to
    train. Each vector is in one sum that is unmasked, so the differences of sums tell nothing more.
    A sum is in the checkpoint before its shares are asked for; if they do not come, or the process
    dies, the next round asks for them again before it begins another sum. After
    :data:`.unfinished_sum.PATIENCE` rounds it is given up, and what is in it is
    lost: its vectors can be in no other sum.

    Args:
        layout: the public class list and the kind of memory.
        release: clipping and noise; None for neither. Each sample is in one release, so all
            rounds together cost what one costs.
        secure: use secure aggregation; the server then sees only sums.
        colluders: how many clients may pool what they know with the server; two more must have
            something new for a secure sum. 0 for a third of those who take part less one.
        participation: share of the clients online that is asked in each round, in (0, 1].
        min_clients: clients that must be online before a round begins.
        wait: seconds to wait for them.
        deadline: seconds after which a step goes on without those who have not answered.
        seed: decides who is asked.
        checkpoints: folder to which the sum is written after each round; :meth:`resume` continues
            from there.

    Attributes (and those of :class:`protocl.federation.server.resumable.LastingStrategy`):
        summed: how many parts of each client's data are in the sum, or lost for it.
        unfinished: the sum whose shares were asked for, and did not come yet.
        contributors: round -> how many clients it added.
        failures: round -> why it added nothing.

    Raises:
        PrivacyError: the noise would not protect from the server although it is meant to.
    """

    def __init__(
        self,
        layout: StatisticsLayout,
        release: PrivateRelease | None = None,
        *,
        secure: bool = True,
        colluders: int = 0,
        participation: float = 1.0,
        min_clients: int = 1,
        wait: float = 60.0,
        deadline: float = 3600.0,
        seed: int = 0,
        checkpoints: Path | None = None,
    ) -> None:
        if release is not None:
            release.require_enough(release.contributors, secure=secure)
        super().__init__(checkpoints)
        self.layout = layout
        self.release = release
        self.secure = secure
        self.participation = participation
        self.colluders = colluders
        fewest = max(SMALLEST_GROUP, colluders + 2) if secure else 1
        self.min_clients = max(min_clients, fewest)
        self.wait = wait
        self.deadline = deadline
        self.seed = seed
        self.summed = SummedParts()
        self.unfinished: UnfinishedSum | None = None
        self.contributors: dict[int, int] = {}
        self.failures: dict[int, str] = {}
        self._memory = layout.empty_memory()
        self._total: Vector = np.zeros(layout.size, dtype=np.int64)
        self._noise = 0.0

    @property
    def memory(self) -> PrototypeMemory:
        """The merged memory."""
        return self._memory

    def _take_up(self, state: Mapping[str, Any]) -> None:
        if "unfinished" not in state:
            raise ConfigError(
                "the checkpoint was written by a protocl that kept no unfinished sums; begin in "
                "another folder"
            )
        if state["terms"] != terms_of(self.layout, self.release):
            raise ConfigError(
                "the checkpoint holds a sum of other classes or statistics, or with other noise; "
                "give the settings with which it was begun, or begin in another folder"
            )
        self.summed, self.unfinished = state["summed"], state["unfinished"]
        self.contributors, self.failures = state["contributors"], state["failures"]
        self._hold(state["total"], state["noise"])

    def outcome(self, number: int) -> dict[str, int | str | None]:
        """How many clients a round added, or why none."""
        return {
            "merged": self.contributors.get(number, 0),
            "failure": self.failures.get(number),
            "lost": sum(self.summed.lost.values()),
        }

    # -- Flower calls these -----------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Conduct the whole round."""
        self._begin(server_round)
        spans: Mapping[int, Span] = {}
        try:
            spans = self._secure_round(grid) if self.secure else self._plain_round(grid)
        except NothingNewError:
            pass
        except (ProtoclError, OverflowError) as error:
            self.failures[self.round] = str(error)
            logger.warning("round %d added nothing: %s", self.round, error)
        self.summed.add(spans)
        self.contributors[self.round] = len(spans)
        self._save(finished=self.round)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The metrics of the round."""
        return ArrayRecord(), MetricRecord(
            {
                "merged": self.contributors[self.round],
                "classes": len(self.memory),
                "samples": self.memory.total,
            }
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Clients do not evaluate."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Clients do not evaluate."""
        return None

    def summary(self) -> None:
        """Log how statistics are protected."""
        noise = "no" if self.release is None else self.release.placement
        logger.info("%s sums, %s noise", "secure" if self.secure else "plain", noise)

    # -- a round ----------------------------------------------------------------------------

    def _channel(self, grid: Grid) -> RoundChannel:
        nodes = choose_nodes(
            grid, self.round, self.participation,
            min_clients=self.min_clients, wait=self.wait, seed=self.seed,
        )  # fmt: skip
        return RoundChannel(
            grid, self.round, nodes, self.deadline,
            summed=self.summed, layout=self.layout, least_noise=self._client_share,
            save_summed=self._save_unfinished,
        )  # fmt: skip

    def _secure_round(self, grid: Grid) -> Mapping[int, Span]:
        """Finish the sum whose shares are missing, or conduct one; which parts were added."""
        if self.unfinished is not None:
            return self._finish(self.unfinished, grid)
        channel = self._channel(grid)
        agreement = Agreement.new(self.layout, len(channel.nodes), self.colluders)
        unfinished = UnfinishedSum.of(masked_sum(agreement, channel), channel)
        if self.release is not None:
            self.release.require_enough(unfinished.contributors, secure=True)
        self.unfinished = unfinished
        self.summed.spend(unfinished.spans)
        return self._finish(unfinished, grid)

    def _finish(self, unfinished: UnfinishedSum, grid: Grid) -> Mapping[int, Span]:
        """Ask for the shares of a sum and add it.

        Raises:
            SecureAggregationError: not enough of them came, or the sum cannot be added, so that it
                is given up.
        """
        unfinished.rounds += 1
        self._save_unfinished()  # before the shares are asked for
        aggregator = unfinished.aggregator
        revealed = unfinished.channel(grid, self.round, self.deadline).unmask(aggregator)
        try:
            total = aggregator.unmask(revealed)
        except SecureAggregationError:
            if unfinished.hopeless:
                self._give_up(unfinished)
            raise
        try:
            self._accept([(total, unfinished.noise, unfinished.contributors)])
        except Exception as error:  # the sum is of what others sent
            self._give_up(unfinished)
            raise SecureAggregationError(f"the sum makes no sense: {describe(error)}") from error
        self.unfinished = None
        return unfinished.spans

    def _give_up(self, unfinished: UnfinishedSum) -> None:
        self.unfinished = None
        losers = self.summed.lose(unfinished.spans)
        logger.warning(
            "a secure sum is given up; what %d clients had new in it is in no sum", losers
        )

    def _plain_round(self, grid: Grid) -> Mapping[int, Span]:
        channel = self._channel(grid)
        vectors = channel.collect()
        if vectors:
            self._accept([(vector, channel.noise[i], 1) for i, vector in vectors.items()])
        return {channel.nodes[i - 1]: channel.spans[i] for i in vectors}

    @property
    def _client_share(self) -> Fraction:
        return Fraction(0) if self.release is None else self.release.client_share

    def _accept(self, sums: list[tuple[Vector, Fraction, int]]) -> None:
        """Add sums of vectors, with their noise shares and numbers of contributors."""
        total, noise = self._total, self._noise
        if self.release is None:
            for vector, _, _ in sums:
                total = _added(total, vector)
        else:
            private = PrivateSum(self.release)
            for vector, share, contributors in sums:
                private.add_total(NoisyVector(vector, self.layout.digest, share), contributors)
            total = _added(total, private.finish())
            noise += private.noise_variance
        self._hold(total, noise)

    def _hold(self, total: Vector, noise: float) -> None:
        """Have ``total`` for the sum, in which there is the noise of ``noise`` releases."""
        self._memory = (
            self.layout.unpack(total)
            if self.release is None
            else memory_of(self.release, total, noise)
        )
        self._total, self._noise = total, noise

    # -- books ------------------------------------------------------------------------------

    def _save_unfinished(self) -> None:
        self._save(finished=self.round - 1)

    def _state(self) -> dict[str, Any]:
        return {
            "terms": terms_of(self.layout, self.release),
            "total": self._total,
            "noise": self._noise,
            "summed": self.summed,
            "unfinished": self.unfinished,
            "contributors": self.contributors,
            "failures": self.failures,
        }


def _added(total: Vector, vector: Vector) -> Vector:
    if overflows(torch.from_numpy(total), torch.from_numpy(vector)):
        raise OverflowError("the sum over all rounds exceeds 64 bits; use a larger step")
    return total + vector
