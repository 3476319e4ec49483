"""Joining rows: against a plain loop, and what never joins."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl.open_world.agglomeration import agglomerate
from protocl.open_world.categories import Rows
from protocl.open_world.evidence import TwoCovariance
from tests.open_world.test_evidence import world


def plainly(evidence, rows, lowest, names=None):
    """The same by comparing all pairs before each join."""
    groups = [[n] for n in range(len(rows))]
    borne = [{name} - {-1} for name in (names or [-1] * len(rows))]
    joins = []
    while len(groups) > 1:
        sums = Rows(
            torch.arange(len(groups)),
            torch.stack([rows.counts[g].sum() for g in groups]),
            torch.stack([rows.coordinates[g].sum(0) for g in groups]),
        )
        same = evidence.same(sums, sums)
        pairs = [
            (-float(same[i, j]), groups[i][0], groups[j][0], i, j)
            for i in range(len(groups))
            for j in range(i + 1, len(groups))
            if len(borne[i] | borne[j]) < 2
        ]
        if not pairs or -min(pairs)[0] <= lowest:
            break
        value, first, second, i, j = min(pairs)
        joins.append((first, second, -value))
        groups[i] = sorted(groups[i] + groups.pop(j))
        borne[i] |= borne.pop(j)
        order = sorted(range(len(groups)), key=lambda k: groups[k][0])
        groups, borne = [groups[k] for k in order], [borne[k] for k in order]
    return joins


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=12, deadline=None)
def test_it_joins_what_a_plain_loop_joins(seed, named):
    memory, *_ = world(seed)
    _, x, _ = world(seed + 1, classes=4, each=4)
    evidence = TwoCovariance().fit(memory)
    rows = evidence.of_samples(x)
    names = [n % 3 - 1 for n in range(len(x))] if named else None
    joins = agglomerate(evidence, rows, names=names, lowest=-40.0)
    expected = plainly(evidence, rows, -40.0, names)
    assert [tuple(p) for p in joins.pairs.tolist()] == [(i, j) for i, j, _ in expected]
    assert joins.ratios.tolist() == pytest.approx([value for *_, value in expected], abs=1e-8)


def test_many_samples_of_far_categories_are_found():
    memory, *_ = world(seed=3, classes=30)
    _, x, labels = world(seed=4, classes=5, each=12)
    evidence = TwoCovariance().fit(memory)
    groups = agglomerate(evidence, evidence.of_samples(4 * x)).groups(-50.0)
    table = torch.zeros(int(groups.max()) + 1, 5).index_put_(
        (groups, labels), torch.ones(len(x)), accumulate=True
    )
    assert ((table > 0).sum(1) == 1).all()


def test_the_order_of_joins_does_not_depend_on_where_it_stops():
    memory, x, _ = world(seed=5)
    evidence = TwoCovariance().fit(memory)
    rows = evidence.of_samples(x)
    far, near = agglomerate(evidence, rows), agglomerate(evidence, rows, lowest=1.0)
    assert torch.equal(far.groups(1.0), near.groups(1.0))
    assert len(near.pairs) < len(far.pairs)
    assert torch.equal(far.groups(float("inf")), torch.arange(len(x)))


def test_grouped_rows_are_the_rows_of_added_sums():
    memory, x, labels = world()
    evidence = TwoCovariance().fit(memory)
    rows = evidence.of_samples(x).grouped(labels)
    torch.testing.assert_close(rows.coordinates, evidence.known_rows.coordinates)
    assert torch.equal(rows.counts, evidence.known_rows.counts)
    assert rows.ids.tolist() == [0, 8, 16, 24, 32, 40]


def test_equal_rows_join_by_the_lowest_ids():
    memory, x, _ = world()
    evidence = TwoCovariance().fit(memory)
    joins = agglomerate(evidence, evidence.of_samples(x[:1].repeat(4, 1)))
    assert joins.pairs.tolist() == [[0, 1], [0, 2], [0, 3]]


def test_none_and_one():
    memory, x, _ = world()
    evidence = TwoCovariance().fit(memory)
    for n in (0, 1):
        joins = agglomerate(evidence, evidence.of_samples(x[:n]))
        assert joins.pairs.shape == (0, 2)
        assert joins.groups().tolist() == [0] * n
        assert len(evidence.of_samples(x[:n]).grouped(joins.groups())) == n


def test_what_is_refused():
    memory, x, _ = world()
    evidence = TwoCovariance().fit(memory)
    rows = evidence.of_samples(x[:3])
    with pytest.raises(ValueError, match="ascend"):
        agglomerate(evidence, rows[torch.tensor([0, 2, 1])])
    with pytest.raises(ValueError, match="2 names for 3 rows"):
        agglomerate(evidence, rows, names=[1, 2])
