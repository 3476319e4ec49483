"""Accuracy by how many training samples a class has: what an imbalanced stream hides in a mean."""

from __future__ import annotations

from torch import Tensor

from protocl.metrics.confusion import Confusion

MANY, FEW = 100, 20
"""Classes of more than ``MANY`` samples have many, those of fewer than ``FEW`` have few."""


def accuracy_by_frequency(confusion: Confusion, train_counts: Tensor) -> dict[str, float]:
    """Mean accuracy of the classes with many, medium and few training samples, in [0, 1].

    Args:
        confusion: on test samples.
        train_counts: training samples of each class id ``(C,)``.

    Returns:
        ``"many"``, ``"medium"``, ``"few"``; those without a class that was tested are left out.

    Source: Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019, which
    sets the limits of 100 and 20.

    >>> import torch
    >>> confusion = Confusion.from_predictions(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    >>> accuracy_by_frequency(confusion, torch.tensor([500, 5]))
    {'many': 0.5, 'few': 1.0}
    """
    sizes = train_counts.to(confusion.true.device)
    groups = {
        "many": sizes > MANY, "medium": (sizes >= FEW) & (sizes <= MANY), "few": sizes < FEW,
    }  # fmt: skip
    tested = confusion.true.unique()
    found = {}
    for name, holds in groups.items():
        accuracies = [confusion.among(c).accuracy for c in tested[holds[tested]].tolist()]
        if accuracies:
            found[name] = sum(accuracies) / len(accuracies)
    return found
