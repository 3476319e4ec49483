"""Which client a node is, and what of it is settled.

A client numbers its contributions within a random epoch, which lives as long as its state on disk,
and repeats each until the server has settled it: has merged it, that is, or something that stands
for it. Hence ``(epoch, seq)`` tells a repeated contribution from a new one even where a restarted
node comes back under another node id.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, NamedTuple

from protocl.federation.wire.messages import Contribution, Received
from protocl.federation.wire.validation import RejectedError


class Settled(NamedTuple):
    """What a client need not send again.

    Attributes:
        epoch: of the client; "" where nothing was heard of it.
        seq: number of the last contribution of that epoch that is settled; 0 for none.
        samples: how many samples the client has contributed in all.
    """

    epoch: str
    seq: int
    samples: int


class KnownClients:
    """The clients that were heard of, under whichever node and in whichever epoch.

    Attributes:
        contributors: clients of which something was merged.
        forgotten: clients of which nothing more is accepted.
        wants_full: nodes whose next contribution must be their full state.
        refused: node -> why its last contribution was not merged, and until when that holds.
    """

    def __init__(self) -> None:
        self.contributors: set[str] = set()
        self.forgotten: set[str] = set()
        self.wants_full: set[str] = set()
        self.refused: dict[str, str] = {}
        self._settled: Counter[str] = Counter()  # of an epoch never heard of nothing is
        self._samples: Counter[str] = Counter()
        self._owners: dict[str, str] = {}
        self._lives: dict[str, tuple[str, ...]] = {}
        self._heard: dict[str, str] = {}
        self._homes: dict[str, str] = {}

    # -- questions --------------------------------------------------------------------------

    def terms_for(self, node: str) -> dict[str, str | int | bool]:
        """What a request says to a node of what the server knows of it."""
        settled = self.settled_of(node)
        return {
            "epoch": settled.epoch,
            "settled": settled.seq,
            "samples": settled.samples,
            "refused": self.refused.get(node, ""),
            "forgotten": self.is_forgotten(node),
            # Of a client never heard of, which may be known to an earlier server.
            "full": not settled.epoch or node in self.wants_full,
        }

    def settled_of(self, node: str) -> Settled:
        """What is settled with a node; of the epoch that it was last heard in."""
        epoch = self._heard.get(node, "")
        return Settled(epoch, self._settled[epoch], self._samples[self._owners.get(epoch, node)])

    def is_settled(self, epoch: str, seq: int) -> bool:
        """Whether a contribution was merged, or something that stands for it."""
        return seq <= self._settled[epoch]

    def is_forgotten(self, node: str) -> bool:
        """Whether nothing more is accepted from the client that a node is."""
        return (self._client_at(node) or node) in self.forgotten

    def client_of(self, contribution: Contribution | Received, node: str) -> str:
        """The client of this life, or of the newest before it that is known; else a new one.

        A client that lost its state is known by its node, as long as it is not another node since:
        then who is that node now is somebody else, and takes no name that the other one has.
        """
        lives = (contribution.epoch, *reversed(contribution.replaces))
        known = next((self._owners[life] for life in lives if life in self._owners), None)
        client = known or self._client_at(node) or node
        if known is None and self._homes.get(client, node) != node:
            return f"{node}-{contribution.epoch[:8]}"
        return client

    def _client_at(self, node: str) -> str | None:
        """The client that was last heard at a node, unless it was heard elsewhere since."""
        client = self._owners.get(self._heard.get(node, ""))
        return client if client is not None and self._homes.get(client) == node else None

    def require_sequence(
        self, contribution: Contribution | Received, client: str, node: str, *, replaceable: bool
    ) -> None:
        """Refuse what does not follow what is settled.

        Args:
            contribution: not settled yet.
            client: whose it is.
            node: that sent it.
            replaceable: whether what a client contributed can be replaced by its full state.

        Raises:
            RejectedError: the client was forgotten, or the contribution does not follow.
        """
        if client in self.forgotten:
            raise RejectedError("forgotten", f"client '{client}' was forgotten")
        if contribution.kind == "full":
            if not replaceable and client in self.contributors:
                raise RejectedError(
                    "sequence",
                    f"client '{client}' sends its full state again, which cannot replace what it "
                    "contributed: contributions are not kept",
                )
            return
        expected = self._settled[contribution.epoch] + 1
        if expected == 1 or contribution.seq != expected:
            self.wants_full.add(node)
            raise RejectedError(
                "sequence",
                f"delta {contribution.seq} of client '{client}' does not follow what is settled "
                f"({expected - 1}); its full state is asked for",
            )

    # -- news -------------------------------------------------------------------------------

    def hear(self, node: str, client: str, epoch: str) -> None:
        """Note where a client is now, and in which epoch."""
        self._heard[node], self._homes[client] = epoch, node

    def settle(
        self, contribution: Contribution | Received, client: str, node: str, samples: int
    ) -> None:
        """Note a contribution that was merged, of a number of samples."""
        epoch = contribution.epoch
        if contribution.kind == "full":
            # All that earlier lives of the client could still send is replaced now.
            for earlier in self._lives.get(client, ()):
                self._settled[earlier] = sys.maxsize
            self._samples[client] = 0
        if epoch not in self._owners:
            self._owners[epoch] = client
            self._lives[client] = (*self._lives.get(client, ()), epoch)
        self._settled[epoch] = contribution.seq
        self._samples[client] += samples
        self.hear(node, client, epoch)
        self.wants_full.discard(node)
        self.refused.pop(node, None)
        self.contributors.add(client)

    def refuse(self, node: str, epoch: str, reason: str) -> str:
        """Note why a contribution was not merged, for its sender; the client that it is of."""
        self.refused[node] = reason
        return self._owners.get(epoch, node)

    # -- checkpoints ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, for :meth:`restore`."""
        return dict(vars(self))

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        vars(self).update(state)
