"""The server's side of protected federations, as a Flower ``Strategy``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from protocl.errors import ConfigError, ProtoclError
from protocl.federation.privacy.plausible import SumCheck
from protocl.federation.privacy.release import PrivateRelease, terms_of
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.secure.naming import name_offenders, without_named
from protocl.federation.secure.progress import Span, SummedParts
from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.protocol.agreement import (
    SMALLEST_GROUP,
    Agreement,
    SecureAggregationError,
    TooFewNewError,
)
from protocl.federation.secure.protocol.blame import Blame
from protocl.federation.secure.protocol.identity import Roster
from protocl.federation.secure.protocol.masked_sum import masked_sum
from protocl.federation.secure.protocol.opening import FalseDealerError
from protocl.federation.secure.protocol.schemes import COMPLETE, Scheme
from protocl.federation.secure.round_channel import NothingNewError, RoundChannel
from protocl.federation.secure.running_sum import RunningSum, added
from protocl.federation.secure.unfinished_sum import UnfinishedSum
from protocl.federation.server.resumable import LastingStrategy
from protocl.federation.server.sampling import choose_nodes
from protocl.federation.server.unasked import ServerEvaluates
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.replies import describe, reading
from protocl.memory import PrototypeMemory

logger = logging.getLogger(__name__)


class ProtectedPrototypes(ServerEvaluates, LastingStrategy):
    """Adds up vectors of statistics that are masked, noisy, or both.

    In every round the clients asked send what they have that is not in the sum; what a client
    sends is summed once, or offered again in a later round. A round adds nothing where too few have
    something new to hide each other, where clients leave, or where the noise does not suffice; it
    waits for a later one, and :attr:`failures` says why. Without noise the merged memory equals the
    plain merge of the same statistics, bit for bit.

    A secure round is four messages to each client (five where clients sign), all sent while Flower
    asks for the messages to train. Each vector is in one sum that is unmasked, so the differences
    of sums tell nothing more.
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
        scheme: who shares with whom in a secure sum.
        roster: which all parties pin; it then says the scheme.
        limits: what one client's statistics may be at most. A vector, or a sum of vectors, that is
            beyond them is dropped, not added.
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
        blame: who stopped or spoilt sums.

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
        scheme: Scheme = COMPLETE,
        roster: Roster | None = None,
        limits: Limits | None = None,
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
        self.scheme = scheme if roster is None else roster.scheme
        self.roster = roster
        self.participation = participation
        self.colluders = colluders
        self._fewest = 1
        if secure:
            members = 0 if roster is None else roster.scheme.threshold()
            self._fewest = max(SMALLEST_GROUP, colluders + 2, members)
        self.min_clients = max(min_clients, self._fewest)
        self.wait = wait
        self.deadline = deadline
        self.seed = seed
        self.summed = SummedParts()
        self.unfinished: UnfinishedSum | None = None
        self.contributors: dict[int, int] = {}
        self.failures: dict[int, str] = {}
        self.blame = Blame()
        self._check = SumCheck(layout, release, limits or Limits())
        self._sum = RunningSum(layout, release)

    @property
    def memory(self) -> PrototypeMemory:
        """The merged memory."""
        return self._sum.memory

    def _take_up(self, state: Mapping[str, Any]) -> None:
        if "blame" not in state:
            raise ConfigError(
                "the checkpoint was written by a protocl that did not name who stops sums; begin "
                "in another folder"
            )
        if state["terms"] != terms_of(self.layout, self.release):
            raise ConfigError(
                "the checkpoint holds a sum of other classes or statistics, or with other noise; "
                "give the settings with which it was begun, or begin in another folder"
            )
        self.summed, self.unfinished = state["summed"], state["unfinished"]
        self.contributors, self.failures = state["contributors"], state["failures"]
        self.blame = state["blame"]
        self._sum.take_up(state["total"], state["noise"])

    @property
    def named(self) -> dict[int, str]:
        """Round -> who stopped or spoilt a sum in it, and how."""
        return {
            number: "; ".join(f"client {node}: {why}" for node, why in sorted(named.items()))
            for number, named in self.blame.named.items()
        }

    def outcome(self, number: int) -> dict[str, int | str | None]:
        """How many clients a round added, or why none, and who is to blame."""
        return {
            "merged": self.contributors.get(number, 0),
            "failure": self.failures.get(number),
            "named": self.named.get(number),
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

    def summary(self) -> None:
        """Log how statistics are protected."""
        noise = "no" if self.release is None else self.release.placement
        if not self.secure:
            logger.info("plain sums, %s noise", noise)
            return
        # A graph is for those who trust the server to keep to the protocol, and they must know.
        logger.log(
            logging.INFO if self.scheme.counts else logging.WARNING,
            "secure sums (secure=%s) against %s%s; %s noise",
            self.scheme.name, self.scheme.against, self.scheme.remark, noise,
        )  # fmt: skip

    # -- a round ----------------------------------------------------------------------------

    def _channel(self, grid: Grid) -> RoundChannel:
        nodes = choose_nodes(
            grid, self.round, self.participation,
            min_clients=self.min_clients, wait=self.wait, seed=self.seed,
            without=self.blame.not_expected(self.round),
        )  # fmt: skip
        asked = without_named(self.blame, nodes, self.round, self._fewest)
        return RoundChannel(
            grid, self.round, asked, self.deadline,
            summed=self.summed, layout=self.layout, least_noise=self._client_share,
            save_summed=self._save_unfinished,
        )  # fmt: skip

    def _secure_round(self, grid: Grid) -> Mapping[int, Span]:
        """Finish the sum whose shares are missing, or conduct one; which parts were added."""
        if self.unfinished is not None:
            return self._finish(self.unfinished, grid)
        channel = self._channel(grid)
        agreement = Agreement.new(self.layout, len(channel.nodes), self.colluders, self.scheme)
        aggregator = Aggregator(agreement, self.roster)
        try:
            masked_sum(aggregator, channel)
        except SecureAggregationError as error:
            if isinstance(error, TooFewNewError):  # without those set aside they may always be
                self.blame.suspects = frozenset()
            channel.tell_who_failed(error)
            raise
        finally:
            name_offenders(self.blame, aggregator, channel, self.round)
        unfinished = UnfinishedSum.of(aggregator, channel)
        if self.release is not None:
            honest = unfinished.contributors - agreement.colluding(len(aggregator.roster))
            self.release.require_enough(honest, secure=True)
        self.unfinished = unfinished
        self.summed.spend(unfinished.spans)
        return self._finish(unfinished, grid)

    def _finish(self, unfinished: UnfinishedSum, grid: Grid) -> Mapping[int, Span]:
        """Ask for the shares of a sum, and before for signatures where parties sign; add it.

        Raises:
            SecureAggregationError: not enough of them came, or the sum cannot be added, so that it
                is given up.
        """
        unfinished.rounds += 1
        self._save_unfinished()  # before the shares are asked for
        aggregator = unfinished.aggregator
        channel = unfinished.channel(grid, self.round, self.deadline)
        try:
            if self.roster is not None:
                aggregator.collect(channel.agree(aggregator))
                self._save_unfinished()  # signatures are asked for once
            total = aggregator.unmask(channel.unmask(aggregator))
        except FalseDealerError as error:
            self.blame.name(channel.nodes[error.dealer - 1], str(error), self.round, proven=True)
            self._give_up(unfinished)
            raise
        except SecureAggregationError as error:
            channel.tell_who_failed(error)
            if unfinished.hopeless:
                self._give_up(unfinished)
            raise
        finally:
            name_offenders(self.blame, aggregator, channel, self.round)
        try:
            self._check.require_possible(total, unfinished.contributors)
            self._sum.add([(total, unfinished.noise, unfinished.contributors)])
        except Exception as error:  # the sum is of what others sent
            self.blame.dropped(unfinished.spans, self.round)
            self._give_up(unfinished)
            raise SecureAggregationError(
                f"the sum is dropped, not added, for it is out of range: {describe(error)}"
            ) from error
        self.blame.succeeded(unfinished.spans)
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
        spans, sums, total = {}, [], self._sum.total
        for i, vector in channel.collect().items():
            node = channel.nodes[i - 1]
            with reading(f"the vector of client {node}"):
                self._check.require_possible(vector)
                total = added(total, vector)
                sums.append((vector, channel.noise[i], 1))
                spans[node] = channel.spans[i]
        if sums:
            self._sum.add(sums)
        return spans

    @property
    def _client_share(self) -> Fraction:
        return Fraction(0) if self.release is None else self.release.client_share

    # -- books ------------------------------------------------------------------------------

    def _save_unfinished(self) -> None:
        self._save(finished=self.round - 1)

    def _state(self) -> dict[str, Any]:
        return {
            "terms": terms_of(self.layout, self.release),
            "total": self._sum.total,
            "noise": self._sum.noise,
            "summed": self.summed,
            "unfinished": self.unfinished,
            "contributors": self.contributors,
            "failures": self.failures,
            "blame": self.blame,
        }
