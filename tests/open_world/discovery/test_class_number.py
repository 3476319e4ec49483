"""The number of categories from curves on known classes, and from rows that are frequent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from protocl.memory import PrototypeMemory
from protocl.metrics.confusion import Confusion
from protocl.open_world.discovery.class_number import (
    accuracies,
    best_setting,
    by_labelled_accuracy,
    frequent,
)
from tests.golden.discovery import golden, same, unit


def table_of(categories: int) -> Confusion:
    """Labelled samples of the authors' inputs against clusters of all."""
    rng = np.random.default_rng(202)
    mu = 1.6 * rng.standard_normal((6, 5))
    y = np.repeat(np.arange(6), 20)
    x = unit(mu[y] + rng.standard_normal((120, 5)))
    labelled = (y < 3) & (np.arange(120) % 2 == 0)
    found = KMeans(categories, random_state=0, n_init=10).fit_predict(x)
    return Confusion.from_predictions(torch.tensor(y[labelled]), torch.tensor(found[labelled]))


def test_the_curve_is_that_of_the_authors():
    part = golden()["gcd"]["labelled_accuracy_by_K"]
    theirs = dict(zip(part["K"], part["labelled_accuracy"], strict=True))
    found = accuracies({k: table_of(k) for k in (3, 6, 9)})
    same(list(found.values()), [theirs[k] for k in found])


def test_the_search_returns_the_best_that_it_saw():
    def table(categories: int) -> Confusion:
        right = max(1, 20 - abs(categories - 37))
        clusters = (torch.arange(20) - right + 1).clamp(min=0)
        return Confusion.from_predictions(torch.zeros_like(clusters), clusters)

    found = by_labelled_accuracy(table, 20, 60)
    assert found.categories == max(found.curve, key=found.curve.__getitem__)
    assert abs(found.categories - 37) <= 2
    assert set(found.curve) <= set(range(20, 61))
    with pytest.raises(ValueError, match="least=5, most=5"):
        by_labelled_accuracy(table, 5, 5)


def test_a_local_best_does_not_hold_the_search():
    def table(categories: int) -> Confusion:
        # The best is at 95; a bump at 170 and a valley between hold a search by slopes.
        height = max(90 - abs(categories - 95), 60 - abs(categories - 170), 1)
        clusters = (torch.arange(100) - height + 1).clamp(min=0)
        return Confusion.from_predictions(torch.zeros_like(clusters), clusters)

    found = by_labelled_accuracy(table, 80, 200, tries=12)
    assert abs(found.categories - 95) <= 3
    assert len(found.curve) <= 12
    assert set(by_labelled_accuracy(table, 80, 84, tries=12).curve) == set(range(80, 85))
    assert list(by_labelled_accuracy(table, 80, 200, tries=1).curve) == [80]
    with pytest.raises(ValueError, match="tries=0"):
        by_labelled_accuracy(table, 80, 200, tries=0)


def test_tables_of_clients_choose_as_one():
    rng = torch.Generator().manual_seed(0)
    true = torch.randint(3, (30,), generator=rng)
    answers = {setting: torch.randint(3, (30,), generator=rng) for setting in (-2.5, 0.0, 1.5)}
    whole = {s: Confusion.from_predictions(true, a) for s, a in answers.items()}
    parts = {
        s: sum((Confusion.from_predictions(true[i::3], a[i::3]) for i in range(3)),
               Confusion.empty())
        for s, a in answers.items()
    }  # fmt: skip
    assert best_setting(parts) == best_setting(whole)
    with pytest.raises(ValueError, match="no setting was tried"):
        best_setting({})


def test_rows_of_few_samples_do_not_count():
    labels = torch.arange(4).repeat_interleave(torch.tensor([1, 4, 5, 9]))
    memory = PrototypeMemory(1).update(torch.zeros(19, 1), labels)
    assert (frequent(memory), frequent(memory, 1), frequent(PrototypeMemory(1))) == (2, 4, 0)
