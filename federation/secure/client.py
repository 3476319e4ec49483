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
from protocl.federation.privacy.release import PrivateRelease, terms_of
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.secure.keys import (
    Agreement,
    PublicKeys,
    SecureAggregationError,
    join_entries,
    split_entries,
)
from protocl.federation.secure.outbox import Offer, OffersOnDisk, new_identity
from protocl.federation.secure.participant import SEALED_BYTES, Participant
from protocl.federation.wire.npy import array_of

STEPS = ("advertise", "share", "mask", "unmask")

_PARTY = "protocl-party"
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
        party = Participant(cast(int, config["identity"]), agreement)
        keys = party.advertise()
        if self._kept is not None:
            self._kept.drop_party(client_name(context))
        _keep(context, party)
        return _reply(message, {**self._offer(context), "keys": keys.to_bytes()})

    def share(self, message: Message, context: Context) -> Message:
        """Step 2 of a sum: deal shares of the own secrets."""
        offer = self._held(context)

        def step(party: Participant, config: ConfigRecord) -> Reply:
            roster = split_entries(cast(bytes, config["roster"]), PublicKeys.BYTES)
            keys = {i: PublicKeys.from_bytes(entry) for i, entry in roster.items()}
            sealed = party.share(keys, new=offer.new)
            return {"sealed": join_entries(sealed)}

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
            received = split_entries(cast(bytes, config["sealed"]), SEALED_BYTES)
            arrays["masked"] = array_of(party.mask(offer.vector, received).view(np.int64))
            session = party.agreement.session.hex()
            self._hold(context, replace(offer, sums=(*offer.sums, session)))
            return {}

        return self._continue(message, context, step, arrays, to_disk=True)

    def unmask(self, message: Message, context: Context) -> Message:
        """Step 4; the same shares again if the server asks once more, as it does if they got lost.

        The vector is spent with it: it may be in no other sum, whatever the server says later.
        """
        offer = self._held(context)

        def step(party: Participant, config: ConfigRecord) -> Reply:
            survivors = split_entries(cast(bytes, config["survivors"]), 0)
            if self.release is not None:
                self.release.require_enough(len(survivors), secure=True)
            revealed = party.unmask(survivors)
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
        kept = self._party(context)
        if kept is None or cast(bytes, kept["session"]).hex() != config["session"]:
            raise SecureAggregationError(
                "this client is not in this sum: it did not enrol, or was restarted since"
            )
        secrets = {name: value for name, value in kept.items() if isinstance(value, (bytes, str))}
        party = Participant.restore(cast(int, kept["identity"]), read_agreement(kept), secrets)
        answer = step(party, config)
        _keep(context, party)
        if to_disk and self._kept is not None:
            # Asked again after a restart, it must give the very same shares, or none.
            self._kept.save_party(client_name(context), context.state.config_records[_PARTY])
        return _reply(message, answer, arrays)

    def _party(self, context: Context) -> ConfigRecord | None:
        """This client's party, of an earlier process where this one has none."""
        if _PARTY not in context.state.config_records and self._kept is not None:
            party = self._kept.load_party(client_name(context))
            if party is not None:
                context.state[_PARTY] = ConfigRecord(party)
        return context.state.config_records.get(_PARTY)

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
        """The vector of these parts, and whether there are samples of listed classes in them."""
        # Beginning with no samples, for those clients that have none.
        nothing = torch.zeros(0, self.layout.feature_dim), torch.zeros(0, dtype=torch.int64)
        parts = [nothing, *((x, shared_labels(y, data)) for x, y in data.chunks[start:end])]
        features, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        listed = torch.isin(labels.cpu(), torch.tensor(self.layout.classes))
        if not bool(listed.all()):
            logger.warning("%d samples of classes that are not listed", int((~listed).sum()))
            features, labels = features[listed], labels[listed]
        new = bool(listed.any())
        if self.release is not None:
            return self.release.contribution(features, labels).vector, new
        return self.layout.pack(self.layout.empty_memory().update(features, labels)), new

    def _require_layout(self, digest: str) -> None:
        if digest != self.layout.digest:
            raise SecureAggregationError(
                "the server sums other classes or another kind of memory than this client; give "
                "both the same settings and the same backbone"
            )


def write_agreement(agreement: Agreement) -> Reply:
    """The terms as entries of a ``ConfigRecord``."""
    return {
        "session": agreement.session,
        "layout-digest": agreement.layout_digest,
        "size": agreement.size,
        "invited": agreement.invited,
        "colluders": agreement.colluders,
    }


def read_agreement(config: ConfigRecord) -> Agreement:
    """Read the agreement that :func:`write_agreement` wrote."""
    return Agreement(
        cast(bytes, config["session"]),
        str(config["layout-digest"]),
        cast(int, config["size"]),
        cast(int, config["invited"]),
        cast(int, config["colluders"]),
    )


def _put(context: Context, offer: Offer) -> None:
    context.state[_VECTOR] = ArrayRecord({"vector": array_of(offer.vector)})
    context.state[_SPAN] = ConfigRecord({**offer.span, "sums": list(offer.sums)})


def _unfinished(message: Message) -> list[str]:
    """The sums that lack this client's vector, as the server says."""
    return cast(list[str], message.content.config_records["config"]["unfinished"])


def _keep(context: Context, party: Participant) -> None:
    context.state[_PARTY] = ConfigRecord(
        {**write_agreement(party.agreement), "identity": party.identity, **party.state()}
    )


def _reply(message: Message, answer: Reply, arrays: ArrayRecord | None = None) -> Message:
    content = RecordDict({"answer": ConfigRecord(answer)})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, reply_to=message)
