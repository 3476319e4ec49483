"""Splitting and merging: it finds the number from either side, and does not grow without end."""

from __future__ import annotations

import pytest
import torch

from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import UnitNorm
from protocl.metrics.clusters import clustering_accuracy
from protocl.metrics.confusion import Confusion
from protocl.open_world.discovery.split_merge import SplitAndMerge


def blobs(classes: int = 6, each: int = 40, width: int = 4, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    centres = 6 * torch.randn(classes, width, generator=rng)
    labels = torch.arange(classes).repeat_interleave(each)
    noise = torch.randn(len(labels), width, generator=rng)
    return centres[labels] + noise * torch.tensor([1.0, 0.5, 0.2, 0.7]), labels


@pytest.mark.parametrize(("named", "start"), [(0, 2), (2, 6), (2, 13)])
def test_it_finds_the_number_from_too_few_and_too_many(named, start):
    x, y = blobs()
    known = PrototypeMemory(4).update(x[y < named][::2], y[y < named][::2])
    found, rounds = SplitAndMerge(restarts=3).fit(known, x, start)
    assert len(found.centres.ids) == 6
    assert clustering_accuracy(Confusion.from_predictions(y, found.predict(x))) == 1
    assert (rounds[-1].splits, rounds[-1].merges) == (0, 0)
    assert rounds[0].categories == start


def test_a_merge_leaves_one_centre_at_the_weighted_mean():
    x, y = blobs(2)
    known = PrototypeMemory(4).update(x[y == 0], y[y == 0])
    once, rounds = SplitAndMerge(rounds=1, restarts=2).fit(known, x[y == 1], 3)
    assert (rounds[0].merges, len(once.centres.ids)) == (1, 2)
    torch.testing.assert_close(once.centres.points[1], x[y == 1].double().mean(0))


def test_exploration_is_seeded_and_off_by_default():
    x, y = blobs(3)
    known = PrototypeMemory(4).update(x[y == 0], y[y == 0])
    runs = [
        SplitAndMerge(explore=0.5, rounds=2, restarts=2, seed=s).fit(known, x, 3)[1] for s in (5, 5)
    ]
    assert runs[0] == runs[1]
    assert sum(r.splits + r.merges for r in runs[0]) > 0
    assert SplitAndMerge(rounds=1, restarts=2).fit(known, x, 3)[1][0].splits == 0


def test_nothing_new_and_few_samples_are_left_alone():
    x, y = blobs(2, each=4)
    known = PrototypeMemory(4, feature_map=UnitNorm()).update(x, y)
    found, rounds = SplitAndMerge(spherical=True).fit(known, x, 2)
    assert len(found.centres.ids) == 2
    assert len(rounds) == 1
    with pytest.raises(ValueError, match="explore=1"):
        SplitAndMerge(explore=1)
