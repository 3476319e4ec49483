"""Counts and calibration against scikit-learn and torchmetrics, and the laws of addition."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import multiclass_calibration_error

from protocl.metrics.calibration import ReliabilityBins
from protocl.metrics.confusion import Confusion

IDS = st.integers(-3, 3) | st.sampled_from([10**6, 2**40])
ANSWERS = st.lists(st.tuples(IDS, IDS), max_size=40)


def counted(answers: list[tuple[int, int]]) -> Confusion:
    pairs = torch.tensor(answers, dtype=torch.int64).view(-1, 2)
    return Confusion.from_predictions(pairs[:, 0], pairs[:, 1])


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(ANSWERS.filter(bool))
def test_dense_counts_equal_scikit_learns(answers: list[tuple[int, int]]) -> None:
    confusion = counted(answers)
    true, predicted = np.array(answers).T
    classes, matrix = confusion.dense()
    assert classes.tolist() == sorted({*true.tolist(), *predicted.tolist()})
    assert np.array_equal(matrix.numpy(), confusion_matrix(true, predicted, labels=classes))
    assert confusion.accuracy == float(np.mean(true == predicted))
    assert confusion.total == len(answers)


@given(ANSWERS, ANSWERS, ANSWERS)
def test_addition_is_that_of_a_commutative_monoid(
    a: list[tuple[int, int]], b: list[tuple[int, int]], c: list[tuple[int, int]]
) -> None:
    whole = counted(a + b + c)
    assert counted(a) + counted(b) + counted(c) == whole
    assert counted(c) + (counted(b) + counted(a)) == whole
    assert Confusion.empty() + whole == whole


@given(ANSWERS)
def test_counts_survive_json(answers: list[tuple[int, int]]) -> None:
    confusion = counted(answers)
    assert Confusion.from_dict(json.loads(json.dumps(confusion.to_dict()))) == confusion


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        Confusion.from_predictions([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"predicted must hold integer class ids, got torch.float"):
        Confusion.from_predictions([0, 1], [0.0, 1.0])
    with pytest.raises(ValueError, match="no sample"):
        _ = Confusion.empty().accuracy


def test_calibration_error_equals_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (500,), generator=generator)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    bins = ReliabilityBins.from_confidence(confidence, predicted == labels)
    expected = multiclass_calibration_error(logits.softmax(dim=1), labels, 7, n_bins=15)
    assert bins.expected_error() == pytest.approx(float(expected), abs=1e-7)
    halves = [
        ReliabilityBins.from_confidence(confidence[part], (predicted == labels)[part])
        for part in (slice(0, 123), slice(123, None))
    ]
    assert (halves[0] + halves[1]).expected_error() == pytest.approx(bins.expected_error())
    assert ReliabilityBins.from_dict(json.loads(json.dumps(bins.to_dict()))) == bins


def test_bins_are_open_to_the_left() -> None:
    bins = ReliabilityBins.from_confidence([0.0, 0.5, 0.5000001, 1.0], [True] * 4, n_bins=2)
    assert bins.counts == (2, 2)


def test_confidences_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got nan at 1 of 2 samples; are the logits finite"):
        ReliabilityBins.from_confidence([0.5, float("nan")], [True, True])
    with pytest.raises(ValueError, match=r"shapes \(1,\) and \(2,\)"):
        ReliabilityBins.from_confidence([0.5], [True, True])
    with pytest.raises(ValueError, match="cannot add 3 bins to 2"):
        _ = ReliabilityBins.from_confidence([0.5], [True], 2) + ReliabilityBins.from_confidence(
            [0.5], [True], 3
        )


def test_the_edge_of_two_bins_belongs_to_the_lower_one() -> None:
    """Bins are (m/M, (m+1)/M], as Guo et al. write them; 0 goes to the first."""
    bins = ReliabilityBins.from_confidence([0.0, 0.25, 0.5, 0.75, 1.0], [True] * 5, n_bins=4)
    assert bins.counts == (2, 1, 1, 1)
    assert bins.confidence == (0.25, 0.5, 0.75, 1.0)
