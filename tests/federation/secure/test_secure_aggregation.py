"""Secure sums: exact, whoever leaves, and of use to nobody who lacks a mask."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from protocl import PrototypeMemory
from protocl.checks import assert_same, sample_batch
from protocl.federation.privacy.prg import KeyStream
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.secure.protocol.aggregator import Aggregator
from protocl.federation.secure.protocol.agreement import (
    Agreement,
    SecureAggregationError,
    TooFewNewError,
)
from protocl.federation.secure.protocol.keys import (
    ComplaintError,
    Delivery,
    Revealed,
    pairwise_mask,
)
from protocl.federation.secure.protocol.participant import Participant
from protocl.memory.batch import LEVELS
from tests.federation.secure.parties import InProcessChannel, secure_sum

Vector = NDArray[np.int64]


def agreement(size: int = 8, invited: int = 10) -> Agreement:
    return Agreement(bytes(range(16)), "layout", size, invited)


def random_vectors(parties: int, size: int = 8, seed: int = 0) -> dict[int, Vector]:
    rng = np.random.default_rng(seed)
    return {
        int(i) + 1: rng.integers(-(2**40), 2**40, size)
        for i in rng.permutation(3 * parties)[:parties]
    }


def until_masked(vectors: Mapping[int, Vector]) -> tuple[Aggregator, InProcessChannel]:
    """A sum just before step 4."""
    terms = agreement(len(next(iter(vectors.values()))), len(vectors))
    aggregator, channel = Aggregator(terms), InProcessChannel(vectors)
    roster = aggregator.enrol(channel.advertise(terms), channel.new)
    for party, masked in channel.mask(aggregator.deliver(channel.share(roster))):
        aggregator.add(party, masked)
    return aggregator, channel


# -- exactness ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_equals_the_plain_merge_bit_for_bit(level: str) -> None:
    memories = {}
    for client in range(1, 10):
        features, labels = sample_batch(6, samples=20, seed=client)
        keep = labels != 1000 if client % 2 else labels != 0
        kept = features[keep] - 2, labels[keep]
        memories[client] = PrototypeMemory(6, level, exact=True).update(*kept)  # type: ignore[arg-type]
    layout = StatisticsLayout(memories[1], [0, 3, 7, 41, 77, 1000])
    channel = InProcessChannel(
        {c: layout.pack(m) for c, m in memories.items()},
        leave={"share": [2], "mask": [9], "unmask": [5]},
    )
    total, survivors = secure_sum(Agreement.new(layout, invited=9), channel)
    assert survivors == [1, 3, 4, 5, 6, 7, 8]
    plain = reduce(
        PrototypeMemory.merge, (memories[s] for s in survivors), memories[1].empty_like()
    )
    assert_same(layout.unpack(total), plain, "secure sum")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_third_may_leave_anywhere(data: st.DataObject) -> None:
    vectors = random_vectors(data.draw(st.integers(4, 12), "parties"), size=3)
    order = data.draw(st.permutations(sorted(vectors)), "order")
    leaving = order[: len(vectors) // 3]
    steps = [data.draw(st.sampled_from(["share", "mask", "unmask"])) for _ in leaving]
    leave = {s: [p for p, q in zip(leaving, steps, strict=True) if q == s] for s in set(steps)}
    total, survivors = secure_sum(agreement(3, 12), InProcessChannel(vectors, leave))
    gone = {p for p, s in zip(leaving, steps, strict=True) if s != "unmask"}
    assert survivors == sorted(set(vectors) - gone)
    np.testing.assert_array_equal(total, sum(vectors[s] for s in survivors))


@pytest.mark.parametrize("step", ["share", "mask", "unmask"])
def test_more_than_a_third_ends_the_sum(step: str) -> None:
    vectors = random_vectors(9)
    leaving = sorted(vectors)[:4]
    with pytest.raises(SecureAggregationError, match=r"5 of 9 parties .*: 6 are needed"):
        secure_sum(agreement(), InProcessChannel(vectors, {step: leaving}))


def test_largest_vectors_add_up() -> None:
    """The stated bound is safe on both sides, and one more is refused."""
    terms = agreement(size=2, invited=5)
    extreme = np.array([terms.largest, -terms.largest])
    total, _ = secure_sum(terms, InProcessChannel(dict.fromkeys(range(1, 6), extreme)))
    assert total.tolist() == [5 * terms.largest, -5 * terms.largest]
    assert 5 * (terms.largest + 1) >= 2**63
    for value in (terms.largest + 1, -terms.largest - 1, -(2**63)):
        too_large = {i: np.array([value, 0]) for i in range(1, 6)}
        with pytest.raises(OverflowError, match="at most 1844674407370955161 with 5 parties"):
            secure_sum(terms, InProcessChannel(too_large))


# -- secrecy --------------------------------------------------------------------------------


def test_what_the_server_receives_is_uniform() -> None:
    """Masked zeros and masked ones look alike: all bytes equally frequent, nothing correlated."""
    for value in (0, 1):
        terms = agreement(20_000, 3)
        channel = InProcessChannel({i: np.full(20_000, value) for i in (1, 2, 3)})
        aggregator = Aggregator(terms)
        roster = aggregator.enrol(channel.advertise(terms), channel.new)
        masked = dict(channel.mask(aggregator.deliver(channel.share(roster))))
        for words in masked.values():
            counts = np.bincount(words.view(np.uint8), minlength=256)
            assert chisquare(counts).pvalue > 1e-6
        signs = np.stack([words.view(np.int64) > 0 for words in masked.values()]) * 2.0 - 1
        # The sum of all is not zero, but any two are independent: |r| < 5 / sqrt(N).
        assert np.abs(np.corrcoef(signs) - np.eye(3)).max() < 5 / np.sqrt(20_000)


def test_server_holds_no_vector_of_a_party() -> None:
    """All that the server object refers to, serialised, has no party's numbers in it."""
    vectors = random_vectors(6)
    aggregator, channel = until_masked(vectors)
    for state in (pickle.dumps(aggregator), pickle.dumps(aggregator.roster)):
        for vector in vectors.values():
            assert not any(vector[i : i + 1].tobytes() in state for i in range(len(vector)))
    # The control: the check does find the one vector that the server is meant to learn.
    total = aggregator.unmask(channel.unmask(aggregator))
    np.testing.assert_array_equal(total, sum(vectors.values()))
    assert total[:1].tobytes() in pickle.dumps((aggregator, total))


def test_one_missing_mask_hides_the_sum() -> None:
    """Without the own mask of one survivor, what remains is that mask, not the sum."""
    vectors = random_vectors(4)
    aggregator, channel = until_masked(vectors)
    *others, last = sorted(vectors)
    remaining = aggregator._total.copy()
    for party in others:
        KeyStream(channel.parties[party]._seed).add_to(remaining, negative=True)
    assert not (remaining.view(np.int64) == sum(vectors.values())).any()
    KeyStream(channel.parties[last]._seed).add_to(remaining, negative=True)
    np.testing.assert_array_equal(remaining.view(np.int64), sum(vectors.values()))


def test_pairwise_masks_agree_and_depend_on_the_session() -> None:
    terms = agreement()
    one, other = Participant(1, terms), Participant(2, terms)
    mine = pairwise_mask(one._masking, other.advertise().masking, terms).words(8)
    keys = one.advertise().masking
    np.testing.assert_array_equal(mine, pairwise_mask(other._masking, keys, terms).words(8))
    for changed in (replace(terms, session=bytes(16)), replace(terms, layout_digest="another")):
        assert not (mine == pairwise_mask(other._masking, keys, changed).words(8)).any()


def test_one_share_below_the_threshold_fails() -> None:
    vectors = random_vectors(6)
    aggregator, channel = until_masked(vectors)
    replies = channel.unmask(aggregator)
    needed = aggregator.agreement.threshold(6)
    chosen = dict(list(replies.items())[: needed - 1])
    with pytest.raises(SecureAggregationError, match="3 of 6 parties gave their shares: 4"):
        aggregator.unmask(chosen)
    # Enough answers, one of which lacks one share.
    party = sorted(vectors)[0]
    chosen = dict(list(replies.items())[:needed])
    first = next(iter(chosen))
    aggregator, channel = until_masked(vectors)
    chosen = {p: r for p, r in channel.unmask(aggregator).items() if p in chosen}
    shares = {p: s for p, s in chosen[first].seeds.items() if p != party}
    chosen[first] = Revealed(shares, {})
    with pytest.raises(SecureAggregationError, match="3 of 6 parties gave their shares: 4"):
        aggregator.unmask(chosen)
    assert aggregator.refused == {first: "it gave other shares than were dealt to it"}


def with_wrong_shares(replies: dict[int, Revealed], liar: int) -> dict[int, Revealed]:
    wrong = {
        p: bytes([share[0], share[1] ^ 1]) + share[2:] for p, share in replies[liar].seeds.items()
    }
    return {**replies, liar: Revealed(wrong, {})}


def test_wrong_shares_are_noticed_and_done_without(caplog: pytest.LogCaptureFixture) -> None:
    vectors = random_vectors(4)
    aggregator, channel = until_masked(vectors)
    replies = channel.unmask(aggregator)
    liar, *others, last = sorted(replies)
    answers = with_wrong_shares(replies, liar)
    with pytest.raises(SecureAggregationError, match="2 of 4 parties gave their shares: 3"):
        aggregator.unmask({p: answers[p] for p in (liar, *others)})
    assert aggregator.waiting_for == sorted((liar, last))
    total = aggregator.unmask({last: answers[last]})
    np.testing.assert_array_equal(total, sum(vectors.values()))
    assert f"{liar} is left out: it gave other shares" in caplog.text


# -- how few may have something new ---------------------------------------------------------


def test_parties_count_for_themselves_who_has_something_new() -> None:
    """Whatever the server says, they give neither vectors nor shares for too few."""
    vectors = random_vectors(7)
    names = sorted(vectors)
    for idle, leave, message in (
        (names[:4], {}, "3 of those who enrolled have something new, 4 are needed"),
        (names[:3], {"share": names[-1:]}, "3 of those who shared"),
        (names[:3], {"mask": names[-1:]}, "3 of those who sent a vector"),
    ):
        with pytest.raises(TooFewNewError, match=message):
            secure_sum(agreement(8, 7), InProcessChannel(vectors, leave, idle))
    total, survivors = secure_sum(agreement(8, 7), InProcessChannel(vectors, idle=names[:3]))
    np.testing.assert_array_equal(total, sum(vectors[p] for p in survivors))


def test_a_server_that_does_not_count_gets_nothing() -> None:
    vectors = random_vectors(7)
    names = sorted(vectors)
    channel = InProcessChannel(vectors, idle=names[:4])
    aggregator = Aggregator(agreement(8, 7))
    roster = aggregator.enrol(channel.advertise(aggregator.agreement), new=names)
    deliveries = aggregator.deliver(channel.share(roster))
    for party in names:
        with pytest.raises(TooFewNewError, match="3 of those who shared"):
            channel.parties[party].mask(vectors[party], deliveries[party])

    channel = InProcessChannel(vectors, idle=names[:3])
    aggregator = Aggregator(agreement(8, 7))
    roster = aggregator.enrol(channel.advertise(aggregator.agreement), channel.new)
    for party, masked in channel.mask(aggregator.deliver(channel.share(roster))):
        aggregator.add(party, masked)
    without_one_of_the_new = names[:-1]
    for party in without_one_of_the_new:
        with pytest.raises(TooFewNewError, match="3 of those who sent a vector"):
            channel.parties[party].unmask(without_one_of_the_new)
    # What was refused told nothing, so the right question is still answered.
    total = aggregator.unmask({p: channel.parties[p].unmask(names) for p in names})
    np.testing.assert_array_equal(total, sum(vectors.values()))


@pytest.mark.parametrize(
    ("colluders", "enrolled", "new"),
    [(0, 3, 3), (0, 4, 3), (0, 6, 3), (0, 7, 4), (0, 10, 5), (1, 10, 3), (6, 10, 8)],
)
def test_two_more_than_may_collude_must_have_something_new(
    colluders: int, enrolled: int, new: int
) -> None:
    terms = replace(agreement(), colluders=colluders)
    terms.require_new(new, enrolled, "enrolled")
    with pytest.raises(TooFewNewError, match=f"{new} are needed"):
        terms.require_new(new - 1, enrolled, "enrolled")


def test_colluders_who_could_join_all_secrets_are_refused() -> None:
    terms = replace(agreement(), colluders=4)
    with pytest.raises(SecureAggregationError, match=r"colluders=4 of 6 .* expected 3 at most"):
        terms.require_new(6, 6, "enrolled")
    with pytest.raises(ValueError, match="colluders=-1"):
        replace(agreement(), colluders=-1)


# -- what a party refuses -------------------------------------------------------------------


def test_shares_are_given_for_one_set_of_survivors() -> None:
    """A server that asks again, with other survivors, would learn both secrets of a party."""
    aggregator, channel = until_masked(random_vectors(6))
    survivors = aggregator.require_survivors()
    party = channel.parties[survivors[0]]
    given = party.unmask(survivors)
    restored = Participant.restore(party.identity, party.agreement, party.state())
    assert party.unmask(survivors) == given == restored.unmask(survivors)
    with pytest.raises(SecureAggregationError, match="each step once"):
        party.unmask(survivors[:-1])


def test_never_both_secrets_of_one_party() -> None:
    vectors = random_vectors(6)
    gone = sorted(vectors)[2]
    terms = agreement(8, 6)
    channel = InProcessChannel(vectors, {"mask": [gone]})
    aggregator = Aggregator(terms)
    roster = aggregator.enrol(channel.advertise(terms), channel.new)
    for party, masked in channel.mask(aggregator.deliver(channel.share(roster))):
        aggregator.add(party, masked)
    for revealed in channel.unmask(aggregator).values():
        assert set(revealed.keys) == {gone}
        assert set(revealed.seeds) == set(vectors) - {gone}


def test_party_refuses_to_unmask_a_few() -> None:
    aggregator, channel = until_masked(random_vectors(6))
    survivors = aggregator.require_survivors()
    with pytest.raises(SecureAggregationError, match="3 of 6 parties sent a vector: 4"):
        channel.parties[survivors[0]].unmask(survivors[:3])
    with pytest.raises(SecureAggregationError, match="expected party"):
        channel.parties[survivors[1]].unmask(survivors[2:])


def test_party_checks_roster_and_seals() -> None:
    terms = agreement(8, 4)
    parties = {i: Participant(i, terms) for i in (1, 2, 3)}
    roster = {i: party.advertise() for i, party in parties.items()}
    stranger = Participant(9, terms).advertise()
    for wrong, message in (
        ({2: roster[2], 3: roster[3]}, "not in the roster"),
        ({**roster, 1: stranger}, "not in the roster"),
        ({1: roster[1], 2: roster[2]}, "2 parties enrolled"),
        ({**roster, 3: roster[2]}, "same key"),
        ({**roster, 3: replace(roster[3], sealing=bytes(32))}, r"keys of \[3\] are none"),
    ):
        party = Participant(1, terms)
        party._masking, party._sealing = parties[1]._masking, parties[1]._sealing
        party.advertise()
        with pytest.raises(SecureAggregationError, match=message):
            party.share(wrong, new=True)
    dealt = {i: party.share(roster, new=True) for i, party in parties.items()}
    sealed = {i: dealing.sealed[1] for i, dealing in dealt.items() if i != 1}
    promised = {i: dealing.commitments[1] for i, dealing in dealt.items() if i != 1}
    tampered = sealed[2][:-1] + bytes([sealed[2][-1] ^ 1])
    swapped = {2: promised[3], 3: promised[2]}
    for received, named in (
        (Delivery({**sealed, 2: tampered}, promised), {2}),
        (Delivery({**sealed, 2: sealed[2][:-1]}, promised), {2}),
        (Delivery({**sealed, 2: b""}, promised), {2}),
        (Delivery({2: sealed[3], 3: sealed[2]}, promised), {2, 3}),
        (Delivery(sealed, swapped), {2, 3}),
        (Delivery(sealed, {2: promised[2]}), {3}),
    ):
        party = Participant(1, terms)
        party.__dict__.update(parties[1].__dict__)
        with pytest.raises(ComplaintError, match="not sealed by") as complaint:
            party.mask(np.zeros(8, dtype=np.int64), received)
        assert complaint.value.senders == named


def test_server_refuses_what_it_did_not_ask_for() -> None:
    vectors = random_vectors(4)
    aggregator, _ = until_masked(vectors)
    before = aggregator._total.copy()
    with pytest.raises(SecureAggregationError, match="not expected"):
        aggregator.add(sorted(vectors)[0], np.zeros(8, dtype=np.uint64))
    with pytest.raises(SecureAggregationError, match="not expected"):
        aggregator.add(99, np.zeros(8, dtype=np.uint64))
    np.testing.assert_array_equal(aggregator._total, before)
    with pytest.raises(SecureAggregationError, match="2 parties enrolled"):
        Aggregator(agreement()).enrol(dict(list(aggregator.roster.items())[:2]), [1])


def test_terms_are_checked() -> None:
    with pytest.raises(ValueError, match="15 bytes"):
        Agreement(bytes(15), "layout", 4, 3)
    with pytest.raises(ValueError, match="size=0"):
        Agreement(bytes(16), "layout", 0, 3)
    with pytest.raises(ValueError, match="invited=2"):
        Agreement(bytes(16), "layout", 4, 2)
    layout = StatisticsLayout(PrototypeMemory(2, exact=True), [1])
    assert Agreement.new(layout, 3).session != Agreement.new(layout, 3).session
    assert Agreement.new(layout, 3).size == 3
