"""Every golden value of ProtoCL's posterior, as functions, as a head and over merged clients."""

from __future__ import annotations

import math

import pytest
import torch

from protocl import PrototypeMemory
from protocl.heads import BayesianPrototypes, ClassPriors, NearestMean, SharedPrior
from protocl.heads.bayesian.conjugate import (
    Beliefs,
    log_evidence,
    log_joint,
    posterior,
    predictive,
)
from protocl.heads.bayesian.posterior import ConjugatePosterior
from tests.golden.protocl import CLOSE, assert_close, given, golden, tensor

F64 = torch.float64


def natural_mean(beliefs: Beliefs) -> torch.Tensor:
    """``Lambda mu``, ``(C, D)``: the natural parameter that adds up over clients."""
    if beliefs.precision.ndim == 3:
        return (beliefs.precision @ beliefs.mean[:, :, None]).squeeze(2)
    return beliefs.precision * beliefs.mean


PRIOR = ClassPriors(given("alpha0"), given("m0"), given("lam0_precision_diag"))
NOISE = given("sigma2_eps_diag")
FIRST = (given("z1"), given("y1"))
SECOND = (given("z2"), given("y2"))
ISOTROPIC = golden()["isotropic_sigma2_0.25"]
ISOTROPIC_PRIOR = ClassPriors(
    given("alpha0"),
    tensor(ISOTROPIC["Q0"]) / tensor(ISOTROPIC["lam0_scalar"])[:, None],
    tensor(ISOTROPIC["lam0_scalar"]),
)


def new_posterior(prior=PRIOR, noise=NOISE, covariance="diag", classes=3) -> ConjugatePosterior:
    made = ConjugatePosterior(4, prior, noise, covariance=covariance)
    made.add_classes(torch.arange(classes))
    return made


def state_after(*batches) -> ConjugatePosterior:
    made = new_posterior()
    for features, labels in batches:
        made.update(features, labels)
    return made


def assert_state(found: ConjugatePosterior, expected: dict) -> None:
    beliefs = found.beliefs()
    assert_close(beliefs.concentration, expected["alpha"])
    assert_close(beliefs.mean, expected["m"])
    assert_close(beliefs.precision, expected["lam"])
    assert_close(natural_mean(beliefs), expected["eta_natural"])


@pytest.mark.parametrize(
    ("key", "batches"), [("after_task1", [FIRST]), ("after_task2", [FIRST, SECOND])]
)
class TestUpdate:
    def test_in_one_batch(self, key, batches):
        assert_state(state_after(*batches), golden()[key])

    def test_one_by_one_in_reverse(self, key, batches):
        made = new_posterior()
        for features, labels in reversed(batches):
            for row in reversed(range(len(labels))):
                made.update(features[row, None], labels[row, None])
        assert_state(made, golden()[key])


@pytest.mark.parametrize(
    ("key", "batches"),
    [
        ("predict_prior", []),
        ("predict_after_task1", [FIRST]),
        ("predict_after_task2", [FIRST, SECOND]),
    ],
)
def test_predictive(key, batches):
    expected, state = golden()[key], state_after(*batches)
    joint = state.log_joint(given("zq"))
    assert_close(joint, expected["log_joint"])
    assert_close(joint.softmax(1), expected["prob"])
    assert joint.argmax(1).tolist() == expected["argmax"]
    loss = torch.nn.functional.cross_entropy(joint, given("yq"))
    assert_close(loss, expected["nll_mean"])


def test_training_step_predicts_with_the_state_from_before():
    expected = golden()["train_step_on_task2_with_state_after_task1"]
    features, labels = SECOND[0].clone().requires_grad_(), SECOND[1]
    state = state_after(FIRST)
    loss = state.loss(features, labels)
    assert_close(loss.detach(), expected["loss_conditional_nll_mean"])
    loss.backward()
    assert_close(features.grad, expected["grad_z"])
    assert_close(
        state.loss(features, labels, objective="joint").detach(),
        expected["loss_joint_nll_mean_paper_eq18"],
    )


def test_gradient_is_the_closed_form():
    features, labels = SECOND[0].clone().requires_grad_(), SECOND[1]
    state = state_after(FIRST)
    state.loss(features, labels).backward()
    distribution = state.predictive()
    probabilities = log_joint(features.detach(), distribution).softmax(1)
    excess = probabilities - torch.nn.functional.one_hot(labels, 3)
    pull = (distribution.means - SECOND[0][:, None]) * distribution.scales.square()
    expected = (excess[:, :, None] * pull).sum(1) / len(labels)
    torch.testing.assert_close(features.grad, expected)


def test_log_evidence_is_that_of_every_sample_in_turn():
    features, labels = FIRST
    expected = golden()["log_evidence_task1"]
    memory = PrototypeMemory(4, "diagonal").update(features, labels)
    beliefs = PRIOR.beliefs(torch.arange(3), 4, "diag")
    counts, sums, squares = (
        torch.cat([part, torch.zeros_like(part[:1])])  # the third class has no samples
        for part in (memory.counts, memory.sums, memory.second_moment)
    )
    assert_close(log_evidence(beliefs, NOISE, counts, sums, squares), expected)
    state, total = new_posterior(), 0.0
    for row in range(len(labels)):
        sample = slice(row, row + 1)
        total += float(state.log_joint(features[sample])[0, labels[row]])
        state.update(features[sample], labels[sample])
    assert total == pytest.approx(expected, abs=1e-5)


class TestClients:
    expected = golden()["federated_merge_task1"]

    def posteriors(self):
        for rows in self.expected["client_indices"]:
            yield state_after((FIRST[0][rows], FIRST[1][rows]))

    def test_each_client(self):
        for found, expected in zip(
            self.posteriors(), self.expected["client_posteriors"], strict=True
        ):
            assert_state(found, expected)

    def test_merged_posteriors_count_the_prior_once(self):
        first, second = self.posteriors()
        assert_state(first.merge(second), self.expected["merged"])

    def test_merged_posteriors_equal_one_posterior(self):
        first, second = self.posteriors()
        assert_state(second.merge(first), golden()["after_task1"])

    def test_a_head_on_merged_memories(self):
        first, second = (
            PrototypeMemory(4).update(FIRST[0][rows], FIRST[1][rows])
            for rows in self.expected["client_indices"]
        )
        head = BayesianPrototypes(PRIOR, NOISE, covariance="diag", dtype=F64)
        merged = first + second
        merged.update(*SECOND)
        joint = head.fit(merged)(given("zq"))
        assert_close(joint, golden()["predict_after_task2"]["log_joint"])
        assert_close(head.probabilities(given("zq")), golden()["predict_after_task2"]["prob"])
        assert head.predict(given("zq")).tolist() == golden()["predict_after_task2"]["argmax"]


def test_isotropic():
    expected = ISOTROPIC["after_task1"]
    state = new_posterior(ISOTROPIC_PRIOR, 0.25, "iso")
    beliefs = state.update(*FIRST).beliefs()
    assert_close(natural_mean(beliefs), expected["Q"])
    assert_close(beliefs.precision[:, 0], expected["lam_scalar"])
    assert_close(beliefs.mean, expected["m"])
    joint = state.log_joint(given("zq"))
    assert_close(joint, ISOTROPIC["log_joint_q"])
    assert_close(joint.softmax(1), ISOTROPIC["prob_q"])


def test_released_code_as_one_posterior_for_each_row_of_a_batch():
    """The authors' code never sums a batch: row ``b`` has a posterior of its own."""
    expected = golden()["released_code_B_chains"]
    chains = [new_posterior(ISOTROPIC_PRIOR, 0.25, "iso") for _ in range(expected["B"])]
    losses = []
    for batch in (slice(0, 3), slice(3, 6)):
        features, labels = FIRST[0][batch], FIRST[1][batch]
        rows = [slice(b, b + 1) for b in range(3)]
        step = [c.loss(features[r], labels[r]) for c, r in zip(chains, rows, strict=True)]
        losses.append(torch.stack(step).mean())
        for chain, row in zip(chains, rows, strict=True):
            chain.update(features[row], labels[row])
    assert_close(torch.stack(losses), expected["loss_per_batch"])
    beliefs = [chain.beliefs() for chain in chains]
    assert_close(torch.stack([b.mean for b in beliefs]), expected["m_per_chain"])
    assert_close(
        torch.stack([b.precision[:, 0] for b in beliefs]), expected["lam_scalar_per_chain"]
    )
    assert_close(torch.stack([b.concentration for b in beliefs]), expected["alpha_per_chain"])


def test_full_covariance():
    expected = golden()["full_covariance_task1"]
    noise = tensor(expected["Sigma_eps"])
    prior = ClassPriors(given("alpha0"), given("m0"), tensor(expected["Lam0"]))
    state = new_posterior(prior, noise, "full").update(*FIRST)
    beliefs = state.beliefs()
    loose = {**CLOSE, "atol": 2e-5}  # inverses of matrices that were rounded to six decimals
    torch.testing.assert_close(beliefs.mean, tensor(expected["m"]), **loose)
    torch.testing.assert_close(beliefs.precision, tensor(expected["Lam"]), **loose)
    joint = state.log_joint(given("zq"))
    torch.testing.assert_close(joint, tensor(expected["log_joint_q"]), **loose)
    torch.testing.assert_close(joint.softmax(1), tensor(expected["prob_q"]), **loose)


class TestFlatPrior:
    expected = golden()["flat_prior_limit"]
    memory = PrototypeMemory(4).update(*FIRST).update(*SECOND)

    def test_means_and_distances(self):
        head = NearestMean(dtype=F64).fit(self.memory)
        assert_close(self.memory.means, self.expected["class_means"])
        assert_close(-head(given("zq")), self.expected["sq_dist_q"])
        assert head.predict(given("zq")).tolist() == self.expected["nearest"]

    def test_the_limit_is_the_nearest_mean(self):
        head = BayesianPrototypes(SharedPrior(1e12, precision=0.0), 1e-6, dtype=F64)
        assert head.fit(self.memory).predict(given("zq")).tolist() == self.expected["nearest"]

    def test_equal_counts_order_classes_by_distance(self):
        """With equal counts and equal concentrations the log-odds are differences of distances."""
        beliefs = SharedPrior(precision=0.0).beliefs(torch.arange(3), 4, "iso")
        noise, counts = torch.tensor(0.7, dtype=F64), torch.full((3,), 5.0, dtype=F64)
        after = posterior(beliefs, noise, counts, 5 * self.memory.means)
        joint = log_joint(given("zq"), predictive(after, noise))
        distances = tensor(self.expected["sq_dist_q"]) / (-2 * (0.7 + 0.7 / 5))
        odds = joint - joint[:, :1]
        torch.testing.assert_close(odds, distances - distances[:, :1], rtol=0, atol=1e-5)


class TestReconnaissance:
    """Federated reconnaissance is the flat-prior case: means weighted by counts."""

    expected = golden()["fedrecon_merge"]

    @staticmethod
    def memory_of(prototypes: dict) -> PrototypeMemory:
        total = PrototypeMemory(4)
        for class_id, entry in prototypes.items():
            rows = tensor(entry["mean"]).expand(entry["n"], 4)
            total.update(rows, torch.full((entry["n"],), int(class_id)))
        return total

    def test_exact(self):
        total = self.memory_of(self.expected["server_before"])
        for client in self.expected["clients"]:
            total += self.memory_of(client)
        for row, entry in enumerate(self.expected["exact"].values()):
            assert_close(total.means[row], entry["mean"])
            assert int(total.counts[row]) == entry["n"]

    def test_the_released_merge_weighs_the_server_twice(self):
        """Its result differs from the mean of all samples, and how it comes about is known."""
        before = self.expected["server_before"]
        for class_id, entry in self.expected["released_code_double_merge"].items():
            exact = self.expected["exact"][class_id]
            assert entry["n"] == exact["n"]
            if class_id not in before:
                assert entry["mean"] == exact["mean"]
                continue
            old, n = tensor(before[class_id]["mean"]), before[class_id]["n"]
            share = n / exact["n"]
            again = share * old + (1 - share) * tensor(exact["mean"])
            assert_close(again, entry["mean"])
            assert math.dist(entry["mean"], exact["mean"]) > 1e-3
