"""Transductive inference: the authors' numbers, and what it is without neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import UnitNorm
from protocl.open_world.discovery.k_means import SemiSupervisedKMeans
from protocl.open_world.few_labels.neighbourhood import agree, bandwidth, nearest_others
from protocl.open_world.few_labels.transductive import SLK, Support
from tests.golden.discovery import drawn, golden, same, unit

GOLDEN = golden()["transductive"]


class Published:
    """The inputs of the authors' runs."""

    def __init__(self) -> None:
        rng = np.random.default_rng(501)
        mu = rng.standard_normal((4, 6))
        support = unit(np.repeat(mu, 2, 0) + 0.7 * rng.standard_normal((8, 6)))
        queries = unit(np.repeat(mu, 10, 0) + 0.7 * rng.standard_normal((40, 6)))
        self.labels = torch.arange(4).repeat_interleave(2)
        self.support, self.queries = torch.from_numpy(support), torch.from_numpy(queries)
        shifted = queries + (support.mean(0) - queries.mean(0))
        self.points = drawn(GOLDEN, "X", np.concatenate([support, shifted]))
        self.known = PrototypeMemory(6).update(self.support, self.labels)
        self.fixed = torch.zeros(48, 4, dtype=torch.float64)
        self.fixed[torch.arange(8), self.labels] = 1
        self.near = nearest_others(self.points, 2)


def test_bound_updates_are_those_of_the_authors():
    case = Published()
    same(bandwidth(case.points, case.near) ** 0.5, GOLDEN["sigma"])
    gaps = torch.cdist(case.points, case.known.means).square()
    kernel = -(-gaps / (2 * GOLDEN["sigma"] ** 2)).exp()
    rows = [0, 8, 20]
    once, bound = agree(gaps, case.near, 0.7, case.fixed, clamp=False, rounds=1)
    same(once[rows], GOLDEN["bound_update_kmeans"]["after_1"]["Y_rows_0_8_20"])
    same(bound, GOLDEN["bound_update_kmeans"]["after_1"]["energy"])
    for costs, key in ((gaps, "bound_update_kmeans"), (kernel, "bound_update_kernel")):
        soft, bound = agree(costs, case.near, 0.7, case.fixed, clamp=False)
        same(soft[rows], GOLDEN[key]["converged"]["Y_rows_0_8_20"])
        same(bound, GOLDEN[key]["converged"]["energy"])
        assert soft.argmax(1).tolist() == GOLDEN[key]["converged"]["labels"]


@pytest.mark.parametrize(
    ("key", "unary", "weight"),
    [("kmeans_plain", "kmeans", 0.0), ("kmeans_laplacian", "kmeans", 0.7),
     ("MS_plain", "mean_shift", 0.0), ("MS_laplacian", "mean_shift", 0.7)],
)  # fmt: skip
def test_whole_runs_end_where_those_of_the_authors_do(key, unary, weight):
    case = Published()
    run = SLK(weight, unary=unary, clamp=False)
    found = run.fit(case.known, case.queries, Support(case.support, case.labels))
    assert found.labels.tolist() == GOLDEN[key]["labels_query"]
    # Their mean shifts stop at a change of a thousandth.
    same(found.centres, GOLDEN[key]["centres"], 1e-8 if unary == "kmeans" else 4e-3)


@pytest.mark.parametrize("weight", [0.7, 2.0])
def test_support_labels_drift_in_the_authors_code_and_stay_when_clamped(weight):
    case = Published()
    gaps = torch.cdist(case.points, case.known.means).square()
    drifted, held = (
        agree(gaps, case.near, weight, case.fixed, clamp=clamp)[0] for clamp in (False, True)
    )
    expected = GOLDEN["support_labels_not_clamped"]
    changed = int((drifted[:8].argmax(1) != case.labels).sum())
    assert changed == expected["lambda_0.7" if weight == 0.7 else "support_rows_that_change_label"]
    assert torch.equal(held[:8], case.fixed[:8])


def test_without_neighbours_it_is_k_means_from_sums_alone():
    case = Published()
    memory = PrototypeMemory(6, feature_map=UnitNorm()).update(case.support, case.labels)
    found = SLK(0.0, shift=False, tolerance=0.0).fit(memory, case.queries)
    peer = SemiSupervisedKMeans(4, tolerance=0.0).fit(memory, case.queries)
    same(found.centres, peer.centres.points)
    assert torch.equal(found.labels, peer.predict(case.queries))
    with_samples = SLK(0.0, shift=False, tolerance=0.0).fit(
        memory, case.queries, Support(case.support, case.labels)
    )
    same(with_samples.centres, found.centres)
    assert found.memory.total == 40


def test_neighbours_help_where_one_sample_a_class_is_known():
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    rights = {0.0: 0, 0.7: 0}
    for seed in range(4):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        first = torch.stack([order[y[order] == c][0] for c in range(10)])
        asked = order[~torch.isin(order, first)][:400]
        known = PrototypeMemory(64, feature_map=UnitNorm()).update(x[first], y[first])
        for weight in rights:
            found = SLK(weight).fit(known, x[asked])
            rights[weight] += int((found.labels == y[asked]).sum())
    assert rights[0.7] > rights[0.0]


@pytest.mark.parametrize("queries", [0, 1])
def test_no_query_and_a_single_one(queries):
    case = Published()
    found = SLK().fit(case.known, case.queries[:queries].float())
    assert found.labels.shape == (queries,)
    assert found.probabilities.shape == (queries, 4)


def test_what_does_not_fit_is_refused():
    case = Published()
    for settings in ({"clamp": False}, {"unary": "mean_shift"}):
        with pytest.raises(ValueError, match="needs the samples of the support"):
            SLK(**settings).fit(case.known, case.queries)
    with pytest.raises(ValueError, match="memory is empty"):
        SLK().fit(PrototypeMemory(6), case.queries)
    with pytest.raises(ValueError, match="weight=-1"):
        SLK(-1)
    with pytest.raises(ValueError, match="neighbours=0"):
        SLK(neighbours=0)
    with pytest.raises(ValueError, match=r"classes \[9\] have no row"):
        SLK().fit(case.known, case.queries, Support(case.support[:1], torch.tensor([9])))
