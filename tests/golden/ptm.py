"""Inputs and outputs of the authors' and Avalanche's own code, for the closed-form heads.

``ptm.json`` holds the scores that the original code (named in its ``about`` and ``commits``)
gave on the inputs that :func:`inputs` builds. They are drawn from numpy's legacy generator, whose
stream is fixed for ever, by additions and multiplications alone, and their SHA-256 is checked.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Inputs(NamedTuple):
    """Features and labels in stream order: three experiences of two classes."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    projection: Tensor
    clients: Tensor
    experiences: list[Tensor]


@cache
def golden() -> dict[str, Any]:
    """The stored results."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def scores(key: str) -> Tensor:
    """``(60, 6)`` scores of one original implementation."""
    return torch.tensor(golden()["results"][key]["scores"], dtype=torch.float64)


@cache
def inputs(positive: bool = False) -> Inputs:
    """The golden inputs; with ``positive`` all features are cut off at zero."""
    stated = golden()["inputs"]
    random = np.random.RandomState(1993)
    means, train, test = (_normal(random, rows, 16) for rows in (6, 200, 60))
    labels = np.repeat(np.arange(6), stated["counts"])
    test_labels = np.repeat(np.arange(6), 10)
    shuffled = random.permutation(200)
    projection = _normal(random, 16, 64)
    order = np.concatenate([shuffled[np.isin(labels[shuffled], t)] for t in stated["tasks"]])
    train = _place(train, means, labels)[order]
    test = _place(test, means, test_labels)
    for name, array in (("X_train", train), ("X_test", test), ("W_rand", projection)):
        assert (
            hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            == (stated["sha256"][name])
        )
    if positive:
        train, test = np.maximum(train, 0), np.maximum(test, 0)
    stream_labels = torch.from_numpy(labels[order])
    return Inputs(
        torch.from_numpy(train),
        stream_labels,
        torch.from_numpy(test),
        torch.from_numpy(test_labels),
        torch.from_numpy(projection),
        torch.tensor(stated["client_of_sample"]),
        [torch.isin(stream_labels, torch.tensor(t)) for t in stated["tasks"]],
    )


def _normal(random: np.random.RandomState, rows: int, columns: int) -> np.ndarray:
    """Nearly normal numbers as sums of twelve uniform ones, the same on every machine."""
    return random.random_sample((12, rows, columns)).sum(0) - 6


def _place(noise: np.ndarray, means: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Classes with means, scales and correlations of their own."""
    rolled = np.stack([np.roll(row, label + 1) for row, label in zip(noise, labels, strict=True)])
    scale = (0.5 + 0.1 * labels)[:, None]
    return 0.45 * means[labels] + scale * (noise + 0.6 * rolled) + 0.25
