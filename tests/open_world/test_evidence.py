"""The evidence ratio: golden values, its laws, and its way through memories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.errors import NotFittedError, PrecisionWarning
from protocl.open_world.categories import Rows
from protocl.open_world.evidence import TwoCovariance, log_evidence, log_ratios
from protocl.open_world.scores.evidence import Evidence
from protocl.open_world.two_covariances import ClassSums, directions

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "unknown_inputs.json").read_text())


def world(seed=0, classes=6, each=8, width=5, level="shared", **options):
    """A memory of Gaussian classes, its samples and their labels."""
    rng = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(classes, width, generator=rng, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(each)
    x = means[labels] + torch.randn(len(labels), width, generator=rng, dtype=torch.float64)
    return PrototypeMemory(width, level=level, **options).update(x, labels), x, labels


def golden_groups():
    rng, between = np.random.default_rng(802), np.array([4, 2, 1, 0.25])
    means = rng.standard_normal((3, 4)) * np.sqrt(between)
    groups = [means[k] + rng.standard_normal((n, 4)) for k, n in enumerate((3, 5, 2))]
    return groups, 2 * rng.standard_normal((5, 4)), torch.tensor(between)


def rows_of(groups):
    return Rows(
        torch.arange(len(groups)),
        torch.tensor([float(len(g)) for g in groups], dtype=torch.float64),
        torch.tensor(np.stack([g.sum(0) for g in groups])),
    )


def test_golden_values():
    groups, queries, between = golden_groups()
    golden, rows = GOLDEN["own"]["two_covariance"], rows_of(groups)
    evidence = log_evidence(rows.counts, rows.coordinates, between)
    assert evidence.tolist() == pytest.approx(golden["L"], abs=1e-8)
    ratios = log_ratios(rows, rows, between)
    for pair, value in golden["log_ratio_same_category"].items():
        i, j = map(int, pair.split(","))
        assert float(ratios[i, j]) == pytest.approx(value, abs=1e-8)
    halves = rows_of([groups[1][:2], groups[1][2:]])
    halved = float(log_ratios(halves, halves, between)[0, 1])
    assert halved == pytest.approx(golden["log_ratio_rows_0_1_against_2_3_4_of_x1"], abs=1e-8)
    known = log_ratios(rows_of([q[None] for q in queries]), rows, between)
    assert known.tolist() == [pytest.approx(r, abs=1e-8) for r in golden["known_score_matrix"]]
    assert known.amax(1).tolist() == pytest.approx(golden["known_score"], abs=1e-8)


def test_it_is_the_ratio_of_normal_densities():
    scipy_stats = pytest.importorskip("scipy.stats")
    groups, _, between = golden_groups()

    def density(samples):
        n = len(samples)
        return sum(
            scipy_stats.multivariate_normal(np.zeros(n), np.eye(n) + float(b)).logpdf(samples[:, d])
            for d, b in enumerate(between)
        )

    together = density(np.concatenate(groups[:2])) - density(groups[0]) - density(groups[1])
    rows = rows_of(groups)
    assert float(log_ratios(rows, rows, between)[0, 1]) == pytest.approx(together, abs=1e-10)


@given(st.integers(0, 1000), st.floats(0, 0.9))
@settings(max_examples=15, deadline=None)
def test_laws_of_directions_and_ratios(seed, shrinkage):
    memory, x, _ = world(seed)
    sums = ClassSums.of(memory)
    axes, between = directions(sums, shrinkage)
    torch.testing.assert_close(
        (axes.T @ sums.within() @ axes).diagonal(), torch.ones(len(between)).double()
    )
    assert len(between) <= len(memory) - 1
    evidence = TwoCovariance(shrinkage).fit(memory)
    rows = evidence.known_rows.beside(evidence.of_samples(x[:4]))
    same = evidence.same(rows, rows)
    torch.testing.assert_close(same, same.T, atol=1e-9, rtol=1e-9)


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_without_shrinkage_no_linear_map_of_the_features_matters(seed):
    memory, x, labels = world(seed)
    rng = torch.Generator().manual_seed(seed + 1)
    change = torch.randn(5, 5, generator=rng, dtype=torch.float64) + 3 * torch.eye(5).double()
    moved = PrototypeMemory(5, level="shared").update(x @ change + 7, labels)
    here, there = TwoCovariance(0.0).fit(memory), TwoCovariance(0.0).fit(moved)
    queries = 3 * torch.randn(6, 5, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(
        here.scores(queries), there.scores(queries @ change + 7), atol=1e-6, rtol=1e-6
    )


def test_left_out_is_the_ratio_to_a_memory_without_the_sample():
    memory, x, labels = world(each=4)
    evidence = TwoCovariance().fit(memory)
    left_out = evidence.left_out(x, labels)
    for n in (0, 5, 23):
        alone = PrototypeMemory(5).update(x[n : n + 1], labels[n : n + 1])
        rest = evidence.rows(memory.at_level("mean") - alone).of(labels[n : n + 1])
        same = evidence.same(rest, evidence.of_samples(x[n : n + 1]))
        assert float(left_out[n]) == pytest.approx(float(same), abs=1e-9)


def test_the_only_sample_of_a_class_has_nothing_to_be_compared_with():
    memory, x, _labels = world()
    memory.update(x[:1] + 40, torch.tensor([99]))
    evidence = TwoCovariance().fit(memory)
    assert evidence.left_out(x[:1] + 40, torch.tensor([99])).tolist() == [-float("inf")]
    with pytest.raises(KeyError, match=r"\[98\]"):
        evidence.left_out(x[:1], torch.tensor([98]))


def test_clients_give_the_bits_of_one_place():
    _, x, labels = world()
    whole = PrototypeMemory(5, level="shared", exact=True).update(x, labels)
    parts = [
        PrototypeMemory(5, level="shared", exact=True).update(x[rows::3], labels[rows::3])
        for rows in (2, 0, 1)
    ]
    here, there = TwoCovariance().fit(whole), TwoCovariance().fit(sum(parts))
    assert torch.equal(here.scores(x), there.scores(x))


def test_it_follows_the_memory_and_is_no_part_of_a_state():
    memory, x, _labels = world()
    evidence = TwoCovariance().fit(memory)
    before, axes = evidence.known(x[:3] + 90), evidence._axes
    assert evidence.fit(memory)._axes is axes
    assert evidence.state_dict() == {}
    memory.update(x[:8] + 90, torch.full((8,), 77))
    assert (evidence.fit(memory).known(x[:3] + 90) > before).all()
    assert TwoCovariance().fit(memory).known_rows.ids.tolist() == [0, 1, 2, 3, 4, 5, 77]


def test_classes_of_the_backbone_stand_in_where_few_are_known():
    base, *_ = world(seed=1, classes=40)
    memory, x, labels = world(seed=2, classes=6)
    one = PrototypeMemory(5).update(x[labels == 3], labels[labels == 3])
    evidence = TwoCovariance(base=base).fit(one)
    assert evidence.known_rows.ids.tolist() == [3]
    assert (evidence.known(x[labels == 3]) > 0).all()
    assert (evidence.known(x[labels == 1]) < 0).all()
    both = TwoCovariance(base=base).fit(memory)
    shifted = memory.relabelled(memory.classes + 1000)
    pooled = TwoCovariance().fit(base + shifted)
    torch.testing.assert_close(both.scores(x), pooled.scores(x)[:, -6:])
    with pytest.raises(ValueError, match="one backbone, width and map"):
        TwoCovariance(base=PrototypeMemory(4, level="shared")).fit(memory)


def test_what_is_refused_says_what_to_do():
    memory, x, labels = world()
    evidence = TwoCovariance()
    for shrinkage in (-0.1, 1.5, "auto", True, float("nan")):
        with pytest.raises(ValueError, match=f"shrinkage={shrinkage!r}"):
            TwoCovariance(shrinkage)
    with pytest.raises(NotFittedError, match="fit"):
        evidence.known(x)
    with pytest.raises(TypeError, match="PrototypeMemory"):
        evidence.fit(x)
    with pytest.raises(ValueError, match="1 classes"):
        evidence.fit(PrototypeMemory(5, level="shared").update(x[:8], labels[:8]))
    with pytest.raises(ValueError, match="level 'shared'"):
        evidence.fit(memory.at_level("mean"))
    with pytest.raises(ValueError, match="no class has two samples"):
        evidence.fit(PrototypeMemory(5, level="shared").update(x[::8], labels[::8]))
    evidence.fit(memory)
    with pytest.raises(ValueError, match=r"\(N, 5\)"):
        evidence.known(x[:, :4])
    with pytest.raises(ValueError, match="NaN"):
        evidence.known(x * float("nan"))
    with pytest.raises(ValueError, match="width 4"):
        evidence.rows(PrototypeMemory(4))
    assert evidence.known(x[:0]).shape == (0,)


def test_classes_that_do_not_differ_are_said_so():
    x = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    memory = PrototypeMemory(1, level="shared").update(x, torch.tensor([0, 0, 1, 1]))
    with pytest.warns(PrecisionWarning, match="no more than the scatter"):
        evidence = TwoCovariance().fit(memory)
    assert evidence.known(x).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("level", ["shared", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_levels_and_precisions(level, dtype):
    memory, x, _labels = world(level=level)
    evidence = TwoCovariance().fit(memory)
    known = evidence.known(x.to(dtype))
    assert known.dtype == torch.float64
    assert (known > 0).float().mean() > 0.8
    torch.testing.assert_close(evidence.known(x), TwoCovariance().fit(world()[0]).known(x))


def test_what_follows_from_base_classes_follows_their_changes():
    memory, x, labels = world()
    base = memory.copy()
    fitted = [TwoCovariance(base=base).fit(memory), Evidence(base=base).fit(memory)]
    scores = [fitted[0].known, fitted[1]]
    before = [score(x) for score in scores]
    base.update(3 * x + 1, labels)
    wanted = TwoCovariance(base=base).fit(memory).known(x)
    for each, score, old in zip(fitted, scores, before, strict=True):
        each.fit(memory)
        assert torch.equal(score(x), wanted)
        assert not torch.allclose(old, wanted)
