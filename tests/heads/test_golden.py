"""Every head against the numbers of the original code, centralised and merged from clients."""

from __future__ import annotations

import pytest
import torch

from protocl import PrototypeMemory
from protocl.heads import Head, LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.heads.regression.spectrum import GRID, decompose
from protocl.heads.regression.strength import cross_validation_errors, heldout_errors
from protocl.memory.feature_maps import ReluProjection
from tests.golden.ptm import golden, inputs, scores

F64 = torch.float64
RESULTS = golden()["results"]


def centralised(head: Head, positive: bool = False) -> PrototypeMemory:
    data = inputs(positive)
    return head.new_memory(16).update(data.train, data.train_labels)


def merged(head: Head, positive: bool = False) -> PrototypeMemory:
    """Four clients in an arbitrary order."""
    data = inputs(positive)
    total = head.new_memory(16)
    for client in (2, 0, 3, 1):
        mine = data.clients == client
        total += head.new_memory(16).update(data.train[mine], data.train_labels[mine])
    return total


def squared(distances: torch.Tensor) -> torch.Tensor:
    return -distances.square()


def nothing(values: torch.Tensor) -> torch.Tensor:
    return values


def negated(values: torch.Tensor) -> torch.Tensor:
    return -values


def around_their_mean(values: torch.Tensor) -> torch.Tensor:
    """Scores of a discriminant hold up to a number that all classes of a sample share."""
    return values - values.mean(1, keepdim=True)


CASES = [
    ("simplecil_cosine", NearestMean("cosine", dtype=F64), False, nothing),
    ("nmc_euclid", NearestMean(normalize_input=True, dtype=F64), False, squared),
    (
        "icarl_nme",
        NearestMean(normalize_input=True, normalize_mean=True, dtype=F64),
        False,
        negated,
    ),
    (
        "avalanche_ncm_normalize_True",
        NearestMean(normalize_input=True, normalize_mean=True, dtype=F64),
        False,
        squared,
    ),
    ("avalanche_ncm_normalize_False", NearestMean(dtype=F64), False, squared),
    ("lda_exact_from_merged_statistics", LinearDiscriminant(dtype=F64), False, around_their_mean),
    ("fecam_original_beta0.5_a1_1_a2_1", Mahalanobis((1, 1), dtype=F64), True, negated),
    ("fecam_original_beta0.5_a1_1_a2_0", Mahalanobis((1, 0), dtype=F64), True, negated),
    (
        "avalanche_fecam_a1_1_a2_1",
        Mahalanobis((1, 1), mean_of="transformed", dtype=F64),
        True,
        negated,
    ),
    (
        "avalanche_fecam_a1_1_a2_0",
        Mahalanobis((1, 0), mean_of="transformed", dtype=F64),
        True,
        negated,
    ),
    (
        "fecam_vit_script",
        Mahalanobis((1, 0), shrink_passes=1, tukey=None, dtype=F64),
        False,
        negated,
    ),
]


@pytest.mark.parametrize(("key", "head", "positive", "as_logit"), CASES, ids=[c[0] for c in CASES])
@pytest.mark.parametrize("memory_of", [centralised, merged])
def test_scores_and_predictions_of_the_original_code(key, head, positive, as_logit, memory_of):
    data = inputs(positive)
    logits = head.fit(memory_of(head, positive))(data.test)
    expected = as_logit(scores(key))
    if as_logit is around_their_mean:
        logits = around_their_mean(logits)
    torch.testing.assert_close(logits, expected, rtol=2e-6, atol=2e-6)
    assert head.predict(data.test).tolist() == RESULTS[key]["pred"]


def streamed(head: LinearDiscriminant, base: bool) -> PrototypeMemory:
    data = inputs()
    memory = head.new_memory(16)
    for number, chosen in enumerate(data.experiences):
        learn = memory.fit_base if base and number == 0 else memory.update
        learn(data.train[chosen], data.train_labels[chosen])
    return memory


@pytest.mark.parametrize(
    ("key", "base"),
    [("slda_avalanche_stream", False), ("slda_avalanche_oas_base_then_stream", True)],
)
def test_streaming_statistics_give_the_numbers_of_deep_slda(key, base):
    head = LinearDiscriminant(streaming=True, dtype=F64)
    memory = streamed(head, base)
    logits, expected = (
        around_their_mean(values) for values in (head.fit(memory)(inputs().test), scores(key))
    )
    torch.testing.assert_close(logits, expected, rtol=2e-6, atol=2e-6)
    assert head.predict(inputs().test).tolist() == RESULTS[key]["pred"]


def test_streaming_statistics_have_the_trace_and_means_of_deep_slda():
    expected = RESULTS["slda_avalanche_stream"]
    memory = streamed(LinearDiscriminant(streaming=True), base=False)
    trace = float((memory.scatter() / memory.total).trace())
    assert trace == pytest.approx(expected["Sigma_trace"], rel=1e-9)
    assert float(memory.means.abs().sum()) == pytest.approx(expected["mu_abs_sum"], rel=1e-9)


def test_exact_covariance_has_the_golden_trace():
    memory = centralised(LinearDiscriminant())
    trace = float((memory.scatter() / memory.total).trace())
    expected = RESULTS["lda_exact_from_merged_statistics"]["Sigma_trace"]
    assert trace == pytest.approx(expected, rel=1e-9)


def ridge(key: str, **options) -> Ridge:
    projection = None
    if key != "ranpac_norp":
        projection = ReluProjection(16, 64, weight=inputs().projection)
    return Ridge(projection, dtype=F64, **options)


def heldout_of(chosen: torch.Tensor) -> torch.Tensor:
    """RanPAC holds out the last 20 % of an experience's samples."""
    rows = chosen.nonzero().squeeze(1)
    return rows[int(0.8 * len(rows)) :]


@pytest.mark.parametrize("key", ["ranpac_rp64", "ranpac_norp"])
class TestRanPAC:
    def errors_by_experience(self, key):
        data, head = inputs(), ridge(key)
        for chosen in data.experiences:
            rows = heldout_of(chosen)
            experience = head.new_memory(16).update(data.train[chosen], data.train_labels[chosen])
            heldout = head.new_memory(16).update(data.train[rows], data.train_labels[rows])
            errors = heldout_errors(decompose(experience - heldout), heldout)
            yield errors * len(experience) / 6  # the original averages over all six columns

    def test_regularisation_chosen_on_each_experience(self, key):
        chosen = [GRID[int(errors.argmin())] for errors in self.errors_by_experience(key)]
        assert chosen == RESULTS[key]["lambda_per_task"]

    def test_validation_errors_of_the_last_experience(self, key):
        *_, errors = self.errors_by_experience(key)
        expected = torch.tensor(RESULTS[key]["val_mse_last_task"], dtype=F64)
        # With fewer samples than random features a strength of 1e-8 is ill-conditioned: there a
        # solve and a decomposition differ in the fifth digit.
        torch.testing.assert_close(errors[:1], expected[:1], rtol=1e-4, atol=0)
        # RanPAC's grid ends at 10^8, before ours.
        own = errors[1 : len(expected)]
        torch.testing.assert_close(own, expected[1:], rtol=1e-5, atol=0)

    def test_generalised_cross_validation_agrees(self, key):
        memory = centralised(ridge(key))
        errors = cross_validation_errors(decompose(memory))
        assert GRID[int(errors.argmin())] == RESULTS[key]["own_gcv_lambda"]

    @pytest.mark.parametrize("memory_of", [centralised, merged])
    def test_scores(self, key, memory_of):
        head = ridge(key, regularization=RESULTS[key]["lambda_per_task"][-1])
        logits = head.fit(memory_of(head))(inputs().test)
        torch.testing.assert_close(logits, scores(key), rtol=2e-6, atol=2e-6)
        assert head.predict(inputs().test).tolist() == RESULTS[key]["pred"]

    def test_sums(self, key):
        memory = centralised(ridge(key))
        expected = RESULTS[key]
        assert float(memory.second_moment.trace()) == pytest.approx(expected["G_trace"], rel=1e-9)
        assert float(memory.sums.abs().sum()) == pytest.approx(expected["C_abs_sum"], rel=1e-9)


def test_ridge_equals_the_recursive_least_squares_of_acil():
    head = ridge("acil", regularization=0.1)
    logits = head.fit(merged(head))(inputs().test)
    # The recursion itself drifts by 1.7e-10 from the direct solution.
    torch.testing.assert_close(logits, scores("acil_recursive_gamma0.1"), rtol=2e-6, atol=2e-6)


def test_heldout_statistics_choose_the_regularisation():
    data = inputs()
    head = Ridge(dtype=F64)
    rows = torch.arange(0, 200, 5)
    memory = centralised(head)
    heldout = head.new_memory(16).update(data.train[rows], data.train_labels[rows])
    kept = torch.ones(200, dtype=torch.bool).index_fill_(0, rows, False)
    one_hot = torch.nn.functional.one_hot(data.train_labels, 6).to(F64)
    errors = []
    for strength in GRID:
        x, y = data.train[kept], one_hot[kept]
        weights = torch.linalg.solve(x.T @ x + strength * torch.eye(16, dtype=F64), x.T @ y)
        errors.append(float((data.train[rows] @ weights - one_hot[rows]).square().mean()))
    assert head.fit(memory, heldout=heldout).chosen == GRID[errors.index(min(errors))]


@pytest.mark.parametrize("pieces", [1, 7, 40])
def test_running_statistics_are_those_of_one_sample_after_the_other(pieces):
    """Deep SLDA's rule written out, whatever the batches in which samples come."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (40,), generator=generator)
    features = 2 + torch.randn(40, 4, generator=generator, dtype=torch.float64) + labels[:, None]
    means, seen = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3)
    covariance = torch.zeros(4, 4, dtype=torch.float64)
    for t, (x, y) in enumerate(zip(features, labels.tolist(), strict=True)):
        deviation = x - means[y]
        covariance = (t * covariance + torch.outer(deviation, deviation) * t / (t + 1)) / (t + 1)
        seen[y] += 1
        means[y] += deviation / seen[y]
    memory = LinearDiscriminant(streaming=True).new_memory(4)
    for part in torch.arange(40).chunk(pieces):
        memory.update(features[part], labels[part])
    torch.testing.assert_close(memory.means, means)
    torch.testing.assert_close(memory.scatter() / memory.total, covariance)
