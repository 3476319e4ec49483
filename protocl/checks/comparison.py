"""Random data that every check can use, and when two memories are the same."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory

CLASS_IDS = (41, 3, 1000, 7, 0)
"""Ids in no order and with gaps, so that nothing can mistake a row number for a class."""


def sample_batch(feature_dim: int, samples: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Non-negative features ``(N, D)`` of five separated classes, and labels ``(N,)``."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(CLASS_IDS), (samples,), generator=generator)
    rows[: len(CLASS_IDS)] = torch.arange(len(CLASS_IDS))
    centres = 4 * torch.rand(len(CLASS_IDS), feature_dim, generator=generator)
    features = centres[rows] + torch.rand(samples, feature_dim, generator=generator)
    return features, torch.tensor(CLASS_IDS)[rows]


def assert_same(
    found: PrototypeMemory, expected: PrototypeMemory, what: str, *, bits: bool = False
) -> None:
    """Assert that two memories hold the same statistics.

    Args:
        found, expected: the memories.
        what: what is compared, for the message.
        bits: demand equal bits also of floating-point memories. Fixed-point ones must always have
            them.
    """
    assert found.classes.tolist() == expected.classes.tolist(), f"{what}: other classes"
    assert found.counts.tolist() == expected.counts.tolist(), f"{what}: other counts"
    if bits or expected.exact:
        for (name, a), (_, b) in zip(
            found.named_buffers(recurse=False), expected.named_buffers(recurse=False), strict=True
        ):
            assert torch.equal(a, b), f"{what}: other bits in '{name}'"
        return
    pairs = [(found.sums, expected.sums)]
    if expected.level != "mean":
        pairs.append((found.second_moment, expected.second_moment))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda text: f"{what}: {text}")
