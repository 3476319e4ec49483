"""Accuracy of classes with many and with few training samples."""

from __future__ import annotations

import torch

from protocl.metrics.confusion import Confusion
from protocl.metrics.frequency import accuracy_by_frequency


def test_classes_weigh_alike_and_limits_belong_to_the_medium_ones() -> None:
    true = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4])
    predicted = torch.tensor([0, 0, 1, 1, 2, 0, 0, 4])
    confusion = Confusion.from_predictions(true, predicted)
    found = accuracy_by_frequency(confusion, torch.tensor([101, 500, 100, 20, 19]))
    assert found == {"many": (2 / 3 + 1) / 2, "medium": (0.5 + 0) / 2, "few": 1.0}


def test_groups_without_tested_classes_are_left_out() -> None:
    confusion = Confusion.from_predictions(torch.tensor([1]), torch.tensor([0]))
    assert accuracy_by_frequency(confusion, torch.tensor([500, 3])) == {"few": 0.0}
    assert accuracy_by_frequency(Confusion.empty(), torch.tensor([500, 3])) == {}
