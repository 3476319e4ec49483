"""Metrics of class-incremental learning, and counts from which all of them follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.metrics.class_incremental import (
        AccuracyMatrix,
        MeanAndSpread,
        average_accuracy,
        average_incremental_accuracy,
        backward_transfer,
        expected_calibration_error,
        forgetting,
        last_accuracy,
        maximum_forgetting,
        mean_and_spread,
    )

__all__ = [
    "AccuracyMatrix",
    "MeanAndSpread",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "expected_calibration_error",
    "forgetting",
    "last_accuracy",
    "maximum_forgetting",
    "mean_and_spread",
]

__getattr__ = importer(__name__, dict.fromkeys(__all__, "class_incremental"))
