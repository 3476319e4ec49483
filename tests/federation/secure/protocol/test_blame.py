"""Who is named for what, whatever hostile parties say of others."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from protocl.federation.secure.protocol.blame import Blame


def named(complaints: dict[int, set[int]], colluders: int) -> set[int]:
    blame = Blame()
    blame.judge(complaints, colluders, attempt=1)
    return blame.left_out(2)


def test_of_whom_many_complain_is_named_alone() -> None:
    assert named({2: {9}, 3: {9}, 4: {9}}, colluders=2) == {9}
    assert named({9: {2, 3, 4}}, colluders=2) == {9}, "or who complains of many"
    assert named({2: {9}}, colluders=2) == {2, 9}, "of one and one, nobody can tell"
    assert named({2: {2}}, colluders=2) == set()
    assert named({}, colluders=2) == set()


@settings(max_examples=50)
@given(st.data())
def test_hostile_parties_take_no_more_honest_ones_with_them(data: st.DataObject) -> None:
    """Honest parties have disputes with hostile ones only; every dispute is settled."""
    hostile = set(range(data.draw(st.integers(0, 4))))
    parties = range(12)
    complaints: dict[int, set[int]] = {}
    for one in parties:
        others = st.sets(st.sampled_from(sorted(hostile if one not in hostile else parties)))
        complaints[one] = data.draw(others) - {one} if hostile else set()
    out = named(complaints, colluders=len(hostile))
    assert len(out - hostile) <= len(out & hostile)
    for one, others in complaints.items():
        assert all(one in out or other in out for other in others)


def test_who_is_named_again_is_left_out_for_longer() -> None:
    blame = Blame()
    blame.name(7, "first", attempt=1)
    assert [7 in blame.left_out(n) for n in (1, 2, 3)] == [True, True, False]
    blame.name(7, "second", attempt=3)
    assert [7 in blame.left_out(n) for n in (4, 5, 6)] == [True, True, False]
    blame.name(8, "proven", attempt=1, proven=True)
    assert 8 in blame.left_out(10**9)
    assert blame.reasons == {7: "second", 8: "proven"}


def play(spoilers: set[int], size: int, attempts: int) -> tuple[Blame, list[bool]]:
    """Sums of ``size`` parties, of three at least, in which spoilers spoil all that they are in."""
    blame, good = Blame(), []
    for attempt in range(1, attempts + 1):
        asked = blame.to_ask(set(range(size)) - blame.left_out(attempt), attempt, fewest=3)
        good.append(not spoilers.intersection(asked))
        if good[-1]:
            blame.succeeded(asked)
        else:
            blame.dropped(asked, attempt)
    return blame, good


@settings(max_examples=30)
@given(st.integers(6, 40), st.data())
def test_who_spoils_every_sum_is_found_in_log2_of_them(size: int, data: st.DataObject) -> None:
    spoiler = data.draw(st.integers(0, size - 1))
    blame, _ = play({spoiler}, size, attempts=3 + math.ceil(math.log2(size)))
    assert spoiler in blame.reasons
    assert len(blame.reasons) <= 3, "others are named where sums must be of three"
    blame, good = play({spoiler}, size, attempts=100)
    assert max(blame._times, key=blame._times.__getitem__) == spoiler
    assert sum(good) > 70, "it stops ever fewer sums"


def test_several_spoilers_do_not_stop_all_sums() -> None:
    for spoilers in ({2, 8}, {0, 1, 2}):
        blame, good = play(spoilers, size=10, attempts=200)
        assert spoilers <= set(blame.reasons)
        assert sum(good) > 120


def test_where_all_are_needed_nobody_is_named() -> None:
    blame = Blame()
    for attempt in range(1, 5):
        blame.dropped({1, 2, 3}, attempt)
    assert blame.suspects == {1, 2, 3}
    assert not blame.reasons
