"""The protocol of category discovery: which samples have a label, and which classes are known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def labelled_samples(
    labels: Tensor, known_classes: Tensor, share: float = 0.5, seed: int = 0
) -> Tensor:
    """Which samples ``(N,)`` are labelled: a share of those of the known classes, together.

    All others, among them the rest of the known classes, are unlabelled. With the seed 0 and half
    of the first 80 classes of CIFAR-100 these are the samples of the literature: Vaze et al.,
    "Generalized category discovery", CVPR 2022, section 4.1.

    Args:
        labels: ``(N,)`` true classes.
        known_classes: ids of the known classes.
        share: from 0 to 1.
        seed: of NumPy's legacy generator, whose stream is fixed.

    Raises:
        ValueError: the share is out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: expected a share from 0 to 1")
    old = torch.isin(labels, known_classes).nonzero()[:, 0]
    draw = np.random.RandomState(seed)
    chosen = draw.choice(len(old), size=int(share * len(old)), replace=False)
    labelled = torch.zeros(len(labels), dtype=torch.bool)
    labelled[old[torch.from_numpy(chosen)]] = True
    return labelled
