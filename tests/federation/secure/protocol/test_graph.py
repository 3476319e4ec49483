"""Sums in which each party shares with some others: the graph, and what it takes to be good."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from protocl.federation.secure.protocol.agreement import (
    Agreement,
    SecureAggregationError,
    TooFewNewError,
)
from protocl.federation.secure.protocol.graph import (
    _log2_disconnected,
    _safe_threshold,
    circulant,
    sparse_neighbourhood,
)
from protocl.federation.secure.protocol.schemes import COMPLETE, Graph
from tests.federation.secure.parties import InProcessChannel, secure_sum

SIZE = 3


def terms(parties: int, scheme: Graph | None = None, colluders: int = 0) -> Agreement:
    return Agreement(bytes(16), "layout", SIZE, parties, colluders, scheme or Graph())


def vectors(parties: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {i: rng.integers(-(2**40), 2**40, SIZE) for i in range(1, parties + 1)}


# -- the conditions -----------------------------------------------------------------------------


def tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    """``P[X >= least]`` of a hypergeometric variable, exactly."""
    ways = sum(
        comb(marked, x) * comb(population - marked, drawn - x)
        for x in range(least, min(marked, drawn) + 1)
    )
    return Fraction(ways, comb(population, drawn))


def is_good(n: int, k: int, t: int, colluding: int, leaving: int) -> bool:
    """The three conditions in exact arithmetic."""
    if n * tail(n - 1, colluding, k, t) > Fraction(1, 2**41):
        return False
    bad = colluding + leaving
    cut = Fraction(comb(n - k, bad - k), comb(n, bad)) if bad >= k else Fraction(0)
    if cut * n * (n - k - 1) / 2 > Fraction(1, 2**41):
        return False
    return n * (1 - tail(n - 1, n - 1 - leaving, k, t)) <= Fraction(1, 2**30)


@pytest.mark.parametrize(
    ("n", "degree", "threshold"), [(100, 42, 21), (300, 80, 42), (1000, 112, 59)]
)
def test_the_neighbourhood_is_the_smallest_good_one(n: int, degree: int, threshold: int) -> None:
    found = sparse_neighbourhood(n, 0.2, 0.2)
    assert found is not None
    assert (found.degree, found.threshold) == (degree, threshold)
    fifth = n // 5
    assert is_good(n, degree, threshold, fifth, fifth)
    assert not is_good(n, degree, threshold - 1, fifth, fifth)
    assert not any(is_good(n, degree - 2, t, fifth, fifth) for t in range(2, degree - 1))


def joined(stay: set[int], graph: dict[int, frozenset[int]]) -> bool:
    """Whether those who stay are connected among themselves."""
    seen: set[int] = set()
    border = {min(stay)}
    while border:
        seen |= border
        border = {other for party in border for other in graph[party] & stay} - seen
    return seen == stay


@pytest.mark.parametrize(("n", "k", "bad"), [(14, 2, 2), (12, 4, 6), (14, 4, 5), (13, 6, 7)])
def test_each_bound_is_one_of_the_probability_over_all_ways_to_be_bad(
    n: int, k: int, bad: int
) -> None:
    """Counted, not derived: every choice of parties that collude, or leave, on a small circle."""
    graph, everybody = circulant(range(n), k), set(range(n))
    ways = [set(way) for way in itertools.combinations(range(n), bad)]
    cut = sum(not joined(everybody - way, graph) for way in ways) / len(ways)
    bound = 2 ** _log2_disconnected(n, k, bad) * (1 + 1e-9)  # it is computed in logarithms
    assert 0 < cut <= bound <= 4 * cut, "an upper bound, and no loose one"
    for t in range(1, k + 1):
        most = [max(len(graph[p] & way) for p in everybody - way) for way in ways]
        assert np.mean(np.array(most) >= t) <= n * tail(n - 1, bad, k, t)
        least = [min(len(graph[p] - way) for p in everybody - way) for way in ways]
        assert np.mean(np.array(least) < t) <= n * (1 - tail(n - 1, n - 1 - bad, k, t))
    assert _safe_threshold(n, k, bad) == k + 1, "no party of so few is safe but for 2^-41"


def test_few_parties_and_many_colluders_have_no_sparse_graph() -> None:
    for n in (3, 5, 10, 20):
        assert sparse_neighbourhood(n, 0.2, 0.2) is None
        assert Graph().threshold(n) == COMPLETE.threshold(n)
        assert Graph().degree(n) == n - 1
    assert sparse_neighbourhood(60, 0.45, 0.45) is None
    degrees = [sparse_neighbourhood(n, 0.2, 0.2).degree for n in (200, 1000, 10_000)]  # type: ignore[union-attr]
    assert degrees == [68, 112, 136], "it grows with the logarithm of n"


def test_shares_are_checked() -> None:
    for colluding, leaving in ((-0.1, 0.2), (1.0, 0.0), (0.2, 1.2), (0.5, 0.5)):
        with pytest.raises(ValueError, match="expected"):
            Graph(colluding, leaving)


def test_the_graph_is_regular_symmetric_random_and_connected() -> None:
    first, second = circulant(range(1, 101), 42), circulant(range(1, 101), 42)
    assert first != second
    for party, others in first.items():
        assert len(others) == 42
        assert party not in others
        assert all(party in first[other] for other in others)
    rng = random.Random(0)
    for _ in range(20):
        gone = set(rng.sample(range(1, 101), 40))
        left = {p: others - gone for p, others in first.items() if p not in gone}
        seen, border = set(), {next(iter(left))}
        while border:
            seen |= border
            border = set().union(*(left[p] for p in border)) - seen
        assert seen == set(left), "the honest who stay are connected"
        assert min(map(len, left.values())) >= 1


# -- sums ---------------------------------------------------------------------------------------


def test_the_sum_is_exact_whoever_of_a_fifth_leaves() -> None:
    parties, rng = 60, random.Random(1)
    assert Graph().degree(parties) < parties - 1
    gone = rng.sample(range(1, parties + 1), 12)
    leave = {"share": gone[:4], "mask": gone[4:8], "unmask": gone[8:]}
    total, survivors = secure_sum(terms(parties), InProcessChannel(vectors(parties), leave))
    assert survivors == [i for i in range(1, parties + 1) if i not in gone[:8]]
    np.testing.assert_array_equal(total, sum(vectors(parties)[i] for i in survivors))
    leave = {"mask": rng.sample(range(1, parties + 1), 13)}
    with pytest.raises(SecureAggregationError, match="47 of 60 parties sent a vector: 48 are"):
        secure_sum(terms(parties), InProcessChannel(vectors(parties), leave))


def test_the_server_counts_who_has_something_new() -> None:
    parties = 60
    for idle, fails in ((range(1, 48), True), (range(1, 47), False)):
        channel = InProcessChannel(vectors(parties), idle=idle)
        if fails:
            with pytest.raises(TooFewNewError, match=r"13 of those who enrolled .* 14 are needed"):
                secure_sum(terms(parties), channel)
        else:
            secure_sum(terms(parties), channel)
    with pytest.raises(SecureAggregationError, match=r"colluders=13 .* expected 12 at most"):
        secure_sum(terms(parties, colluders=13), InProcessChannel(vectors(parties)))


def test_a_party_refuses_another_number_of_neighbours() -> None:
    agreement = terms(60)
    channel = InProcessChannel(vectors(60))
    keys = channel.advertise(agreement)
    few = {i: keys[i] for i in range(1, 10)}
    with pytest.raises(SecureAggregationError, match=r"keys of 8 others: expected \d+ of 60"):
        channel.parties[1].share(few, new=True, enrolled=60)


def test_colluding_neighbours_cannot_join_a_secret() -> None:
    """A fifth collude, wherever they sit: nobody has ``t`` of them among its neighbours."""
    rng = random.Random(2)
    scheme = Graph()
    for parties in (60, 100, 300):
        for _ in range(20):
            graph = scheme.neighbours(range(parties))
            colluders = set(rng.sample(range(parties), parties // 5))
            most = max(len(graph[p] & colluders) for p in set(graph) - colluders)
            assert most < scheme.threshold(parties)


def test_shares_travel_to_neighbours_only() -> None:
    """So that what is sent grows with ``n log n``."""
    channel = InProcessChannel(vectors(60))
    dealt: list[int] = []
    share = channel.share

    def counting(rosters):  # type: ignore[no-untyped-def]
        answers = share(rosters)
        dealt.extend(len(a.sealed) for a in answers.values())
        return answers

    channel.share = counting  # type: ignore[method-assign]
    secure_sum(terms(60), channel)
    assert dealt == [Graph().degree(60)] * 60


@pytest.mark.slow
def test_a_thousand_parties() -> None:
    """Digits at level ``shared``: exact, and four messages to each and from each."""
    from protocl.federation.bench.secure_sums import cost

    found = cost("graph", 1000)
    assert (found.neighbours, found.threshold) == (112, 59)
    assert found.samples == 1347
    assert found.messages == 8000
