"""The client's side of protected federations: it sends vectors with masks, noise, or both."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from protocl.federation.client.client import ClientData, Loader, client_name, shared_labels
from protocl.federation.privacy.plausible import SumCheck
from protocl.federation.privacy.release import PrivateRelease, terms_of
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.secure.outbox import Offer, OffersOnDisk, new_identity
from protocl.federation.secure.party_keeper import PartyKeeper
from protocl.federation.secure.protocol.agreement import SecureAggregationError
from protocl.federation.secure.protocol.identity import SIGNATURE_BYTES, Signer
from protocl.federation.secure.protocol.keys import (
    COMMITMENT_BYTES,
    ComplaintError,
    Delivery,
    PublicKeys,
    join_entries,
    split_entries,
)
from protocl.federation.secure.protocol.participant import Participant
from protocl.federation.secure.protocol.pinned import PinnedParticipant
from protocl.federation.secure.protocol.schemes import COMPLETE, Scheme
from protocl.federation.secure.protocol.sealing import SEALED_BYTES
from protocl.federation.secure.terms import read_agreement
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.npy import array_of

STEPS = ("advertise", "share", "mask", "agree", "unmask")

_VECTOR = "protocl-vector"
_SPAN = "protocl-span"

Reply = dict[str, Any]

logger = logging.getLogger(__name__)


class ProtectedClient:
    """Answers the messages of :class:`protocl.federation.secure.strategy.ProtectedPrototypes`.

    What the client sends of its data is decided here, not by the server: the class list, clipping
    and noise are its own settings, and a server with others is refused. Secrets stay in Flower's
    ``Context.state``, which does not leave the node; a node that loses it drops out of the sum.
    Flower keeps it no longer than a run: where samples must not be released twice by two runs,
    give a folder to ``keep``.

    Args:
        load: gives the client's features and labels.
        layout: the public class list and the kind of memory.
        release: clipping and noise; None for neither.
        secure: send masked vectors only.
        colluders: as for the server; give a vector only where two more have something new.
        scheme: who shares with whom; a server that sums under another one is refused.
        signer_of: gives the party's long-lived identity and the roster that it pins, which then
            say the scheme.
        limits: of what this client sends; what is beyond the server's would spoil a sum.
        keep: folder for what was offered last, so that a restarted node or another run goes on.
    """

    def __init__(
        self,
        load: Loader,
        layout: StatisticsLayout,
        release: PrivateRelease | None = None,
        *,
        secure: bool = True,
        colluders: int = 0,
        scheme: Scheme = COMPLETE,
        signer_of: Callable[[Context], Signer] | None = None,
        limits: Limits | None = None,
        keep: Path | None = None,
    ) -> None:
        if release is not None:
            release.require_enough(release.contributors, secure=secure)
        self.load = load
        self.layout = layout
        self.release = release
        self.secure = secure
        self.colluders = colluders
        self._kept = None if keep is None else OffersOnDisk(keep, terms_of(layout, release))
        self._check = SumCheck(layout, release, limits or Limits())
        self._parties = PartyKeeper(scheme, signer_of, self._kept)

    def app(self) -> ClientApp:
        """The ClientApp; the same for simulation and deployment."""
        app = ClientApp()
        if not self.secure:
            app.train()(self.send)
            return app
        for step in STEPS:
            app.train(step)(getattr(self, step))
        return app

    # -- messages ---------------------------------------------------------------------------

    def send(self, message: Message, context: Context) -> Message:
        """The vector of what is new, without masks."""
        if not self._prepare(message, context):
            return _reply(message, {})
        return _reply(message, self._offer(context), context.state.array_records[_VECTOR])

    def advertise(self, message: Message, context: Context) -> Message:
        """Step 1 of a secure sum. Clients with nothing new add zeros, so that others can go on.

        Raises:
            SecureAggregationError: the sum is of other terms than this client's.
        """
        agreement = read_agreement(message.content.config_records["config"])
        if agreement.colluders != self.colluders:
            raise SecureAggregationError(
                f"the server counts on {agreement.colluders} colluders, this client on "
                f"{self.colluders}; give both the same settings"
            )
        self._prepare(message, context)
        config = message.content.config_records["config"]
        party = self._parties.begin(context, cast(int, config["identity"]), agreement)
        keys = party.advertise()
        self._parties.keep(context, party)
        return _reply(message, {**self._offer(context), "keys": keys.to_bytes()})

    def share(self, message: Message, context: Context) -> Message:
        """Step 2 of a sum: deal shares of the own secrets."""
        offer = self._held(context)

        def step(party: Participant, config: ConfigRecord) -> Reply:
            roster = split_entries(cast(bytes, config["roster"]), PublicKeys.size(party.agreement))
            keys = {i: PublicKeys.from_bytes(entry, party.agreement) for i, entry in roster.items()}
            dealing = party.share(keys, new=offer.new, enrolled=cast(int, config["enrolled"]))
            return {
                "sealed": join_entries(dealing.sealed),
                "commitments": join_entries(dealing.commitments),
            }

        return self._continue(message, context, step)

    def mask(self, message: Message, context: Context) -> Message:
        """Step 3 of a sum: send the masked vector.

        Raises:
            SecureAggregationError: the vector was given for a sum before, of which this server
                knows nothing.
        """
        offer, arrays = self._held(context), ArrayRecord()
        if not offer.is_free(_unfinished(message)):
            raise SecureAggregationError(
                "this client's newest vector was given for a sum of which this server knows "
                "nothing; in another sum it could be told apart"
            )

        def step(party: Participant, config: ConfigRecord) -> Reply:
            received = Delivery(
                split_entries(cast(bytes, config["sealed"]), SEALED_BYTES),
                split_entries(cast(bytes, config["commitments"]), COMMITMENT_BYTES),
            )
            arrays["masked"] = array_of(party.mask(offer.vector, received).view(np.int64))
            session = party.agreement.session.hex()
            self._hold(context, replace(offer, sums=(*offer.sums, session)))
            return {}

        return self._continue(message, context, step, arrays, to_disk=True)

    def agree(self, message: Message, context: Context) -> Message:
        """Between steps 3 and 4, with a pinned roster: sign the list of survivors.

        The vector is spent with it: once enough have signed, a server that lies could have the sum
        opened by others, and say that it was not.
        """
        offer = self._held(context)

        def step(party: Participant, config: ConfigRecord) -> Reply:
            if not isinstance(party, PinnedParticipant):
                raise SecureAggregationError("this client pins no roster, and signs nothing")
            survivors = split_entries(cast(bytes, config["survivors"]), 0)
            signature = party.agree(survivors)
            self._hold(context, replace(offer, spent=True))
            return {"identity": party.identity, "signature": signature}

        return self._continue(message, context, step, to_disk=True)

    def unmask(self, message: Message, context: Context) -> Message:
        """Step 4; the same shares again if the server asks once more, as it does if they got lost.

        The vector is spent with it: it may be in no other sum, whatever the server says later.
        """
        offer = self._held(context)

        def step(party: Participant, config: ConfigRecord) -> Reply:
            survivors = split_entries(cast(bytes, config["survivors"]), 0)
            signatures = split_entries(cast(bytes, config["signatures"]), SIGNATURE_BYTES)
            if self.release is not None and party.agreement.scheme.counts:
                honest = len(survivors) - party.agreement.colluding(party.enrolled)
                self.release.require_enough(honest, secure=True)
            revealed = party.unmask(survivors, signatures)
            self._hold(context, replace(offer, spent=True))
            seeds, keys = join_entries(revealed.seeds), join_entries(revealed.keys)
            return {"identity": party.identity, "seeds": seeds, "keys": keys}

        return self._continue(message, context, step, to_disk=True)

    # -- parts ------------------------------------------------------------------------------

    def _continue(
        self,
        message: Message,
        context: Context,
        step: Callable[[Participant, ConfigRecord], Reply],
        arrays: ArrayRecord | None = None,
        *,
        to_disk: bool = False,
    ) -> Message:
        """One step of the sum that this client's party is in."""
        config = message.content.config_records["config"]
        party = self._parties.take_up(context, str(config["session"]))
        try:
            answer = step(party, config)
        except ComplaintError as complaint:
            # This party takes no further part in the sum; its state is as before.
            logger.warning("%s", complaint)
            return _reply(message, {"complaint": sorted(complaint.senders)})
        self._parties.keep(context, party, to_disk=to_disk)
        return _reply(message, answer, arrays)

    def _prepare(self, message: Message, context: Context) -> bool:
        """Have the vector of what is not summed yet in the state; False if there is nothing new.

        A vector that was made before and did not get into a sum is kept as it is: fresh noise on
        the same samples would be a second release. What arrived since waits for its turn. After one
        that was given to a sum which this server does not have, what follows is offered.
        """
        config = message.content.config_records["config"]
        self._require_layout(str(config["layout-digest"]))
        start = cast(int, config["summed"])
        kept = self._recall(context)
        if kept is not None and kept.new and start < kept.end:
            if not self._is_lost(kept, message):
                return True
            start = kept.end
        elif kept is not None:
            start = max(start, kept.start)  # before it is what was given to sums
        data = self.load(context)
        end = max(start, min(cast(int, config["round"]), len(data.chunks)))
        if end > start or self.secure:
            client = new_identity() if kept is None else kept.client
            vector, new = self._contribution(data, start, end)
            self._hold(context, Offer(vector, start, end, client, new))
        return end > start

    def _is_lost(self, offer: Offer, message: Message) -> bool:
        """Whether this server, which knows the client, can never have what was offered."""
        if not self.secure:
            return False
        knows = message.content.config_records["config"]["client"] == offer.client
        return knows and not offer.is_free(_unfinished(message))

    def _recall(self, context: Context) -> Offer | None:
        """The last offer, of an earlier process or run perhaps, which is then in the state."""
        if _SPAN not in context.state.config_records:
            offer = None if self._kept is None else self._kept.load(client_name(context))
            if offer is None:
                return None
            _put(context, offer)
        span: dict[str, Any] = dict(context.state.config_records[_SPAN])
        vector = context.state.array_records[_VECTOR]["vector"].numpy()
        return Offer(vector, **{**span, "sums": tuple(span["sums"])})

    def _held(self, context: Context) -> Offer:
        """The offer that is in the present sum."""
        offer = self._recall(context)
        if offer is None:
            raise SecureAggregationError(
                "this client is in no sum: it did not enrol, or was restarted since"
            )
        return offer

    def _hold(self, context: Context, offer: Offer) -> None:
        """Have ``offer`` in the state, and on disk."""
        if self._kept is not None:
            self._kept.save(client_name(context), offer)
        _put(context, offer)

    def _offer(self, context: Context) -> Reply:
        """What the server is told about the vector: whose and what it is, and its noise."""
        share = Fraction(0) if self.release is None else self.release.client_share
        span = context.state.config_records[_SPAN]
        told = {key: span[key] for key in ("client", "start", "end", "new")}
        return {**told, "noise": [share.numerator, share.denominator]}

    def _contribution(
        self, data: ClientData, start: int, end: int
    ) -> tuple[NDArray[np.int64], bool]:
        """The vector of these parts, and whether there are samples of listed classes in them.

        Raises:
            RejectedError: it is beyond the limits.
        """
        # Beginning with no samples, for those clients that have none.
        nothing = torch.zeros(0, self.layout.feature_dim), torch.zeros(0, dtype=torch.int64)
        parts = [nothing, *((x, shared_labels(y, data)) for x, y in data.chunks[start:end])]
        features, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        listed = torch.isin(labels.cpu(), torch.tensor(self.layout.classes))
        if not bool(listed.all()):
            left_out = int((~listed).sum())
            logger.warning("%d samples left out: their classes are not listed", left_out)
            features, labels = features[listed], labels[listed]
        new = bool(listed.any())
        if self.release is not None:
            return self.release.contribution(features, labels).vector, new
        vector = self.layout.pack(self.layout.empty_memory().update(features, labels))
        self._check.require_possible(vector)
        return vector, new

    def _require_layout(self, digest: str) -> None:
        if digest != self.layout.digest:
            raise SecureAggregationError(
                "the server sums other classes or another kind of memory than this client; give "
                "both the same settings and the same backbone"
            )


def _put(context: Context, offer: Offer) -> None:
    context.state[_VECTOR] = ArrayRecord({"vector": array_of(offer.vector)})
    context.state[_SPAN] = ConfigRecord({**offer.span, "sums": list(offer.sums)})


def _unfinished(message: Message) -> list[str]:
    """The sums that lack this client's vector, as the server says."""
    return cast(list[str], message.content.config_records["config"]["unfinished"])


def _reply(message: Message, answer: Reply, arrays: ArrayRecord | None = None) -> Message:
    content = RecordDict({"answer": ConfigRecord(answer)})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, reply_to=message)
