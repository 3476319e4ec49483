"""Scores against the released code's values, from sums of two clients; metrics; refusals."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from protocl import PrototypeMemory
from protocl.errors import NotFittedError, PrecisionWarning
from protocl.metrics.detection import detection, fpr_at_recall
from protocl.open_world.explanation.explanation import PrototypeUncertainty
from protocl.open_world.scores import NearestSamples, known_scores, reported_scores
from protocl.open_world.scores.discriminant import Energy, Softmax, energy, largest_probability
from protocl.open_world.scores.distance import Distance
from protocl.open_world.scores.mahalanobis import MahalanobisScore, RelativeMahalanobis
from protocl.open_world.scores.nci import NCI, collapse
from protocl.open_world.scores.vim import Residual, ViM
from protocl.registry import SCORES
from tests.open_world.test_evidence import world

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "unknown_inputs.json").read_text())
VALUES, INTERNALS = GOLDEN["ood_scores"]["scores"], GOLDEN["ood_scores"]["vim_internals"]
MERGED = GOLDEN["ood_scores"]["from_merged_statistics"]


@pytest.fixture(scope="module")
def given():
    """Memory of two clients, weights, biases, samples and queries of the golden recipe."""
    rng = np.random.default_rng(102)
    mu = 2 * rng.standard_normal((10, 6))
    x = np.repeat(mu, 12, 0) + rng.standard_normal((120, 6))
    x_in = np.repeat(mu, 2, 0) + rng.standard_normal((20, 6))
    x_out = 2 * rng.standard_normal((15, 6))
    weights = mu + 0.1 * rng.standard_normal((10, 6))
    rows = rng.permutation(120)[:47]
    tensors = [torch.tensor(a) for a in (x, np.r_[x_in, x_out], weights, -0.5 * (mu**2).sum(1))]
    labels, first = torch.arange(10).repeat_interleave(12), torch.zeros(120, dtype=torch.bool)
    first[torch.tensor(rows)] = True
    clients = [
        PrototypeMemory(6, level="shared").update(tensors[0][mine], labels[mine])
        for mine in (first, ~first)
    ]
    return sum(clients), *tensors


def test_the_inputs_are_those_of_the_recipe(given):
    _, x, queries, weights, biases = given
    for name, value in (("x_train", x), ("x_in", queries[:20]), ("x_out", queries[20:])):
        assert float(value.sum()) == pytest.approx(GOLDEN["queries"]["check"][name]["sum"])
    for name, value in (("W", weights), ("b", biases)):
        assert float(value.sum()) == pytest.approx(GOLDEN["ood_scores"]["check"][name]["sum"])


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (MahalanobisScore(shrinkage=0.0), "mahalanobis"),
        (RelativeMahalanobis(shrinkage=0.0), "relative_mahalanobis"),
    ],
)
def test_golden_scores_of_merged_statistics(given, score, name):
    memory, _, queries, *_ = given
    assert score.fit(memory)(queries).tolist() == pytest.approx(VALUES[name], rel=1e-7)


def test_golden_scores_of_logits(given):
    _, x, queries, weights, biases = given
    logits = queries @ weights.T + biases
    assert energy(logits).tolist() == pytest.approx(VALUES["energy_T1"])
    assert energy(logits, 2.0).tolist() == pytest.approx(VALUES["energy_T2"])
    probability = largest_probability(logits)
    assert probability.tolist() == pytest.approx(VALUES["max_softmax_tau1"])
    stored = NearestSamples(k=3).fit(x)(queries)
    assert stored.tolist() == pytest.approx(VALUES["knn_k3"], abs=1e-8)
    nci = collapse(queries, weights[logits.argmax(1)], x.mean(0), 0.001)
    assert nci.tolist() == pytest.approx(VALUES["nci_alpha0.001"])


def test_golden_vim(given):
    memory, _, queries, weights, biases = given
    origin = -torch.linalg.pinv(weights) @ biases
    assert origin.tolist() == pytest.approx(INTERNALS["u"])
    residual = Residual.of(memory, weights, biases, origin, dim=3)
    assert residual.scale == pytest.approx(MERGED["alpha_from_statistics"])
    energies, norms = energy(queries @ weights.T + biases), residual.norms(queries)
    assert (energies - INTERNALS["alpha"] * norms).tolist() == pytest.approx(VALUES["vim_dim3"])
    own = (energies - residual.scale * norms).tolist()
    assert own == pytest.approx(MERGED["vim_with_alpha_from_statistics"])


@pytest.mark.parametrize("name", sorted(GOLDEN["ood_scores"]["metrics"]["values"]))
def test_golden_metrics(name):
    golden = GOLDEN["ood_scores"]["metrics"]["values"][name]
    scores = np.array(VALUES[name])
    found = detection(scores[:20], scores[20:])
    assert found.auroc == pytest.approx(golden["auroc"])
    # The released code joins the points of the curve by straight lines.
    assert found.aupr_unknown == pytest.approx(golden["aupr_out"], abs=0.025)
    assert found.fpr95_unknown == pytest.approx(golden["fpr95"])


def test_the_threshold_of_fpr_keeps_the_share_asked_for():
    known = np.arange(20.0)
    for accepted, unknown in ((1.0, [1.0]), (0.0, [0.9])):  # one of twenty may go
        assert fpr_at_recall(known, unknown) == accepted
    with pytest.raises(ValueError, match="known"):
        detection([], [1.0])
    with pytest.raises(ValueError, match="1 scores are NaN"):
        detection([float("nan")], [1.0])


@pytest.mark.parametrize("name", SCORES.names())
def test_every_score_prefers_the_known_merges_and_forgets(name):
    memory, x, labels = world(level="shared", exact=True)
    score = SCORES.get(name)()
    far = x.mean(0) + 0.1 * x[:6]
    assert score.fit(memory)(x).median() > score(far).median()
    assert score.state_dict() == {}
    assert score(x[:0]).shape == (0,)
    parts = [memory.empty_like().update(x[rows::2], labels[rows::2]) for rows in (1, 0)]
    strange = memory.empty_like().update(far, torch.full((6,), 50))
    rebuilt = sum(parts) + strange - strange
    assert torch.equal(SCORES.get(name)().fit(rebuilt)(x), score(x))
    with pytest.raises(NotFittedError):
        SCORES.get(name)()(x)
    with pytest.raises(ValueError, match="shape"):
        score(x[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        score(x * float("nan"))


@pytest.mark.parametrize("name", SCORES.names())
@pytest.mark.parametrize("map_name", ["unit", "tukey", "top_k:dim=40:keep=0.5"])
def test_every_score_takes_the_map_of_the_memory(name, map_name):
    from protocl.heads import NearestMean

    _, x, labels = world()
    x = x.abs()
    head = NearestMean(map=map_name)
    memory = head.new_memory(5, level="shared").update(x, labels)
    plain = PrototypeMemory(memory.width, level="shared").update(memory.feature_map(x), labels)
    here = SCORES.get(name)().fit(memory)(x)
    there = SCORES.get(name)().fit(plain)(memory.feature_map(x))
    torch.testing.assert_close(here.double(), there.double(), rtol=1e-4, atol=1e-4)


def test_a_memory_gives_the_scores_that_its_level_allows():
    memory, x, labels = world()
    assert list(known_scores(memory, x)) == SCORES.names()
    assert list(known_scores(memory.at_level("mean"), x)) == ["distance"]
    one = PrototypeMemory(5, level="shared").update(x[:8], labels[:8])
    assert "evidence" not in known_scores(one, x)
    single = PrototypeMemory(5, level="shared").update(x[::8], labels[::8])
    assert list(known_scores(single, x)) == ["distance"]
    known = torch.arange(len(x)) < 40
    assert reported_scores({"distance": -x[:, 0]}, torch.ones(len(x)).bool()) == {}
    assert list(reported_scores({"distance": -x[:, 0]}, known)) == ["distance"]


def test_the_distance_is_that_of_the_head():
    from protocl.heads import NearestMean

    memory, x, _ = world()
    assert torch.equal(Distance().fit(memory)(x), NearestMean().fit(memory)(x).amax(1))


def test_what_cannot_be_is_refused_when_it_is_made():
    memory, *_ = world()
    for make in (
        lambda: Energy(temperature=0.0), lambda: Softmax(shrinkage=2), lambda: NCI(alpha=-1.0),
        lambda: ViM(dim=-1), lambda: ViM(dim=2.0), lambda: NearestSamples(k=0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            make()
    with pytest.raises(ValueError, match="no residual"):
        ViM(dim=5).fit(memory)
    with pytest.raises(ValueError, match="no sample"):
        NearestSamples().fit(torch.zeros(0, 3))


def test_a_sample_at_the_centre_has_a_number():
    zero = torch.zeros(1, 2)
    assert collapse(zero, torch.ones(1, 2), torch.zeros(2), 0.5).tolist() == [0.0]
    assert NearestSamples(k=1).fit(torch.eye(2))(zero).tolist() == [-2.0]


@pytest.mark.parametrize("level", ["shared", "full"])
def test_scores_that_rest_on_scatter_are_left_out_where_there_is_none(level):
    means = 2 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5).repeat_interleave(6)
    memory = PrototypeMemory(4, level=level).update(means[labels], labels)
    assert sorted(known_scores(memory, means)) == ["distance"]
    with pytest.raises(ValueError, match="no class has two samples that differ"):
        MahalanobisScore().fit(memory)
    with pytest.warns(PrecisionWarning, match="no class has samples that differ"):
        assert PrototypeUncertainty(memory)(means + 0.1).total.max() < 1.3  # of log 5 = 1.6
    far = means[labels].double() + 1e4 + 0.01 * torch.randn(30, 4, dtype=torch.float64)
    one = PrototypeMemory(4, level=level).update(far, labels)
    assert sorted(known_scores(one, far)) == SCORES.names()


def test_scores_that_compare_classes_are_left_out_with_one_class():
    memory = PrototypeMemory(4, level="shared").update(torch.randn(9, 4), torch.full((9,), 7))
    scores = known_scores(memory, torch.randn(3, 4))
    assert sorted(scores) == ["distance", "mahalanobis"]
    assert all(len(score.unique()) == 3 for score in scores.values())
    with pytest.raises(ValueError, match="1 classes, 2 or more are needed"):
        Energy().fit(memory)


def test_nci_says_where_it_is_of_length_alone():
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(60) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NCI().fit(PrototypeMemory(5, level="shared").update(x, y))
        large = PrototypeMemory(5, level="shared").update(1e6 * x, y)
        NCI(alpha=0.0).fit(large)
    with pytest.warns(PrecisionWarning, match=r"nci: .*alpha=0"):
        NCI().fit(large)
