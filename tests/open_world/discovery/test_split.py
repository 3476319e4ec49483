"""The protocol's draw is that of the literature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protocl.open_world.discovery.split import labelled_samples


def test_the_draw_is_that_of_the_released_code():
    labels = torch.arange(100).repeat(30)
    found = labelled_samples(labels, torch.arange(80))
    np.random.seed(0)
    old = np.where(labels.numpy() < 80)[0]
    theirs = old[np.random.choice(range(len(old)), replace=False, size=int(0.5 * len(old)))]
    assert sorted(theirs) == found.nonzero()[:, 0].tolist()
    assert int(found.sum()) == 1200


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 4)])
def test_all_or_none(share, count):
    labels = torch.tensor([2**61, 3, 3, 9, 2**61])
    found = labelled_samples(labels, torch.tensor([3, 2**61]), share)
    assert int(found.sum()) == count
    assert not found[3]


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"share=1\.5"):
        labelled_samples(torch.tensor([1]), torch.tensor([1]), 1.5)
