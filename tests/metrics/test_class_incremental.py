"""Metrics against values computed by hand and against the definitions in their docstrings."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocl import metrics
from protocl.metrics import calibration, class_incremental, confusion

# Worked by hand: diagonal 0.9, 0.8, 1.0; best of column 0 before the end is 0.95.
MATRIX = [[0.9], [0.95, 0.8], [0.5, 0.6, 1.0]]


@st.composite
def accuracy_matrices(draw: st.DrawFn) -> list[list[float]]:
    n = draw(st.integers(1, 6))
    value = st.floats(0, 1)
    return [draw(st.lists(value, min_size=t + 1, max_size=t + 1)) for t in range(n)]


@pytest.mark.parametrize("module", [class_incremental, confusion, calibration])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


def test_values_worked_by_hand() -> None:
    assert metrics.forgetting(MATRIX) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.6)) / 2)
    assert metrics.maximum_forgetting(MATRIX) == pytest.approx(((0.95 - 0.5) + (0.8 - 0.6)) / 2)
    assert metrics.backward_transfer(MATRIX) == pytest.approx(-0.3)
    assert metrics.average_accuracy(MATRIX) == pytest.approx(0.7)
    assert metrics.average_incremental_accuracy([0.9, 0.85, 0.7]) == pytest.approx(2.45 / 3)
    assert metrics.last_accuracy([0.9, 0.85, 0.7]) == 0.7


def test_the_best_moment_lies_before_the_end() -> None:
    """An experience that is best at the end has gained: its forgetting is below zero."""
    assert metrics.maximum_forgetting([[0.5], [0.9, 1.0]]) == pytest.approx(0.5 - 0.9)
    assert metrics.maximum_forgetting([[0.5], [0.7, 0.6], [0.9, 0.2, 1.0]]) == pytest.approx(
        ((0.7 - 0.9) + (0.6 - 0.2)) / 2
    )


@given(accuracy_matrices())
def test_relations_between_the_metrics(matrix: list[list[float]]) -> None:
    assert metrics.backward_transfer(matrix) == -metrics.forgetting(matrix)
    assert metrics.maximum_forgetting(matrix) >= metrics.forgetting(matrix)
    assert -1 <= metrics.forgetting(matrix) <= 1


def test_one_experience_has_nothing_to_forget() -> None:
    for metric in (metrics.forgetting, metrics.maximum_forgetting, metrics.backward_transfer):
        assert metric([[0.7]]) == 0.0


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([], "at least one row"),
        ([[0.5], [0.5]], r"row 1 .* \(2 values\), got 1"),
        ([[0.5], [0.5, 1.5]], "got 1.5"),
        ([[float("nan")]], "got nan"),
    ],
)
def test_a_matrix_that_is_none_is_refused(matrix: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.forgetting(matrix)


def test_an_empty_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one accuracy"):
        metrics.average_incremental_accuracy([])


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_spread_is_the_sample_standard_deviation(values: list[float]) -> None:
    mean, std, n = metrics.mean_and_spread(values)
    assert n == len(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_calibration_bins_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        metrics.expected_calibration_error([1, 1], [1], [0.5, 0.5])
    with pytest.raises(ValueError, match="no sample"):
        metrics.expected_calibration_error([0, 0], [0, 0], [0.0, 0.0])
