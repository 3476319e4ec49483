"""Linkages from sums: the golden values, and SciPy's trees over all samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import UnitNorm
from protocl.open_world.agglomeration import agglomerate
from protocl.open_world.linkages import AverageCosine, Ward, mean_squared_distance, plain_rows

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "unknown_inputs.json").read_text())
OWN = GOLDEN["own"]
GROUPS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5])


def unit_rows(x: np.ndarray, labels: torch.Tensor):
    memory = PrototypeMemory(x.shape[1], feature_map=UnitNorm())
    return plain_rows(memory.update(torch.from_numpy(x), labels))


def golden_samples() -> np.ndarray:
    rng = np.random.default_rng(801)
    mu = rng.standard_normal((3, 4))
    x = mu[np.repeat(np.arange(3), 4)] + 0.5 * rng.standard_normal((12, 4))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert x.sum() == pytest.approx(OWN["check"]["x"]["sum"], abs=1e-8)
    return x


def test_golden_values():
    rows = unit_rows(golden_samples(), GROUPS)
    for found, name in (
        (AverageCosine().same(rows, rows), "mean_pair_cosine"),
        (-Ward().same(rows, rows), "ward_increment"),
        (mean_squared_distance(rows, rows, rows.counts, rows.counts), "mean_pair_squared_distance"),
    ):
        np.testing.assert_allclose(found.numpy(), OWN[name], atol=1e-8, err_msg=name)


def test_golden_trees():
    rows = unit_rows(golden_samples(), torch.arange(12))
    cosines = agglomerate(AverageCosine(), rows, lowest=-np.inf).ratios
    growth = -agglomerate(Ward(), rows, lowest=-np.inf).ratios
    heights = OWN["linkage_average_on_1_minus_cosine"]["heights"]
    np.testing.assert_allclose(1 - cosines, heights, atol=1e-8)
    np.testing.assert_allclose(growth, OWN["linkage_ward"]["increments"], atol=1e-8)
    np.testing.assert_allclose(np.sqrt(2 * growth), OWN["linkage_ward"]["heights"], atol=1e-8)


@given(st.integers(0, 1000), st.integers(2, 25))
@settings(max_examples=20, deadline=None)
def test_trees_over_samples_are_those_of_scipy(seed, n):
    x = np.random.default_rng(seed).standard_normal((n, 4))
    rows = unit_rows(x, torch.arange(n))
    cosines = agglomerate(AverageCosine(), rows, lowest=-np.inf).ratios
    tree = linkage(pdist(x, "cosine"), "average")
    np.testing.assert_allclose(1 - cosines, tree[:, 2], atol=1e-10)
    plain = plain_rows(PrototypeMemory(4).update(
        torch.from_numpy(x), torch.arange(n)
    ))  # fmt: skip
    growth = -agglomerate(Ward(), plain, lowest=-np.inf).ratios
    np.testing.assert_allclose(np.sqrt(2 * growth), linkage(x, "ward")[:, 2], atol=1e-10)


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_means_over_all_pairs_of_samples(seed):
    rng = np.random.default_rng(seed)
    x, labels = rng.standard_normal((12, 3)), torch.from_numpy(rng.integers(0, 4, 12))
    memory = PrototypeMemory(3).update(torch.from_numpy(x), labels)
    rows, squares = plain_rows(memory), np.square(x).sum(1)
    gaps = np.square(x[:, None] - x).sum(2)
    groups = [np.flatnonzero(labels.numpy() == i) for i in rows.ids.tolist()]
    q = torch.tensor([squares[g].sum() for g in groups])
    found = mean_squared_distance(rows, rows, q, q)
    expected = [[gaps[np.ix_(a, b)].mean() for b in groups] for a in groups]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
