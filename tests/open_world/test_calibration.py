"""From which score on a sample is known: the share asked for, and a word when it lapses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from protocl.errors import CalibrationWarning, ConfigError
from protocl.memory import PrototypeMemory
from protocl.metrics.detection import detection
from protocl.open_world.calibration import Judge, ScoreCalibration
from protocl.open_world.thresholds import BINS, ScoreHistogram, _bins, edges
from protocl.registry import SCORES
from tests.open_world.test_evidence import world


@given(
    st.lists(st.integers(0, BINS - 1), min_size=1, max_size=40),
    st.sampled_from([0.05, 0.1, 0.5, 0.9, 0.95, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_share_above_says_the_same_as_the_threshold(bins, keep):
    histogram = ScoreHistogram("", torch.bincount(torch.tensor(bins), minlength=BINS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few samples in one bin
        threshold = histogram.threshold(keep)
    queries = edges()[1:] + edges().diff() / 3
    below = _bins(queries) < int((edges() == threshold).nonzero()[0])
    assert torch.equal(histogram.share_above(queries) >= keep, below)


@pytest.mark.parametrize("name", SCORES.names())
def test_digits_never_taught_are_told_by_every_score(name):
    x, y = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    x, known = x / 16, y < 6
    taught, rest = x[known][:500], x[known][500:]
    memory = PrototypeMemory(64, level="shared").update(taught, y[known][:500])
    held_out, asked = rest[::2], rest[1::2]
    made = ScoreCalibration.of(name, memory, held_out, y[known][500::2])
    judge = Judge(name, made, memory)
    shares, verdicts = judge(asked)
    strange, _ = judge(x[~known])
    kept = np.mean([not verdict.is_unknown for verdict in verdicts])
    assert 0.90 < kept < 0.99
    assert all(v.is_unknown == (s >= 0.95) for v, s in zip(verdicts, shares, strict=True))
    assert {verdict.note for verdict in verdicts} == {""}
    assert float((strange >= 0.95).double().mean()) > 0.15
    assert detection(-shares, -strange).auroc > 0.75


def test_what_was_taught_is_left_out():
    memory, x, labels = world(classes=8, each=30)
    made = ScoreCalibration.of("evidence", memory, x, labels, taught=True)
    naive = ScoreCalibration.of("evidence", memory, x, labels)
    assert made.histogram.samples == naive.histogram.samples == len(x)
    assert made.histogram.threshold() < naive.histogram.threshold()


def test_it_says_how_the_memory_has_changed():
    memory, x, labels = world()
    made = ScoreCalibration.of("energy", memory, x, labels)
    assert made.lapsed(memory) == made.lapsed(memory.copy()) == ""
    memory.update(x[:1], labels[:1])
    assert made.lapsed(memory) == "calibrated before 1 sample was added"
    memory.update(x[:4], torch.tensor([90, 90, 91, 91]))
    assert made.lapsed(memory) == "calibrated before 5 samples (2 new classes) were added"
    other, _, _ = world(seed=5)
    assert made.lapsed(other) == "calibrated for other statistics than these"
    assert "calibrate again" in Judge("energy", made, memory).note


def test_of_too_few_samples_it_warns():
    memory, x, labels = world()
    with pytest.warns(CalibrationWarning, match="19 samples are too few .* give 20 or more"):
        ScoreCalibration.of("evidence", memory, x[:19], labels[:19])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScoreCalibration.of("evidence", memory, x[:20], labels[:20])
        ScoreCalibration.of("evidence", memory, x[:1], labels[:1], keep=1)


def test_what_it_refuses():
    memory, x, labels = world()
    with pytest.raises(ConfigError, match="did you mean 'evidence'"):
        ScoreCalibration.of("evidense", memory, x, labels)
    with pytest.raises(ValueError, match="keep=0: expected a share"):
        ScoreCalibration.of("evidence", memory, x, labels, keep=0)
    with pytest.raises(ValueError, match="no known sample"):
        ScoreCalibration.of("evidence", memory, x[:0], labels[:0])
    with pytest.raises(ValueError, match="evel 'shared' is needed"):
        ScoreCalibration.of("evidence", memory.at_level("mean"), x, labels)


def test_without_a_calibration_it_gives_the_score_and_no_verdict():
    memory, x, labels = world()
    shares, verdicts = Judge("evidence", None, memory)(x[:2])
    assert shares is None
    assert verdicts[0].value is not None
    assert verdicts[0].is_unknown is None
    assert "not calibrated" in verdicts[0].note
    one = PrototypeMemory(5, level="shared").update(
        x[labels == labels[0]], labels[labels == labels[0]]
    )
    _, verdicts = Judge("evidence", None, one)(x[:2])
    assert verdicts[0].value is None
    assert "classes" in verdicts[0].note
