"""Published ridge regressions: golden values of the authors' code, and the theorems behind them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.heads import LinearDiscriminant, NearestMean, Ridge
from protocl.heads.regression.equations import Equations
from protocl.heads.regression.spectrum import GRID, decompose, solve
from protocl.heads.regression.strength import cross_validation_errors
from protocl.memory.maps.random_fourier import RandomFourier
from protocl.memory.maps.top_k import TopKProjection
from tests.golden.statistics_methods import document, inputs, values

F64 = torch.float64


def test_the_inputs_are_those_of_the_recipe():
    for name, expected in document()["inputs"]["check"].items():
        found = inputs()[name].double()
        assert list(found.shape) == expected["shape"]
        assert float(found.sum()) == pytest.approx(expected["sum"], abs=1e-7)
        assert float(found.flatten()[0]) == pytest.approx(expected["first"], rel=1e-9)
        assert float(found.flatten()[-1]) == pytest.approx(expected["last"], rel=1e-9)


def test_every_case_of_the_authors_is_looked_up_by_a_test():
    folder = Path(__file__).parents[2]
    texts = "\n".join(path.read_text("utf-8") for path in folder.rglob("test_*.py"))
    assert [case for case in document()["cases"] if f'values("{case}")' not in texts] == []


def of_clients(head: Ridge | LinearDiscriminant | NearestMean, clients: int) -> PrototypeMemory:
    """The sum of the clients' memories."""
    given = inputs()
    parts = [
        head.new_memory(12).update(given["X"][chosen], given["y"][chosen])
        for chosen in (given["client"] % clients == c for c in range(clients))
    ]
    return sum(parts)


def rows(head: Ridge) -> torch.Tensor:
    """Weights ``(C, D)``."""
    return head._weights.T


def near(found: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-8, atol=1e-8)


def biases(head: Ridge) -> torch.Tensor:
    """Of features that are not moved to the middle of the class means."""
    return head._biases - head._centre @ head._weights


class TestFed3R:
    golden = values("fedncm_fed3r_fedcof")

    @pytest.mark.parametrize("clients", [1, 8])
    def test_weights_of_fedcofs_repository(self, clients):
        head = Ridge(regularization=0.01, normalize=True, dtype=F64)
        near(rows(head.fit(of_clients(head, clients))), self.golden["fed3r_lambda0.01_weights"])

    @pytest.mark.parametrize("clients", [1, 8])
    def test_weights_and_biases_of_its_own_repository(self, clients):
        head = Ridge(regularization=0.01, normalize=True, bias=True, dtype=F64)
        head.fit(of_clients(head, clients))
        near(rows(head), self.golden["fed3r_own_repository_weights"])
        near(biases(head), self.golden["fed3r_own_repository_bias"])

    def test_fedncms_weights_are_unit_means(self):
        head = NearestMean("cosine", normalize_mean=True, dtype=F64)
        means = of_clients(head, 8).means
        near(means / means.norm(dim=1, keepdim=True), self.golden["fedncm_weights"])


class TestAFL:
    golden = values("afl_rg1_four_clients")

    @pytest.mark.parametrize(
        ("key", "strength"), [("aggregated_weights", 4.0), ("after_clean_regularization", 1e-11)]
    )
    def test_four_clients(self, key, strength):
        head = Ridge(regularization=strength, dtype=F64)
        near(rows(head.fit(of_clients(head, 4))), self.golden[key])

    def test_the_first_client_alone(self):
        head, given = Ridge(regularization=1.0, dtype=F64), inputs()
        chosen = given["client"] % 4 == 0
        memory = head.new_memory(12).update(given["X"][chosen], given["y"][chosen])
        near(rows(head.fit(memory)), self.golden["client0_weights"])


@pytest.mark.parametrize("clients", [1, 8])
class TestAIR:
    def test_exact_weights_need_a_moment_of_each_class(self, clients):
        head = Ridge(regularization=0.1, balance="class", dtype=F64)
        memory = of_clients(head, clients)
        assert memory.level == "full"
        golden = values("air_gamma0.1")
        near(rows(head.fit(memory)), golden["weights"])
        weighted = Equations(memory, head.form).targets
        near((weighted / memory.sums.T)[0], golden["class_weights"])

    def test_weights_from_one_moment_for_all(self, clients):
        head = Ridge(regularization=0.1, balance="shared", dtype=F64)
        memory = of_clients(head, clients)
        assert memory.level == "shared"
        golden = values("own")["balanced_ridge_from_shared_gamma0.1"]["weights"]
        near(rows(head.fit(memory)), golden)


class TestFlyCL:
    golden = values("flycl_M40_degree4_top12")

    def map(self) -> TopKProjection:
        rp, weight = np.random.RandomState(9), np.zeros((40, 12))
        for row in range(40):
            columns = rp.permutation(12)[:4]
            weight[row, columns] = rp.standard_normal(4)
        return TopKProjection(12, 40, 4, 0.3, weight=torch.from_numpy(weight.T.copy()))

    def test_features(self):
        near(self.map()(inputs()["T"][:1])[0], self.golden["features_first_test"])

    def test_strength_and_scores(self):
        head = Ridge(map=self.map(), regularization=10.0, dtype=F64)
        memory = of_clients(head, 8)
        errors = cross_validation_errors(decompose(memory))
        assert GRID[int(errors.argmin())] == self.golden["lambda_grid_-4_to_5"]
        near(head.fit(memory)(inputs()["T"][:6]), self.golden["scores_first_6_test"])


def test_kldas_distances_and_predictions():
    """Its scores are the discriminant's up to a number a sample, and the scatter's divisor."""
    golden, given = values("klda_gamma0.02"), inputs()
    weight = torch.cat([given["omega"], given["b"][None]])
    head = LinearDiscriminant(0.0, map=RandomFourier(12, 40, 0.02, weight=weight), dtype=F64)
    memory = of_clients(head, 8)
    near(memory.scatter().diagonal(), golden["scatter_diagonal"])
    assert head.fit(memory).predict(given["T"]).tolist() == golden["predictions"]
    expected = torch.tensor(golden["logits_first_6_test"], dtype=F64) * memory.total / 2
    found = head(given["T"][:6])
    found, expected = (each - each.mean(1, keepdim=True) for each in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# -- theorems, on samples of any kind --------------------------------------------------------


@st.composite
def samples(draw, width: int = 5):
    """Features, labels and a client of each sample; every class has three or more samples."""
    classes = draw(st.integers(2, 4))
    counts = draw(st.lists(st.integers(3, 12), min_size=classes, max_size=classes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    labels = torch.arange(classes).repeat_interleave(torch.tensor(counts))
    centres = 3 * torch.randn(classes, width, generator=generator, dtype=F64)
    features = centres[labels] + torch.randn(
        len(labels), width, generator=generator, dtype=F64
    ) @ torch.randn(width, width, generator=generator, dtype=F64)
    clients = torch.randint(draw(st.integers(1, 5)), (len(labels),), generator=generator)
    return features, labels, clients


FORMS = [
    {},
    {"bias": True, "normalize": True},
    {"scatter": "within", "bias": True},
    {"balance": "shared", "bias": True},
    {"balance": "class", "scatter": "within"},
    {"balance": "class", "bias": True},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("exact", [False, True])
@settings(max_examples=5, deadline=None)
@given(batch=samples())
def test_clients_together_give_what_one_place_gives(form, exact, batch):
    features, labels, clients = batch
    head = Ridge(regularization=0.5, dtype=F64, **form)
    whole = head.new_memory(5, exact=exact).update(features, labels)
    parts = [
        head.new_memory(5, exact=exact).update(features[clients == c], labels[clients == c])
        for c in clients.unique()
    ]
    expected = head.fit(whole)(features)
    found = Ridge(regularization=0.5, dtype=F64, **form).fit(sum(parts[::-1]))(features)
    if exact:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@settings(max_examples=10, deadline=None)
@given(batch=samples())
def test_combined_solutions_of_afl_are_those_of_the_sums(batch):
    """Theorem 1 of AFL, client by client, against ridge regression with hardly any penalty."""
    features, labels, clients = batch
    targets = torch.nn.functional.one_hot(labels).double()
    eye = torch.eye(5, dtype=F64)
    gram, weights = torch.zeros(5, 5, dtype=F64), torch.zeros(5, targets.shape[1], dtype=F64)
    for c in clients.unique():
        x, y = features[clients == c], targets[clients == c]
        own = x.T @ x + eye
        solved = torch.linalg.solve(own, x.T @ y)
        both = gram + own
        weights = weights + torch.linalg.solve(both, own @ (solved - weights))
        gram = both
    cleaned = torch.linalg.solve(gram - len(clients.unique()) * eye, gram @ weights)
    head = Ridge(regularization=1e-10, dtype=F64)
    found = head.fit(head.new_memory(5).update(features, labels))._weights
    smallest = float(torch.linalg.eigvalsh(features.T @ features)[0])
    tolerance = 1e-8 * (1 + 1 / max(smallest, 1e-9))
    torch.testing.assert_close(found, cleaned, rtol=tolerance, atol=tolerance)


@settings(max_examples=10, deadline=None)
@given(batch=samples(), bias=st.booleans(), scatter=st.sampled_from(["total", "within"]))
def test_one_moment_for_all_is_enough_where_classes_have_one_covariance(batch, bias, scatter):
    features, labels, _ = batch
    classes, counts = labels.unique(return_counts=True)
    generator = torch.Generator().manual_seed(1)
    scatters = torch.randn(9, 5, generator=generator, dtype=F64)
    covariance = scatters.T @ scatters
    means = torch.stack([features[labels == c].mean(0) for c in classes])
    like = PrototypeMemory(5, "full")
    memory = PrototypeMemory.from_statistics(
        like, classes=classes, counts=counts, means=means,
        scatter=counts[:, None, None] * covariance,
    )  # fmt: skip
    found, expected = (
        Ridge(regularization=0.3, balance=kind, bias=bias, scatter=scatter, dtype=F64).fit(
            memory.at_level("shared") if kind == "shared" else memory
        )(features)
        for kind in ("shared", "class")
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@settings(max_examples=8, deadline=None)
@given(batch=samples(), bias=st.booleans())
def test_balance_is_a_weight_of_each_sample(batch, bias):
    """Weighted least squares, sample by sample; twice as many copies of a class change nothing."""
    features, labels, _ = batch
    counts = labels.bincount().double()
    weight = (len(counts) / counts.reciprocal().sum() / counts)[labels]
    x = torch.cat([features, torch.ones(len(features), 1, dtype=F64)], 1) if bias else features
    y = torch.nn.functional.one_hot(labels).double()
    gram = x.T @ (weight[:, None] * x) + 0.7 * torch.eye(x.shape[1], dtype=F64)
    expected = x @ torch.linalg.solve(gram, x.T @ (weight[:, None] * y))
    head = Ridge(regularization=0.7, balance="class", bias=bias, dtype=F64)
    found = head.fit(head.new_memory(5).update(features, labels))(features)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@settings(max_examples=8, deadline=None)
@given(batch=samples(), scatter=st.sampled_from(["total", "within"]))
def test_equal_counts_need_no_balance(batch, scatter):
    features, labels, _ = batch
    kept = torch.cat([(labels == c).nonzero()[:3, 0] for c in labels.unique()])
    answers = []
    for balance in ("none", "shared", "class"):
        head = Ridge(regularization=0.3, balance=balance, scatter=scatter, dtype=F64)
        memory = head.new_memory(5).update(features[kept], labels[kept])
        answers.append(head.fit(memory)(features))
    for found in answers[1:]:
        torch.testing.assert_close(found, answers[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("balance", ["none", "shared", "class"])
@pytest.mark.parametrize("bias", [False, True])
def test_held_out_errors_are_those_of_the_samples(balance, bias):
    """With balance every class weighs alike in the error as well."""
    given, rows = inputs(), torch.arange(0, 180, 4)
    x, y = given["X"], given["y"]
    head = Ridge(balance="none" if balance == "none" else "class", bias=bias, dtype=F64)
    own = Ridge(balance=balance, bias=bias, dtype=F64)
    memory, heldout = (own.new_memory(12).update(x[i], y[i]) for i in (torch.arange(180), rows))
    kept = torch.ones(180, dtype=torch.bool).index_fill_(0, rows, False)
    errors = []
    for strength in GRID:
        fitted = Ridge(regularization=strength, balance=balance, bias=bias, dtype=F64)
        fitted.fit(fitted.new_memory(12).update(x[kept], y[kept]))
        residual = (fitted(x[rows]) - torch.nn.functional.one_hot(y[rows])).square().sum(1)
        each = torch.stack([residual[y[rows] == c].mean() for c in range(6)])
        errors.append(float(residual.mean() if head.balance == "none" else each.mean()))
    chosen = own.fit(memory, heldout=heldout).chosen
    assert abs(GRID.index(chosen) - int(np.argmin(errors))) <= (1 if balance == "shared" else 0)


def test_cross_validation_with_weights_is_that_of_weighted_samples():
    given = inputs()
    head = Ridge(balance="class", bias=True, dtype=F64)
    memory = head.new_memory(12).update(given["X"], given["y"])
    found = cross_validation_errors(decompose(memory, head.form))
    counts = given["y"].bincount().double()
    root = (6 / counts.reciprocal().sum() / counts)[given["y"]].sqrt()[:, None]
    x = root * torch.cat([given["X"], torch.ones(180, 1, dtype=F64)], 1)
    y = root * torch.nn.functional.one_hot(given["y"])
    for strength, score in zip(GRID, found, strict=True):
        hat = x @ torch.linalg.solve(x.T @ x + strength * torch.eye(13, dtype=F64), x.T)
        residual = float((y - hat @ y).square().sum()) / 180
        expected = residual / (1 - float(hat.trace()) / 180) ** 2
        assert float(score) == pytest.approx(expected, rel=1e-8)


# -- corners ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("samples", [1, 3, 40])
def test_few_samples_and_constant_features(form, samples):
    x = torch.zeros(samples, 30)
    x[:, :3] = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0))
    head = Ridge(regularization=0.1, **form)
    memory = head.new_memory(30).update(x, torch.arange(samples) % 3)
    logits = head.fit(memory)(x)
    assert bool(logits.isfinite().all())
    assert head.predict(torch.zeros(0, 30)).shape == (0,)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("each", [1, 2])
def test_the_solution_of_few_samples_is_that_of_the_equations(form, each):
    """Class means lie outside the scatter within classes, which one sample each leaves at zero."""
    x = torch.randn(3 * each, 20, generator=torch.Generator().manual_seed(0), dtype=F64)
    head = Ridge(regularization=0.1, dtype=F64, **form)
    memory = head.new_memory(20).update(x, torch.arange(3 * each) % 3)
    equations = Equations(memory, head.form)
    matrix = equations.matrix()
    expected = torch.linalg.solve(
        matrix + 0.1 * torch.eye(len(matrix), dtype=F64), equations.targets
    )
    torch.testing.assert_close(solve(memory, 0.1, head.form)[0], expected, rtol=1e-8, atol=1e-8)
    assert head.fit(memory).predict(x).tolist() == [0, 1, 2] * each


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_a_strength_that_leaves_nothing_of_the_features_is_said(recwarn, scale):
    given = inputs()
    head = Ridge(regularization=0.01, bias=True, normalize=True)
    head.fit(head.new_memory(12).update(scale * given["X"], given["y"]))
    said = [str(each.message) for each in recwarn]
    assert [text.startswith("regularization=0.01 outweighs") for text in said] == [True] * (
        scale < 1
    )


def test_a_bias_answers_far_from_the_origin():
    """Next to no penalty: then it takes the offset of all features upon itself."""
    given = inputs()
    head = Ridge(regularization=1e-9, bias=True, dtype=F64)
    logits = [
        head.fit(head.new_memory(12).update(given["X"] + at, given["y"]))(given["T"] + at)
        for at in (0.0, 30.0)
    ]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scatter": "between"}, "scatter='between'"),
        ({"balance": "classes"}, "balance='classes'"),
        ({"scatter": "within"}, "scatter='within' fits no targets.*give a number"),
        ({"regularization": math.nan}, "regularization=nan"),
        ({"projection": 5, "map": "unit"}, "projection=5 is a map itself"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ridge(**options)


def test_a_moment_of_each_class_is_asked_for():
    given = inputs()
    memory = Ridge().new_memory(12).update(given["X"], given["y"])
    with pytest.raises(ValueError, match="needs a memory of level 'full', got 'shared'"):
        Ridge(balance="class").fit(memory)
