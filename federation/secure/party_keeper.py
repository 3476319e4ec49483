"""The party that a client is in a secure sum, kept between two messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from flwr.app import ConfigRecord, Context

from protocl.federation.client.client import client_name
from protocl.federation.secure.outbox import OffersOnDisk
from protocl.federation.secure.protocol.agreement import Agreement, SecureAggregationError
from protocl.federation.secure.protocol.identity import Signer
from protocl.federation.secure.protocol.participant import Participant
from protocl.federation.secure.protocol.pinned import PinnedParticipant
from protocl.federation.secure.protocol.schemes import Scheme
from protocl.federation.secure.terms import read_agreement, write_agreement

SignerOf = Callable[[Context], Signer]

_PARTY = "protocl-party"


class PartyKeeper:
    """Makes parties under the client's own scheme, and keeps them in its Flower ``Context``.

    Args:
        scheme: who shares with whom; sums under another one are refused.
        signer_of: gives the long-lived identity and the roster that it pins, which then say the
            scheme.
        kept: for what must outlive the process.
    """

    def __init__(
        self, scheme: Scheme, signer_of: SignerOf | None, kept: OffersOnDisk | None
    ) -> None:
        self.scheme = scheme
        self.signer_of = signer_of
        self._kept = kept

    def begin(self, context: Context, identity: int, agreement: Agreement) -> Participant:
        """A party of a new sum.

        Raises:
            SecureAggregationError: the server sums under another scheme.
        """
        party = self._new_party(context, identity, agreement)
        if self._kept is not None:
            self._kept.drop_party(client_name(context))
        return party

    def take_up(self, context: Context, session: str) -> Participant:
        """The party that the client is in the sum ``session``.

        Raises:
            SecureAggregationError: it is in none, or in another one.
        """
        kept = self._recall(context)
        if kept is None or cast(bytes, kept["session"]).hex() != session:
            raise SecureAggregationError(
                "this client is not in this sum: it did not enrol, or was restarted since"
            )
        state = {name: value for name, value in kept.items() if isinstance(value, (bytes, str))}
        identity, agreement = cast(int, kept["identity"]), read_agreement(kept)
        if self.signer_of is None:
            return Participant.restore(identity, agreement, state)
        signer = self.signer_of(context)
        return PinnedParticipant.restore(identity, agreement, state, signer=signer)

    def keep(self, context: Context, party: Participant, *, to_disk: bool = False) -> None:
        """Have the party for the next message; on disk too if a restart must not change it.

        Asked again after one, it must give the very same shares, or none.
        """
        terms = write_agreement(party.agreement)
        record = ConfigRecord({**terms, "identity": party.identity, **party.state()})
        context.state[_PARTY] = record
        if to_disk and self._kept is not None:
            self._kept.save_party(client_name(context), record)

    def _new_party(self, context: Context, identity: int, agreement: Agreement) -> Participant:
        if self.signer_of is not None:
            return PinnedParticipant(identity, agreement, self.signer_of(context))
        if agreement.scheme != self.scheme:
            raise SecureAggregationError(
                f"the server sums under '{agreement.scheme.terms}', this client under "
                f"'{self.scheme.terms}'; give both the same settings"
            )
        return Participant(identity, agreement)

    def _recall(self, context: Context) -> ConfigRecord | None:
        """The party, of an earlier process where this one has none."""
        if _PARTY not in context.state.config_records and self._kept is not None:
            party = self._kept.load_party(client_name(context))
            if party is not None:
                context.state[_PARTY] = ConfigRecord(party)
        return context.state.config_records.get(_PARTY)
