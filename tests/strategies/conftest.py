"""Streams over scikit-learn's digits on both of Avalanche's benchmark APIs."""

from __future__ import annotations

from typing import Any

import pytest
from avalanche.benchmarks import class_incremental_benchmark, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset

from protocl.data import TensorData
from tests.strategies.small import digits


@pytest.fixture
def train_data() -> TensorData:
    return digits(train=True)


@pytest.fixture
def test_data() -> TensorData:
    return digits(train=False)


@pytest.fixture
def benchmark(train_data: TensorData, test_data: TensorData) -> Any:
    """Avalanche's old API: batches ``(x, y, t)``, one task."""
    return nc_benchmark(train_data, test_data, n_experiences=3, task_labels=False, seed=0)


@pytest.fixture
def task_benchmark(train_data: TensorData, test_data: TensorData) -> Any:
    """As ``benchmark``, one task an experience."""
    return nc_benchmark(train_data, test_data, n_experiences=3, task_labels=True, seed=0)


@pytest.fixture
def new_benchmark(train_data: TensorData, test_data: TensorData) -> Any:
    """Avalanche's new API: batches ``(x, y)``, no task labels."""
    return class_incremental_benchmark(
        {
            "train": as_classification_dataset(train_data),
            "test": as_classification_dataset(test_data),
        },
        num_experiences=3,
        seed=0,
    )
