"""Sums with a server that may lie: it invents parties, or tells them of different survivors."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from protocl.errors import ConfigError
from protocl.federation.privacy.prg import KeyStream
from protocl.federation.secure.client import ProtectedClient
from protocl.federation.secure.identities import SimulatedIdentities
from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.protocol.agreement import Agreement, SecureAggregationError
from protocl.federation.secure.protocol.identity import (
    MEMBER_BYTES,
    SIGNATURE_BYTES,
    Roster,
    Signer,
    new_private_key,
    public_key,
)
from protocl.federation.secure.protocol.keys import (
    ComplaintError,
    Delivery,
    PublicKeys,
    adds_mask,
    pairwise_mask,
)
from protocl.federation.secure.protocol.participant import Participant
from protocl.federation.secure.protocol.pinned import PinnedParticipant
from protocl.federation.secure.protocol.schemes import COMPLETE, Pinned, Scheme
from protocl.federation.secure.protocol.shamir import SHARE_BYTES, SharingError, join_shares
from protocl.federation.secure.strategy import ProtectedPrototypes
from protocl.federation.secure.terms import write_agreement
from tests.federation.secure.parties import (
    InProcessChannel,
    private_keys,
    roster_of,
    secure_sum,
)
from tests.federation.secure.test_secure_attacks import Federation

SIZE = 4


def terms(scheme: Scheme, parties: int) -> Agreement:
    return Agreement(bytes(16), "layout", SIZE, parties, 0, scheme)


def vectors(parties: int) -> dict[int, np.ndarray]:
    return {i: np.arange(SIZE) + 10**i for i in range(1, parties + 1)}


# -- how many may leave ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "may_leave"), [(3, 0), (4, 1), (5, 1), (6, 1), (7, 2), (9, 2), (10, 3), (128, 42)]
)
def test_fewer_may_leave(members: int, may_leave: int) -> None:
    scheme = Pinned(members, "digest")
    assert scheme.may_leave == may_leave
    assert scheme.threshold() == 2 * members // 3 + 1
    # No two lists can both be signed by t, with fewer than a third who sign both.
    assert scheme.most_colluders(members) >= (members - 1) // 3
    assert 2 * scheme.threshold() > members + scheme.most_colluders(members)


@pytest.mark.parametrize("step", ["share", "mask", "agree", "unmask"])
def test_one_of_six_may_leave_anywhere(step: str) -> None:
    roster = roster_of(6)
    channel = InProcessChannel(vectors(6), {step: [2]}, roster=roster)
    total, survivors = secure_sum(terms(roster.scheme, 6), channel)
    assert survivors == [i for i in range(1, 7) if i != 2 or step in ("agree", "unmask")]
    np.testing.assert_array_equal(total, sum(vectors(6)[i] for i in survivors))


def test_of_three_none_may_leave_and_the_message_says_so() -> None:
    roster = roster_of(3)
    for step, did in (
        ("share", "shared"),
        ("mask", "sent a vector"),
        ("agree", "signed the list of survivors"),
        ("unmask", "gave their shares"),
    ):
        channel = InProcessChannel(vectors(3), {step: [2]}, roster=roster)
        message = f"2 of 3 parties {did}: 3 .* of 3 on the pinned roster none may be away"
        with pytest.raises(SecureAggregationError, match=message):
            secure_sum(terms(roster.scheme, 3), channel)


def test_who_is_away_has_left() -> None:
    """Thresholds are of the roster, not of those whom the server says are there."""
    roster = roster_of(9)
    total, _ = secure_sum(terms(roster.scheme, 9), InProcessChannel(vectors(7), roster=roster))
    np.testing.assert_array_equal(total, sum(vectors(7).values()))
    with pytest.raises(SecureAggregationError, match=r"6 of 6 parties enrolled: 7 .* 2 may be"):
        secure_sum(terms(roster.scheme, 9), InProcessChannel(vectors(6), roster=roster))


# -- a server that tells different parties of different survivors -------------------------------


class SplitServer:
    """Asks halves of the honest for shares with different lists; colluders answer both."""

    def __init__(self, channel: InProcessChannel, agreement: Agreement, colluders: int) -> None:
        self.channel, self.agreement = channel, agreement
        self.aggregator = Aggregator(agreement, channel.roster)
        keys = channel.advertise(agreement)
        dealt = channel.share(self.aggregator.enrol(keys, channel.new))
        for party, masked in channel.mask(self.aggregator.deliver(dealt)):  # type: ignore[arg-type]
            self.aggregator.add(party, masked)  # type: ignore[arg-type]
        parties = sorted(channel.parties)
        self.victim, honest = parties[0], parties[: len(parties) - colluders]
        self.colluders = parties[len(honest) :]
        middle = (len(honest) + 1) // 2
        self.halves = honest[:middle], honest[middle:]
        self.lists = parties, [p for p in parties if p != self.victim]

    def shares(self) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Shares of the victim's seed and of its masking key, from whom they can be had."""
        seeds: dict[int, bytes] = {}
        keys: dict[int, bytes] = {}
        for half, survivors in zip(self.halves, self.lists, strict=True):
            signatures = self.signatures(half, survivors)
            for party in half:
                try:
                    given = self.channel.parties[party].unmask(survivors, signatures)
                except SecureAggregationError:
                    continue
                if self.victim in given.seeds:
                    seeds[party] = given.seeds[self.victim]
                else:
                    keys[party] = given.keys[self.victim]
        for party in self.colluders:
            seeds[party], keys[party] = self.channel.parties[party]._shares[self.victim]
        return seeds, keys

    def signatures(self, half: list[int], survivors: list[int]) -> dict[int, bytes]:
        if self.channel.roster is None:
            return {}
        signatures = {}
        for party in (*half, *self.colluders):
            signer = self.channel.parties[party]
            assert isinstance(signer, PinnedParticipant)
            if party in self.colluders:
                signer._step, signer._survivors = "agree", set()  # it signs what it is asked to
            try:
                signatures[party] = signer.agree(survivors)
            except SecureAggregationError:
                continue
        return signatures

    def strips_the_victim(self) -> bool:
        """Whether both secrets of the victim can be joined."""
        threshold = self.agreement.threshold(len(self.channel.parties))
        try:
            return all(join_shares(shares, threshold) for shares in self.shares())
        except SharingError:
            return False


SPLITS = [(3, 1), (6, 2), (9, 3), (12, 4)]
"""Parties, and the colluders with whom a split of the survivors shows single vectors."""


@pytest.mark.parametrize(("parties", "colluders"), SPLITS[1:])
def test_split_survivors_show_a_vector_without_signatures(parties: int, colluders: int) -> None:
    """What the attack shows without the defence: both secrets of one party.

    Of three, the one that is told of two survivors refuses already: they are too few.
    """
    channel = InProcessChannel(vectors(parties))
    assert SplitServer(channel, terms(COMPLETE, parties), colluders).strips_the_victim()


@pytest.mark.parametrize(("parties", "colluders"), SPLITS)
def test_split_survivors_show_nothing_with_signatures(parties: int, colluders: int) -> None:
    roster = roster_of(parties)
    for some in range(1, colluders + 1):
        channel = InProcessChannel(vectors(parties), roster=roster)
        server = SplitServer(channel, terms(roster.scheme, parties), some)
        assert not server.strips_the_victim()


def test_a_party_signs_one_list_and_reveals_for_no_other() -> None:
    roster = roster_of(6)
    channel = InProcessChannel(vectors(6), roster=roster)
    server = SplitServer(channel, terms(roster.scheme, 6), 0)
    parties = {p: q for p, q in channel.parties.items() if isinstance(q, PinnedParticipant)}
    everybody, without = server.lists
    signatures = {p: party.agree(everybody) for p, party in parties.items()}
    assert parties[2].agree(everybody) == signatures[2], "an answer may be lost"
    for refused in (
        lambda: parties[2].agree(without),
        lambda: parties[2].unmask(without, signatures),
        lambda: parties[2].unmask(everybody, dict(list(signatures.items())[:4])),
        lambda: parties[2].unmask(everybody, {**signatures, 5: bytes(64), 6: signatures[1]}),
        lambda: parties[2].unmask(everybody),
    ):
        with pytest.raises(SecureAggregationError):
            refused()
    signer = Signer(private_keys()[1], roster)
    restored = PinnedParticipant.restore(2, parties[2].agreement, parties[2].state(), signer=signer)
    assert restored.unmask(everybody, signatures) == parties[2].unmask(everybody, signatures)


def test_signatures_of_another_sum_or_roster_do_not_count() -> None:
    roster = roster_of(6)
    first = SplitServer(InProcessChannel(vectors(6), roster=roster), terms(roster.scheme, 6), 0)
    again = SplitServer(InProcessChannel(vectors(6), roster=roster), terms(roster.scheme, 6), 0)
    everybody = first.lists[0]
    old = {p: q.agree(everybody) for p, q in first.channel.parties.items()}  # type: ignore[attr-defined]
    party = again.channel.parties[1]
    assert isinstance(party, PinnedParticipant)
    party.agree(everybody)
    with pytest.raises(SecureAggregationError, match="1 parties signed"):
        party.unmask(everybody, {**old, 1: party.agree(everybody)})


# -- a server that invents parties -------------------------------------------------------------


def advertised(members: int, agreement: Agreement) -> tuple[dict[int, Participant], dict]:
    channel = InProcessChannel(vectors(members), roster=roster_of(members))
    return channel.parties, channel.advertise(agreement)


def test_invented_parties_show_a_vector_without_a_roster() -> None:
    """The server plays two of three parties, and the sum of one honest party is its vector."""
    agreement = terms(COMPLETE, 3)
    victim, invented = Participant(1, agreement), [Participant(i, agreement) for i in (2, 3)]
    keys = {p.identity: p.advertise() for p in (victim, *invented)}
    dealt = {p.identity: p.share(keys, new=True) for p in (victim, *invented)}
    received = Delivery(
        {i: dealt[i].sealed[1] for i in (2, 3)}, {i: dealt[i].commitments[1] for i in (2, 3)}
    )
    masked = victim.mask(np.arange(SIZE), received)
    seeds = {1: victim.unmask([1, 2, 3]).seeds[1]}
    for party in invented:
        mine = {1: dealt[1].sealed[party.identity]}, {1: dealt[1].commitments[party.identity]}
        seeds[party.identity] = party._sealer.open_all(Delivery(*mine))[1][0][:SHARE_BYTES]
        mask = pairwise_mask(party._masking, keys[1].masking, agreement)
        mask.add_to(masked, negative=adds_mask(1, party.identity))
    KeyStream(join_shares(seeds, 2)).add_to(masked, negative=True)
    np.testing.assert_array_equal(masked.view(np.int64), np.arange(SIZE))


def test_invented_parties_are_refused() -> None:
    roster = roster_of(6)
    agreement = terms(roster.scheme, 6)
    channel = InProcessChannel(vectors(6), roster=roster)
    keys = channel.advertise(agreement)
    stranger = new_private_key()
    own = Roster({**roster_of(5).members, "invented": public_key(stranger)})
    theirs = PinnedParticipant(6, terms(own.scheme, 6), Signer(stranger, own)).advertise()
    copied = replace(Participant(6, agreement).advertise(), voucher=keys[6].voucher)
    twice = PinnedParticipant(6, agreement, Signer(private_keys()[0], roster)).advertise()
    for entry, message, named in (
        (Participant(6, agreement).advertise(), r"\[6\] are signed by no member", {6}),
        (theirs, r"\[6\] are signed by no member", {6}),
        (copied, r"\[6\] are signed by no member", {6}),
        (twice, r"\[1, 6\] are the same member", {1, 6}),
        (replace(keys[6], voucher=keys[5].voucher), r"\[6\] are signed by no member", {6}),
    ):
        party = channel.party(2, agreement)
        party._sealing, party._masking = channel.parties[2]._sealing, channel.parties[2]._masking
        party.advertise()
        with pytest.raises(ComplaintError, match=message) as complaint:
            party.share({**keys, 6: entry}, new=True)
        assert complaint.value.senders == named


def test_the_server_itself_names_who_is_on_no_roster() -> None:
    roster = roster_of(6)
    agreement = terms(roster.scheme, 6)
    keys = InProcessChannel(vectors(6), roster=roster).advertise(agreement)
    keys[4] = Participant(4, agreement).advertise()
    aggregator = Aggregator(agreement, roster)
    assert set(aggregator.enrol(keys, set(keys))) == {1, 2, 3, 5, 6}
    assert aggregator.refused == {4: "its keys are signed by no member of the pinned roster"}
    # Who says that it is a member, without its signature, takes nobody with it.
    keys[4] = replace(keys[4], voucher=keys[1].voucher[:MEMBER_BYTES] + bytes(SIGNATURE_BYTES))
    aggregator = Aggregator(agreement, roster)
    assert set(aggregator.enrol(keys, set(keys))) == {1, 2, 3, 5, 6}
    assert aggregator.refused.keys() == aggregator.strangers == {4}
    channel = InProcessChannel(vectors(7), roster=roster_of(7))
    agreement = terms(roster_of(7).scheme, 8)
    keys = channel.advertise(agreement)
    twice = PinnedParticipant(8, agreement, Signer(private_keys()[6], roster_of(7)))
    aggregator = Aggregator(agreement, roster_of(7))
    assert set(aggregator.enrol({**keys, 8: twice.advertise()}, set(keys))) == set(range(1, 7))


def test_another_roster_or_scheme_is_refused() -> None:
    pinned = roster_of(6)
    signer = Signer(private_keys()[0], pinned)
    for scheme in (COMPLETE, roster_of(5).scheme, Pinned(3, pinned.digest)):
        with pytest.raises(SecureAggregationError, match="the roster that this party pins"):
            PinnedParticipant(1, terms(scheme, 6), signer)


# -- colluders ---------------------------------------------------------------------------------


def test_all_but_one_of_the_threshold_learn_nothing_of_a_secret() -> None:
    """Every set of t - 1 colluders with the server: their shares fit any secret."""
    roster = roster_of(6)
    channel = InProcessChannel(vectors(6), roster=roster)
    server = SplitServer(channel, terms(roster.scheme, 6), 0)
    threshold = server.agreement.threshold(6)
    for colluders in combinations([2, 3, 4, 5, 6], threshold - 1):
        shares = {p: channel.parties[p]._shares[1][0] for p in colluders}
        with pytest.raises(SharingError, match="4 shares of a secret: 5 are needed"):
            join_shares(shares, threshold)
        made_up = shares | {1: bytes(33)}
        commitment = server.aggregator.roster[1].commitment
        try:
            assert server.agreement.commitment(join_shares(made_up, threshold)) != commitment
        except SharingError:
            continue


# -- rosters -----------------------------------------------------------------------------------


def test_rosters_are_checked() -> None:
    assert roster_of(3).digest == Roster(dict(reversed(roster_of(3).members.items()))).digest
    for members, message in (
        (dict(list(roster_of(3).members.items())[:2]), "2 members: expected 3 to 128"),
        ({str(i): i.to_bytes(32, "big") for i in range(129)}, "129 members"),
        ({"a": bytes(32), "b": bytes(32), "c": bytes(31)}, "different keys of 32 bytes"),
        ({"a": bytes(32), "b": bytes(32), "c": bytes([1] * 32)}, "different keys"),
    ):
        with pytest.raises(ConfigError, match=message):
            Roster(members)
    with pytest.raises(ConfigError, match="is not on the roster"):
        Signer(private_keys()[5], roster_of(4))
    for scheme, length in ((COMPLETE, 192), (COMPLETE, 95), (roster_of(3).scheme, 96)):
        with pytest.raises(SecureAggregationError, match=f"{length} bytes"):
            PublicKeys.from_bytes(bytes(length), terms(scheme, 3))


# -- a server that says that a sum was never opened ---------------------------------------------


def test_what_was_signed_for_is_in_no_second_sum() -> None:
    """Ten clients, of whom three are not asked for shares, though the others opened the sum.

    They could be had in a sum of three and then in one of two; the difference is one vector.
    """
    federation = Federation(10)
    identities = SimulatedIdentities(10)
    federation.client = ProtectedClient(federation.load, federation.layout, signer_of=identities)
    federation.strategy = ProtectedPrototypes(federation.layout, roster=identities.roster, wait=0.0)
    federation.lost = {("unmask", client) for client in (7, 8, 9)}
    assert federation.round() == set(range(10)), "seven open it"
    contexts = federation.grid._contexts.values()
    sessions = [list(c.state.config_records["protocl-span"]["sums"]) for c in contexts]
    assert all(sessions)
    for context, asked in zip(contexts, sessions, strict=True):
        config = {
            "round": 2, "summed": 0, "client": "", "unfinished": asked,
            "layout-digest": federation.layout.digest, "identity": context.node_id - 999,
            **write_agreement(Agreement.new(federation.layout, 10, 0, identities.roster.scheme)),
        }  # fmt: skip
        content = RecordDict({"config": ConfigRecord(config)})
        message = Message(content, dst_node_id=context.node_id, message_type="train.advertise")
        federation.client.advertise(message, context)
        config = {
            "session": bytes(16).hex(),
            "sealed": b"",
            "commitments": b"",
            "unfinished": asked,
        }
        content = RecordDict({"config": ConfigRecord(config)})
        message = Message(content, dst_node_id=context.node_id, message_type="train.mask")
        with pytest.raises(SecureAggregationError, match="in another sum it could be told apart"):
            federation.client.mask(message, context)
