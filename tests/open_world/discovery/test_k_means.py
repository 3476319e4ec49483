"""Semi-supervised k-means: the authors' numbers, and what a memory in place of samples gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import UnitNorm
from protocl.metrics.clusters import split_accuracy
from protocl.metrics.confusion import Confusion
from protocl.open_world.discovery.centres import plus_plus
from protocl.open_world.discovery.k_means import Clustering, SemiSupervisedKMeans
from tests.golden.discovery import drawn, golden, same


class Published:
    """The inputs of the authors' run."""

    def __init__(self) -> None:
        rng = np.random.default_rng(202)
        mu = 1.6 * rng.standard_normal((6, 5))
        y = np.repeat(np.arange(6), 20)
        self.part = golden()["gcd"]["ss_kmeans"]
        x = drawn(self.part, "x", mu[y] + rng.standard_normal((120, 5)))
        labelled = torch.from_numpy((y < 3) & (np.arange(120) % 2 == 0))
        labels = torch.from_numpy(y)
        self.known = PrototypeMemory(5, "diagonal").update(x[labelled], labels[labelled])
        self.unlabelled, self.true = x[~labelled], labels[~labelled]

    def accuracy(self, found: Clustering) -> tuple[float, ...]:
        assigned = found.assigned_to.ids[found.assigned_to.nearest(self.unlabelled)[0]]
        table = Confusion.from_predictions(self.true, assigned)
        return split_accuracy(table, range(3))


def test_given_starts_it_goes_the_way_of_the_authors_code():
    case = Published()
    starts = case.unlabelled[[45, 60, 75]]
    for run in case.part["given_starts"]:
        found = SemiSupervisedKMeans(6, iterations=run["max_iterations"]).fit(
            case.known, case.unlabelled, starts=starts
        )
        same(found.inertia, run["inertia"])
        before = found.assigned_to
        assert before.ids[before.nearest(case.unlabelled)[0]].tolist() == run["labels_unlabelled"]
        same(case.accuracy(found), run["v2_unlabelled"])
        given = run["centres"]
        same(found.centres.points if isinstance(given, list) else found.centres.points.sum(), given)


def test_seeded_as_the_authors_it_ends_where_they_do():
    case = Published()
    run = case.part["kpp_random_state_1_n_init_10"]
    found = SemiSupervisedKMeans(6, seed=1).fit(case.known, case.unlabelled)
    same(found.inertia, run["inertia"])
    same(case.accuracy(found), run["v2_unlabelled"])
    same(found.centres.points.sum(0), run["centres_sum"])


def test_without_known_classes_it_is_lloyds_algorithm():
    case = Published()
    starts = case.unlabelled[[0, 20, 40, 60]]
    peer = KMeans(4, init=starts.numpy(), n_init=1, tol=0).fit(case.unlabelled.numpy())
    found = SemiSupervisedKMeans(4, tolerance=0.0, iterations=300).fit(
        PrototypeMemory(5), case.unlabelled, starts=starts
    )
    same(found.centres.points, peer.cluster_centers_)
    same(found.inertia, peer.inertia_)


def test_a_known_class_needs_its_mean_alone_and_keeps_its_id():
    case = Published()
    far = case.known.relabelled(torch.tensor([5, 2**61, 40]))
    of_means = far.at_level("mean")
    starts = case.unlabelled[[45, 60, 75]]
    more, less = (
        SemiSupervisedKMeans(6).fit(memory, case.unlabelled, starts=starts)
        for memory in (far, of_means)
    )
    assert torch.equal(more.centres.points, less.centres.points)
    assert more.centres.ids.tolist() == [0, 1, 2, 5, 40, 2**61]
    scatter = float(case.known.scatter().sum())
    assert more.inertia == pytest.approx(less.inertia + scatter)
    assert more.memory.total == len(case.unlabelled)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**31), st.integers(1, 4), st.booleans())
def test_federated_is_central_bit_for_bit_in_fixed_point(seed, clients, spherical):
    rng = torch.Generator().manual_seed(seed)
    samples = torch.randn(60, 3, generator=rng) + 3 * torch.randint(3, (60, 1), generator=rng)
    known = PrototypeMemory(3, feature_map=UnitNorm(), exact=True)
    known.update(samples[:10], torch.arange(10) % 2)
    owner = torch.randint(clients, (50,), generator=rng)
    parts = [samples[10:][owner == client] for client in range(clients)]
    starts = UnitNorm()(samples[20:23])
    method = SemiSupervisedKMeans(5, spherical=spherical)
    central = method.fit(known, samples[10:], starts=starts)
    federated = method.fit(known, parts, starts=starts)
    assert torch.equal(central.centres.points, federated.centres.points)
    assert central.inertia == federated.inertia
    for name, part in central.memory.parts().items():
        assert torch.equal(part, federated.memory.parts()[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_space_of_the_memory_is_that_of_its_map(dtype):
    samples = torch.tensor([[1.0, 0.1], [9.0, 1.2], [0.2, 5.0], [0.0, 0.3]], dtype=dtype)
    known = PrototypeMemory(2, feature_map=UnitNorm()).update(samples[:1], torch.tensor([3]))
    found = SemiSupervisedKMeans(2, spherical=True).fit(known, samples[1:])
    assert found.predict(UnitNorm()(samples)).tolist() == [3, 3, 0, 0]
    same(found.centres.points.norm(dim=1), [1.0, 1.0])


def test_an_empty_category_stays_and_equal_samples_do_no_harm():
    same_everywhere = torch.ones(4, 2)
    known = PrototypeMemory(2).update(same_everywhere, torch.zeros(4, dtype=torch.int64))
    found = SemiSupervisedKMeans(3).fit(known, same_everywhere)
    assert torch.isfinite(found.centres.points).all()
    assert found.inertia == 0
    alone = SemiSupervisedKMeans(1).fit(known, torch.zeros(0, 2))
    assert alone.centres.points.tolist() == [[1.0, 1.0]]


def test_weights_stand_for_the_samples_behind_a_mean():
    points = torch.tensor([[0.0], [1.0], [1.0]])
    shares = [iter([0.5, 0.5]), iter([0.5, 0.5])]
    heavy = plus_plus(points, 1, lambda: next(shares[0]), points[:0], torch.tensor([9, 1, 1]))
    light = plus_plus(points, 1, lambda: next(shares[1]), points[:0], torch.tensor([1, 9, 1]))
    assert (heavy.item(), light.item()) == (0.0, 1.0)


def test_what_does_not_fit_is_refused():
    case = Published()
    with pytest.raises(ValueError, match="categories=2: expected at least the 3 known"):
        SemiSupervisedKMeans(2).fit(case.known, case.unlabelled)
    with pytest.raises(ValueError, match=r"starts have shape \(2, 5\): expected \(3, 5\)"):
        SemiSupervisedKMeans(6).fit(case.known, case.unlabelled, starts=case.unlabelled[:2])
    with pytest.raises(ValueError, match="restarts=0"):
        SemiSupervisedKMeans(6, restarts=0)
    with pytest.raises(ValueError, match="categories=4: expected at most 3"):
        SemiSupervisedKMeans(4).fit(case.known, case.unlabelled[:0])
    exact = PrototypeMemory(2, exact=True).update(torch.full((1, 2), 1e5), torch.tensor([0]))
    with pytest.raises(OverflowError, match="use a larger step"):
        SemiSupervisedKMeans(1).fit(exact, torch.full((1, 2), 2e5))


@pytest.mark.parametrize(
    ("offset", "scale", "dtype"),
    [(1e4, 1, torch.float32), (0, 100, torch.float16), (0, 1e-9, torch.float32)],
)
def test_neither_an_offset_nor_half_precision_changes_the_categories(offset, scale, dtype):
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(6).repeat_interleave(30)
    means = 2 * torch.randn(6, 16, generator=rng, dtype=torch.float64)
    x = means[y] + torch.randn(180, 16, generator=rng, dtype=torch.float64)

    def found(samples):
        memory = PrototypeMemory(16).update(samples[y < 3], y[y < 3])
        clustering = SemiSupervisedKMeans(6, restarts=3).fit(memory, samples[y >= 3])
        category = clustering.predict(samples)
        return category[:, None] == category, clustering.inertia

    wanted, inertia = found(x)
    moved, moved_inertia = found(((x + offset) * scale).to(dtype))
    assert torch.equal(moved, wanted)
    assert moved_inertia == pytest.approx(inertia * scale**2, rel=0.01)
