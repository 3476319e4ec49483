"""What is said of a run under way."""

from __future__ import annotations

import pytest

from protocl.metrics.history import History
from protocl.runner.progress import Progress


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress("data"), "data"),
        (Progress("train", 0, 5), "experience 1/5 train"),
        (Progress("train", 2, 5, accuracy=0.9637), "experience 3/5 train, so far 96.4%"),
        (
            Progress("train", 1, 5, epoch=0, n_epochs=4, accuracy=0.0),
            "experience 2/5 train epoch 1/4, so far 0.0%",
        ),
        (Progress("report", 5, 5, accuracy=0.5), "report"),
    ],
)
def test_a_line_says_where_a_run_is_and_how_well_it_does(progress: Progress, said: str) -> None:
    assert str(progress) == said


def test_nothing_is_said_before_anything_was_evaluated() -> None:
    assert History().latest is None
