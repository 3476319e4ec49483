"""Bayesian prototypes on real data: calibration, unknown classes, evidence, and refusals."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

from protocl import PrototypeMemory, checks
from protocl.heads import (
    BayesianPrototypes,
    ClassPriors,
    LinearDiscriminant,
    NearestMean,
    RandomPrior,
    SharedPrior,
)
from protocl.heads.bayesian import conjugate
from protocl.heads.bayesian.conjugate import log_joint, predictive
from protocl.heads.bayesian.posterior import ConjugatePosterior

F64 = torch.float64
VARIANTS = {
    "iso": {},
    "diag": {"covariance": "diag"},
    "full": {"covariance": "full"},
    "given": {"prior": SharedPrior(), "noise": 0.05},
    "random": {"prior": RandomPrior(), "noise": 0.05},
    "flat": {"prior": SharedPrior(precision=0.0), "noise": 1.0},
}


@pytest.mark.parametrize("check", checks.HEAD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_keeps_the_laws_of_a_head(check, name):
    check(lambda: BayesianPrototypes(**VARIANTS[name]))


def digits(known: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardised digits: training features and labels of the first classes, then test ones."""
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0).clamp(min=1)
    train = torch.arange(len(y)) % 3 > 0
    mine = train & (y < known)
    return x[mine], y[mine], x[~train], y[~train]


def fitted(known: int = 10, **settings: object) -> tuple[BayesianPrototypes, Tensor, Tensor]:
    features, labels, test, test_labels = digits(known)
    head = BayesianPrototypes(**settings)
    return head.fit(head.new_memory(64).update(features, labels)), test, test_labels


@pytest.mark.parametrize("covariance", ["iso", "diag", "full"])
def test_accuracy_on_digits(covariance):
    head, test, labels = fitted(covariance=covariance)
    accuracy = float((head.predict(test) == labels).double().mean())
    assert accuracy > {"iso": 0.88, "diag": 0.86, "full": 0.92}[covariance]


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    confidence, answer = probabilities.max(1)
    right = (answer == labels).double()
    bins = (confidence * 15).ceil().long()
    gaps = [
        (confidence[bins == b].mean() - right[bins == b].mean()).abs() * (bins == b).sum()
        for b in bins.unique()
    ]
    return float(sum(gaps) / len(labels))


def test_probabilities_are_calibrated():
    """Correlations counted once, as the full covariance does, give honest probabilities."""
    head, test, labels = fitted(covariance="full")
    probabilities = head.probabilities(test)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(test)))
    assert calibration_error(probabilities, labels) < 0.05
    distances = NearestMean().fit(head.new_memory(64).update(*digits()[:2]))(test).softmax(1)
    assert calibration_error(probabilities, labels) < calibration_error(distances, labels)


def test_few_samples_make_a_class_uncertain():
    prior = SharedPrior(precision=1.0)
    memory = PrototypeMemory(1).update(
        torch.tensor([[2.0]] + [[-2.0]] * 50), torch.tensor([0] + [1] * 50)
    )
    head = BayesianPrototypes(prior, 0.5, dtype=F64).fit(memory)
    joint = log_joint(
        torch.zeros(1, 1, dtype=F64),
        predictive(prior.beliefs(torch.arange(2), 1, "iso"), torch.tensor(0.5, dtype=F64)),
    )
    assert joint[0, 0] == joint[0, 1]
    scales = head.get_buffer("_scales").flatten()
    assert scales[0] < scales[1]


def test_uniform_concentration_and_full_noise_is_linear_discriminant_analysis():
    """With many samples, a flat prior and equal class weights both have the same boundaries."""
    features, labels, test, _ = digits()
    lda = LinearDiscriminant("auto", dtype=F64)
    memory = lda.new_memory(64).update(features, labels)
    prior = SharedPrior(concentration=1e9, precision=1e-9)
    head = BayesianPrototypes(prior, covariance="full", dtype=F64)
    agree = head.fit(memory).predict(test) == lda.fit(memory).predict(test)
    assert float(agree.double().mean()) > 0.97


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_a_number_as_noise_is_that_in_all_directions(covariance):
    features, labels, test, _ = digits()
    memory = PrototypeMemory(features.shape[1]).update(features, labels)
    one = BayesianPrototypes(SharedPrior(), noise=0.3).fit(memory)
    many = BayesianPrototypes(SharedPrior(), noise=0.3, covariance=covariance).fit(memory)
    torch.testing.assert_close(many(test), one(test), rtol=1e-4, atol=1e-3)


class TestUnknownClasses:
    @pytest.mark.parametrize("covariance", ["iso", "full"])
    def test_samples_of_unseen_classes_score_higher(self, covariance):
        head, test, labels = fitted(known=6, covariance=covariance)
        scores = head.unknown_probability(test)
        assert 0 <= float(scores.min()) <= float(scores.max()) <= 1
        assert roc_auc_score(labels >= 6, scores) > 0.8

    def test_is_bayes_rule_with_one_more_class(self):
        prior, noise = SharedPrior(2.0, mean=0.5, precision=0.7), torch.tensor(0.3, dtype=F64)
        memory = PrototypeMemory(2).update(
            torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([3, 8])
        )
        head = BayesianPrototypes(prior, noise, dtype=F64).fit(memory)
        state = ConjugatePosterior(2, prior, noise).replace(memory)
        query = torch.tensor([[0.3, -1.0], [4.0, 4.0]], dtype=F64)
        found = state.unknown_probability(query)
        expected = state.add_classes(torch.tensor([11])).log_joint(query).softmax(1)[:, 2]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(head.unknown_probability(query), expected)

    def test_a_flat_prior_is_refused(self):
        head, test, _ = fitted(prior=SharedPrior(precision=0.0), noise=1.0)
        with pytest.raises(ValueError, match="flat prior"):
            head.unknown_probability(test)


class TestEvidence:
    @staticmethod
    def memory() -> PrototypeMemory:
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(20, 3, generator=generator) * 2
        labels = torch.arange(400) % 20
        noise = torch.randn(400, 3, generator=generator) * 0.5**0.5
        return PrototypeMemory(3, "diagonal").update(means[labels] + noise, labels)

    @pytest.mark.parametrize("covariance", ["iso", "diag"])
    def test_is_highest_near_the_noise_that_made_the_data(self, covariance):
        memory, noises = self.memory(), (0.1, 0.25, 0.5, 1.0, 2.0)
        found = [
            BayesianPrototypes(
                SharedPrior(precision=0.25), noise, covariance=covariance
            ).log_evidence(memory)
            for noise in noises
        ]
        assert max(found) == found[2]

    def test_estimates_are_near_the_truth(self):
        memory = self.memory()
        head = BayesianPrototypes(dtype=F64).fit(memory)
        assert float(head.get_buffer("_noise")) == pytest.approx(0.5, rel=0.15)
        assert head.log_evidence(memory) > BayesianPrototypes(SharedPrior(), 0.05).log_evidence(
            memory
        )

    def test_needs_squares_and_independent_features(self):
        with pytest.raises(ValueError, match="level 'mean'"):
            BayesianPrototypes(SharedPrior(), 1.0).log_evidence(self.memory().at_level("mean"))
        with pytest.raises(ValueError, match="'iso' and 'diag'"):
            BayesianPrototypes(covariance="full").log_evidence(self.memory())


class TestEstimatesInCorners:
    def test_one_class(self):
        head = BayesianPrototypes()
        head.fit(head.new_memory(3).update(torch.rand(5, 3), torch.full((5,), 4)))
        assert head.predict(torch.rand(2, 3)).tolist() == [4, 4]

    @pytest.mark.parametrize("covariance", ["iso", "diag", "full"])
    def test_one_sample_a_class(self, covariance):
        head = BayesianPrototypes(covariance=covariance)
        features = torch.eye(4)
        head.fit(head.new_memory(4).update(features, torch.arange(4)))
        assert head.predict(features).tolist() == [0, 1, 2, 3]

    def test_identical_samples(self):
        head = BayesianPrototypes()
        head.fit(head.new_memory(2).update(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])))
        assert torch.isfinite(head(torch.rand(3, 2))).all()


def test_pieces_give_what_the_whole_gives(monkeypatch):
    head, test, _ = fitted()
    whole = head(test)
    monkeypatch.setattr(conjugate, "_PIECE", 5 * 10 * 64)
    assert torch.equal(head(test), whole)
    assert head(test[:0]).shape == (0, 10)


class TestPriors:
    def test_random_prior_depends_on_seed_and_class_alone(self):
        ids = torch.tensor([7, 3, 1000])
        together = RandomPrior(5).beliefs(ids, 4, "iso")
        alone = RandomPrior(5).beliefs(ids[2:], 4, "iso")
        assert torch.equal(together.mean[2:], alone.mean)
        assert not torch.equal(alone.mean, RandomPrior(6).beliefs(ids[2:], 4, "iso").mean)
        before = torch.get_rng_state()
        RandomPrior(5).beliefs(ids, 4, "full")
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: SharedPrior(0.0), "concentration=0.0"),
            (lambda: SharedPrior(precision=-1.0), "precision=-1.0"),
            (lambda: BayesianPrototypes(noise=0.0), "noise=0.0"),
            (lambda: BayesianPrototypes(noise=torch.ones(3)), "expected 0 dimensions for 'iso'"),
            (
                lambda: BayesianPrototypes(noise=torch.ones(3), covariance="full"),
                "expected 2 dimensions for 'full', or a number",
            ),
            (lambda: BayesianPrototypes(covariance="round"), "covariance='round'"),
            (lambda: BayesianPrototypes("flat"), "prior='flat'"),
        ],
    )
    def test_refusals(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_class_priors_know_their_classes_only(self):
        prior = ClassPriors(torch.ones(2), torch.zeros(2, 3), torch.ones(2))
        with pytest.raises(ValueError, match=r"no prior for classes \[5\]"):
            prior.beliefs(torch.tensor([1, 5]), 3, "iso")
        with pytest.raises(ValueError, match="use SharedPrior"):
            prior.unseen(3, "iso")


class TestPosterior:
    def test_refuses_classes_that_take_no_part(self):
        state = ConjugatePosterior(2, SharedPrior()).add_classes(torch.tensor([3]))
        with pytest.raises(ValueError, match=r"classes \[4\] have no row"):
            state.update(torch.rand(1, 2), torch.tensor([4]))

    def test_refuses_to_merge_what_does_not_fit(self):
        one = ConjugatePosterior(2, RandomPrior(1)).add_classes(torch.tensor([3]))
        other = ConjugatePosterior(2, RandomPrior(2)).add_classes(torch.tensor([3]))
        with pytest.raises(ValueError, match="different priors"):
            one.merge(other)
        with pytest.raises(ValueError, match="different noise"):
            one.merge(ConjugatePosterior(2, RandomPrior(1), 0.5))

    def test_replacing_evidence_is_starting_again(self):
        features, labels = torch.rand(9, 2, dtype=F64), torch.arange(9) % 3
        state = ConjugatePosterior(2, SharedPrior()).add_classes(torch.arange(3))
        state.update(features + 5, labels).replace(PrototypeMemory(2).update(features, labels))
        fresh = ConjugatePosterior(2, SharedPrior()).add_classes(torch.arange(3))
        fresh.update(features, labels)
        for found, expected in zip(state.beliefs(), fresh.beliefs(), strict=True):
            torch.testing.assert_close(found, expected)

    def test_full_discount_returns_to_the_prior(self):
        state = ConjugatePosterior(2, RandomPrior()).add_classes(torch.arange(3))
        state.update(torch.rand(9, 2), torch.arange(9) % 3).discount(0.0)
        for found, expected in zip(state.beliefs(), state.prior_beliefs(), strict=True):
            torch.testing.assert_close(found, expected)

    def test_casting_a_model_around_it_keeps_its_precision(self):
        state = ConjugatePosterior(2, SharedPrior()).add_classes(torch.arange(3))
        torch.nn.ModuleList([state]).half()
        assert state.sums.dtype == torch.float64
