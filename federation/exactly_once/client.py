"""The client's side: which contributions it must still send, under which lives and numbers.

A client's state has *lives*. Within one, named by a random epoch, contributions are numbered, and
only one process makes them: a state that another process takes up (after a restart, from a
snapshot, as a copy) goes on in a new life, which says up to which number it shares those of the
lives before it. So two contributions with the same epoch and number are the same.

A life belongs to the node that began it. To go on at another one a client shows a secret of its
own, which it sends to a node's first contact only; the server keeps its hash.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from protocl.federation.exactly_once.release import Release

Kind = Literal["delta", "full", "merged"]

MAX_PENDING = 8
"""Contributions that wait to be settled; more are replaced by the full state."""

MAX_LIVES = 16
"""Earlier lives that a contribution names at most."""


class Label(Protocol):
    """What a contribution says of itself."""

    @property
    def epoch(self) -> str:
        """Random text that stands for one life of the client's state."""

    @property
    def seq(self) -> int:
        """Number of the contribution within the life, from 1."""

    @property
    def kind(self) -> Kind:
        """``"delta"`` is added; ``"full"`` replaces what the client contributed before."""

    @property
    def replaces(self) -> tuple[str, ...]:
        """The lives before this one, newest last."""

    @property
    def shares(self) -> tuple[int, ...]:
        """Of the last of ``replaces``: up to which number its contributions are this life's too."""

    @property
    def secret(self) -> str:
        """What only the client knows, where it must be shown; else ""."""

    @property
    def moves(self) -> int:
        """Number of the release that the server has found to be good; 0 where none was shown."""

    @property
    def row(self) -> bool:
        """Whether it is all that an edge has of its clients, who may leave and be forgotten."""


class Settled(NamedTuple):
    """What a client need not send again.

    Attributes:
        epoch: the life in which it was last heard; "" where nothing was heard of it.
        seq: number of the last contribution of that life that is settled; 0 for none.
        samples: how many samples the client has contributed in all.
    """

    epoch: str
    seq: int
    samples: int


def name_of_life(epoch: str) -> str:
    """What stands for a life in books that others may read: its contributions cannot be made of it.

    >>> name_of_life("")
    ''
    """
    return hashlib.sha256(epoch.encode()).hexdigest()[:16] if epoch else ""


def lock_of(secret: str) -> str:
    """The hash by which a secret is known again."""
    return hashlib.sha256(secret.encode()).hexdigest()


def shared_numbers(replaces: tuple[str, ...], shares: tuple[int, ...]) -> dict[str, int]:
    """Earlier life -> up to which number its contributions are those of the present one."""
    return dict(zip(reversed(replaces), reversed(shares), strict=False))


class Pending(NamedTuple):
    """A contribution that is not settled.

    Attributes:
        seq: its number.
        kind: ``"delta"`` or ``"full"``.
        samples: how many are in it.
    """

    seq: int
    kind: Kind
    samples: int


@dataclass
class Life:
    """The present life of a client's state.

    Attributes:
        epoch: random text that names it.
        seq: number of the last contribution made, in this life or before.
        replaces: the lives before it, newest last; of many the first and the newest.
        shares: see :class:`.Label`.
        samples: that the client's state covers.
        pending: contributions that are not settled, oldest first.
        server: the server's state that was heard of last.
        acknowledged: the highest number that it had settled.
        secret: random text that shows whose life it is; the same in all lives of the client.
        proves: whether it must be shown: the server does not know this client at this node.
        edge: name of the edge at which the samples are counted; "" for a server without a name.
        moves: number of the last release by which the client changed its edge.
    """

    epoch: str = field(default_factory=lambda: secrets.token_hex(16))
    seq: int = 0
    replaces: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()
    samples: int = 0
    pending: list[Pending] = field(default_factory=list)
    server: str = ""
    acknowledged: int = 0
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    proves: bool = True
    edge: str = ""
    moves: int = 0

    # -- from the server --------------------------------------------------------------------

    def hear(self, server: str, settled: Settled, prove: bool = True) -> None:
        """Drop what the server has settled, and notice if it or this client was set back.

        Args:
            server: names the server's state; another one after each restore.
            settled: with this client, as far as the server knows.
            prove: whether the server asks who this is.
        """
        self.proves = prove or settled.epoch not in (self.epoch, *self.replaces)
        known = shared_numbers(self.replaces, self.shares) | {self.epoch: self.seq}
        another = server != self.server
        self.server = server
        if settled.epoch not in known:
            self._hear_of_no_number(settled.epoch, another)
        elif settled.seq > known[settled.epoch]:
            self.begin_anew()  # the server has more of that life than this state knows of
        elif settled.seq >= self.acknowledged:
            self._drop(settled)
        elif another:
            self._send_again(settled.seq)
        # Else the request was overtaken by a later one.

    def _hear_of_no_number(self, epoch: str, another: bool) -> None:
        if epoch and self.seq and epoch not in self.replaces:
            self.begin_anew()  # of a life that this state knows nothing of
        elif another and self.acknowledged:
            self._send_again(0)
        # Else the server has not heard of this life yet.

    def _send_again(self, settled: int) -> None:
        self.acknowledged = settled
        self.send_everything()

    def _drop(self, settled: Settled) -> None:
        """Drop what is settled; begin anew where other samples are."""
        self.acknowledged = settled.seq
        self.pending = [p for p in self.pending if p.seq > settled.seq]
        unsettled = sum(p.samples for p in self.pending)
        replaced = any(p.kind == "full" for p in self.pending)
        if not replaced and settled.samples != self.samples - unsettled:
            self.begin_anew()

    # -- lives ------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Go on in a new life: what this state did last, another process or copy may have done."""
        if self.server:  # else it is new, and nobody has it
            self.shares = (*self.shares, self.seq)[1 - MAX_LIVES :]
            self._renew()

    def begin_anew(self) -> None:
        """Send the full state in a new life, which replaces all that was sent before."""
        self._renew()
        self.shares = ()
        self.acknowledged, self.pending = 0, []
        self.send_everything()

    def _renew(self) -> None:
        # The first stays: by it the server knows the client after any number of lives.
        lives = (*self.replaces, self.epoch)
        self.replaces = (*lives[:1], *lives[1:][1 - MAX_LIVES :])
        self.epoch = secrets.token_hex(16)

    def arrive(self, edge: str, release: Release | None = None) -> bool:
        """Come to an edge, and begin anew there where another one released this client.

        Args:
            edge: name of the one that asks.
            release: of the edge at which the samples are counted.

        Returns:
            False where they are counted elsewhere, and this edge must not be sent any.
        """
        if edge == self.edge or not (self.edge and self.seq):
            self.edge = edge
            return True
        names = {name_of_life(life) for life in (self.epoch, *self.replaces)}
        if release is None or release.target != edge or not names.intersection(release.lives):
            return False
        self.edge, self.moves = edge, release.number
        self.begin_anew()
        return True

    # -- to the server ----------------------------------------------------------------------

    def contribute(self, samples: int) -> None:
        """Have new samples to send, in a contribution of their own or with all others."""
        self.samples += samples
        # The first contribution replaces whatever an earlier life of this client sent.
        if self.seq == 0 or len(self.pending) >= MAX_PENDING:
            self.send_everything()
        else:
            self._append("delta", samples)

    def send_everything(self) -> None:
        """Send the full state in place of what is pending."""
        # What has become empty was withdrawn, and replaces what it was.
        contributed = self.samples or self.seq
        if contributed and not (self.pending and self.pending[-1].kind == "full"):
            self.pending = []
            self._append("full", self.samples)

    def restate(self, samples: int) -> None:
        """Send a state that may have shrunk in place of all that was sent: the row of an edge.

        Args:
            samples: that it covers, if none.
        """
        self.samples, self.pending = samples, []
        self._append("full", samples)

    def withdraw(self, samples: int) -> None:
        """Send the full state, even if it is empty, without some that were sent before."""
        self.samples -= samples
        self.pending = []
        self._append("full", self.samples)

    def _append(self, kind: Kind, samples: int) -> None:
        self.seq += 1
        self.pending.append(Pending(self.seq, kind, samples))
