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

from protocl.accumulate import overflows
from protocl.errors import ConfigError, ProtoclError
from protocl.federation.choosing import choose_nodes
from protocl.federation.flower_channel import FlowerChannel, NothingNewError
from protocl.federation.lasting import LastingStrategy
from protocl.federation.layout import StatisticsLayout
from protocl.federation.private_release import (
    NoisyVector,
    PrivateRelease,
    PrivateSum,
    memory_of,
    terms_of,
)
from protocl.federation.secure_aggregation import secure_sum
from protocl.federation.secure_agreement import SMALLEST_GROUP, Agreement
from protocl.federation.summed_parts import SummedParts
from protocl.memory import PrototypeMemory

logger = logging.getLogger(__name__)

Vector = NDArray[np.int64]


class ProtectedPrototypes(LastingStrategy):
    """Adds up vectors of statistics that are masked, noisy, or both.

    In every round the clients asked send what they have that is not in the sum; what a client
    sends is summed once, or offered again in a later round. A round whose secure sum fails, or
    whose noise does not suffice, adds nothing. Without noise the merged memory equals the plain
    merge of the same statistics, bit for bit.

    A secure round is four messages to each client, all sent while Flower asks for the messages to
    train. Each vector is in one sum that is unmasked, so the differences of sums tell nothing more:
    a client gives it for a second one only if the server says that it lacks the first.

    Args:
        layout: the public class list and the kind of memory.
        release: clipping and noise; None for neither. Each sample is in one release, so all
            rounds together cost what one costs.
        secure: use secure aggregation; the server then sees only sums.
        participation: share of the clients online that is asked in each round, in (0, 1].
        min_clients: clients that must be online before a round begins.
        wait: seconds to wait for them.
        deadline: seconds after which a step goes on without those who have not answered.
        seed: decides who is asked.
        checkpoints: folder to which the sum is written after each round; :meth:`resume` continues
            from there.

    Attributes (and those of :class:`protocl.federation.lasting.LastingStrategy`):
        summed: how many parts of each client's data are in the sum.
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
        self.min_clients = max(min_clients, SMALLEST_GROUP if secure else 1)
        self.wait = wait
        self.deadline = deadline
        self.seed = seed
        self.summed = SummedParts()
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
        if state["terms"] != terms_of(self.layout, self.release):
            raise ConfigError(
                "the checkpoint holds a sum of other classes or statistics, or with other noise; "
                "give the settings with which it was begun, or begin in another folder"
            )
        self.summed = state["summed"]
        self.contributors, self.failures = state["contributors"], state["failures"]
        self._hold(state["total"], state["noise"])

    def outcome(self, number: int) -> dict[str, int | str | None]:
        """How many clients a round added, or why none."""
        return {
            "merged": self.contributors.get(number, 0),
            "failure": self.failures.get(number),
        }

    # -- Flower calls these -----------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Conduct the whole round."""
        self._begin(server_round)
        nodes = choose_nodes(
            grid, self.round, self.participation,
            min_clients=self.min_clients, wait=self.wait, seed=self.seed,
        )  # fmt: skip
        channel = FlowerChannel(
            grid, self.round, nodes, self.summed, self.layout.digest, self.deadline,
            lambda: self._save(finished=self.round - 1),
        )  # fmt: skip
        try:
            added = self._secure_round(channel) if self.secure else self._round(channel)
        except NothingNewError:
            added = []
        except (ProtoclError, OverflowError) as error:
            added = []
            self.failures[self.round] = str(error)
            logger.warning("round %d added nothing: %s", self.round, error)
        self.summed.add({nodes[i - 1]: channel.ends[i] for i in added})
        self.contributors[self.round] = len(added)
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

    def _secure_round(self, channel: FlowerChannel) -> list[int]:
        agreement = Agreement.new(self.layout, invited=len(channel.nodes))
        total, survivors = secure_sum(agreement, channel)
        least = min(channel.noise[i] for i in survivors)
        self._accept([(total, least, len(survivors))])
        return survivors

    def _round(self, channel: FlowerChannel) -> list[int]:
        vectors = {}
        for i, vector in channel.collect().items():
            if vector.shape != (self.layout.size,):
                logger.warning("a vector of shape %s from client %d", vector.shape, i)
            elif channel.noise[i] < self._client_share:
                logger.warning("a vector from client %d with too little noise", i)
            else:
                vectors[i] = vector
        if vectors:
            self._accept([(vector, channel.noise[i], 1) for i, vector in vectors.items()])
        return list(vectors)

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
        self._total, self._noise = total, noise
        self._memory = (
            self.layout.unpack(total)
            if self.release is None
            else memory_of(self.release, total, noise)
        )

    # -- books ------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "terms": terms_of(self.layout, self.release),
            "total": self._total,
            "noise": self._noise,
            "summed": self.summed,
            "contributors": self.contributors,
            "failures": self.failures,
        }


def _added(total: Vector, vector: Vector) -> Vector:
    if overflows(torch.from_numpy(total), torch.from_numpy(vector)):
        raise OverflowError("the sum over all rounds exceeds 64 bits; use a larger step")
    return total + vector
