"""Histograms of left-out scores: they add, go stale, and keep the share asked for."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from protocl.errors import PrecisionWarning
from protocl.memory import PrototypeMemory
from protocl.open_world.scores.distance import Distance
from protocl.open_world.scores.evidence import Evidence
from protocl.open_world.scores.whitened_cosine import WhitenedCosine
from protocl.open_world.thresholds import BINS, ScoreHistogram, _bins, edges
from tests.open_world.test_evidence import world


def test_bins_hold_the_scores_between_their_edges():
    scores = torch.tensor([-1e12, -3.0, -1e-5, 0.0, 1e-5, 0.7, 250.0, 1e12], dtype=torch.float64)
    lower, bins = edges(), _bins(scores)
    upper = torch.cat([lower[1:], torch.tensor([float("inf")])])
    assert ((lower[bins] <= scores) & (scores < upper[bins])).all()
    assert (lower.diff()[1:] > 0).all()
    assert _bins(torch.tensor([float("-inf")])).tolist() == [0]


@pytest.mark.parametrize("score", [Evidence(), WhitenedCosine()])
def test_the_threshold_keeps_the_share_of_samples_never_seen(score):
    memory, x, labels = world(classes=8, each=60)
    _, fresh, _ = world(classes=8, each=400)
    histogram = ScoreHistogram.of(score, memory, x, labels, parts=5)
    assert histogram.samples == len(x)
    kept = (score.fit(memory)(fresh[-1600:]) >= histogram.threshold(0.9)).double().mean()
    assert 0.8 < float(kept) < 0.98
    below = histogram.share_below(torch.tensor([histogram.threshold(0.9)]))
    assert float(below) <= 0.1 + 1e-9


def test_clients_add_and_leave():
    memory, x, labels = world()
    score = Evidence()
    whole = ScoreHistogram.of(score, memory, x, labels, parts=len(x))
    parts = [
        ScoreHistogram.of(score, memory, x[rows::2], labels[rows::2], parts=len(x))
        for rows in (0, 1)
    ]
    assert sum(parts).samples == whole.samples == len(x)
    assert torch.equal((whole - whole + parts[0]).counts, parts[0].counts)
    assert sum(parts).threshold() == pytest.approx(whole.threshold(), abs=3)
    with pytest.raises(ValueError, match="never added"):
        parts[0] - whole


def test_it_lapses_with_the_memory_and_the_score():
    memory, x, labels = world()
    histogram = ScoreHistogram.of(Evidence(), memory, x, labels, parts=2)
    histogram.require(Evidence(), memory.copy())
    with pytest.raises(ValueError, match="lapses"):
        histogram.require(Evidence(shrinkage=0.1), memory)
    memory.update(x[:1], labels[:1])
    with pytest.raises(ValueError, match="lapses"):
        histogram.require(Evidence(), memory)
    with pytest.raises(ValueError, match="lapses"):
        histogram + ScoreHistogram.of(Evidence(), memory, x, labels, parts=2)


def test_it_goes_through_json_and_refuses_what_cannot_be():
    memory, x, labels = world()
    histogram = ScoreHistogram.of(Evidence(), memory, x, labels, parts=2)
    state = json.loads(json.dumps(histogram.to_dict()))
    assert torch.equal(ScoreHistogram.from_dict(state).counts, histogram.counts)
    for bins, counts in (([BINS], [1]), ([-1], [1]), ([0], [0]), ([0, 1], [1])):
        with pytest.raises(ValueError, match="bins 0 to"):
            ScoreHistogram.from_dict({"origin": "", "bins": bins, "counts": counts})
    with pytest.raises(ValueError, match="keep=0"):
        histogram.threshold(0)
    empty = ScoreHistogram.of(Evidence(), memory, x[:0], labels[:0])
    with pytest.raises(ValueError, match="no known sample"):
        empty.threshold()


@pytest.mark.parametrize(
    ("keep", "threshold"), [(1.0, 0.0), (0.95, 1.0), (0.5, 10.0), (0.01, 19.0)]
)
def test_the_edge_is_that_of_counting(keep, threshold):
    counts = torch.bincount(_bins(torch.arange(20.0)), minlength=BINS)
    found = ScoreHistogram("", counts).threshold(keep)
    assert found <= threshold < found + 0.2


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_a_threshold_that_the_bins_cannot_give_is_no_silent_one(scale):
    memory, x, labels = world()
    apart = ScoreHistogram.of(Distance(), memory, x, labels, parts=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apart.threshold(0.9)
    moved = PrototypeMemory(memory.width, "shared").update(x * scale, labels)
    histogram = ScoreHistogram.of(Distance(), moved, x * scale, labels, parts=5)
    with pytest.warns(PrecisionWarning, match=f"keeps {len(x)} of {len(x)} known"):
        histogram.threshold(0.9)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"origin": "a", "bins": [1]}, "lacks .'counts'"),
        ({"origin": "a", "bins": [1.5], "counts": [1]}, r"bins .* \[1\.5\]: expected whole"),
        ({"origin": "a", "bins": [1], "counts": "many"}, "counts .* 'many'"),
    ],
)
def test_a_damaged_message_is_refused_by_its_value(state, said):
    with pytest.raises(ValueError, match=said):
        ScoreHistogram.from_dict(state)
