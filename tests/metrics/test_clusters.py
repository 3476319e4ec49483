"""Accuracies of clusters: the authors' numbers, sums of tables, and what they do not foresee."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl.metrics.clusters import assignment, clustering_accuracy, split_accuracy
from protocl.metrics.confusion import Confusion
from tests.golden.discovery import drawn, golden, same


def published() -> tuple[torch.Tensor, torch.Tensor]:
    part = golden()["gcd"]["accuracy"]
    rng = np.random.default_rng(201)
    true = rng.integers(0, 8, 200)
    perm = rng.permutation(8)
    matched = rng.random(200) < 0.6
    predicted = np.where(matched, perm[true], rng.integers(0, 10, 200))
    return drawn(part, "y_true", true), drawn(part, "y_pred", predicted)


def test_accuracies_are_those_of_the_authors():
    part = golden()["gcd"]["accuracy"]
    table = Confusion.from_predictions(*published())
    same(clustering_accuracy(table), part["cluster_accuracy"])
    for form, key in (("v1", "v1"), ("v2", "v2"), ("balanced", "v2_balanced")):
        same(split_accuracy(table, range(5), form), part[key])
    found = assignment(table)
    assert found == {k: v for k, v in _ints(part["assignment_cluster_to_class"]) if k in found}
    assert len(found) == 8


def _ints(pairs: dict[str, int]) -> list[tuple[int, int]]:
    return [(int(key), value) for key, value in pairs.items()]


def test_a_cluster_of_an_old_and_a_new_class_counts_once():
    true = torch.arange(4).repeat_interleave(10)
    predicted = torch.tensor([0, 1, 0, 2]).repeat_interleave(10)
    table = Confusion.from_predictions(true, predicted)
    assert split_accuracy(table, [0, 1], "v1") == (1, 1, 1)
    assert split_accuracy(table, [0, 1]) == (0.75, 1, 0.5)


def test_without_old_or_new_classes_there_is_no_such_accuracy():
    table = Confusion.from_predictions(torch.tensor([3, 3]), torch.tensor([2**61, 2**61]))
    for form in ("v1", "v2", "balanced"):
        assert split_accuracy(table, [3], form) == (1, 1, None)
        assert split_accuracy(table, [], form) == (1, None, 1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no sample"):
        clustering_accuracy(Confusion.empty())
    table = Confusion.from_predictions(torch.tensor([1]), torch.tensor([1]))
    with pytest.raises(ValueError, match="form='v3'"):
        split_accuracy(table, [1], "v3")


ids = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=2, max_size=40)


@settings(deadline=None, max_examples=30)
@given(ids, st.integers(0, 40), st.permutations(range(8)))
def test_tables_of_clients_add_up_and_clusters_have_no_names(pairs, cut, names):
    true, predicted = torch.tensor(pairs).T
    whole = Confusion.from_predictions(true, predicted)
    parts = [Confusion.from_predictions(true[rows], predicted[rows])
             for rows in (slice(0, cut), slice(cut, None))]  # fmt: skip
    assert split_accuracy(parts[0] + parts[1], [0, 1]) == split_accuracy(whole, [0, 1])
    renamed = Confusion.from_predictions(true, torch.tensor(names)[predicted])
    assert clustering_accuracy(renamed) == clustering_accuracy(whole)
    assert split_accuracy(whole, [0, 1], "v1").all >= clustering_accuracy(whole)
