"""Evidence of categories with covariances of their own: the authors' numbers, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t

from protocl.memory import PrototypeMemory
from protocl.open_world.discovery.inverse_wishart import InverseWishart, joined
from tests.golden.discovery import drawn, golden, same, unit


@pytest.fixture
def published() -> tuple[PrototypeMemory, torch.Tensor]:
    rng = np.random.default_rng(301)
    mu = 1.5 * rng.standard_normal((6, 5))
    y = np.repeat(np.arange(6), 30)
    x = drawn(golden()["gpc"], "x", unit(mu[y] + 0.6 * rng.standard_normal((180, 5))))
    return PrototypeMemory(5, "full").update(x, torch.from_numpy(y)), x


def test_posterior_and_evidence_are_those_of_the_authors(published):
    memory, _ = published
    part, prior = golden()["gpc"], InverseWishart.of(memory)
    # Their counts carry a small number against divisions by zero.
    same(prior.posterior_means(memory)[0], part["posterior_means_row0"], 1e-7)
    covariances = prior.posterior_covariances(memory)
    same(covariances[0], part["posterior_cov_class0"], 1e-7)
    same(covariances.diagonal(dim1=1, dim2=2).sum(1), part["posterior_cov_trace"], 1e-7)
    same(prior.log_evidence(memory), part["log_marginal_likelihood"])


def test_decisions_are_those_of_the_authors(published):
    memory, x = published
    prior = InverseWishart.of(memory)
    for decision in golden()["gpc"]["decisions"]["values"]:
        if isinstance(decision["pair"], str):
            halves = PrototypeMemory(5, "full").update(x[:30], torch.arange(30) % 2)
            same(prior.log_evidence(halves), decision["log_ll_parts"])
        else:
            halves = memory.subset(decision["pair"])
        same(prior.log_evidence(joined(halves))[0], decision["log_ll_joint"])
        log_odds = float(prior.split_evidence(halves))
        same(log_odds, decision["log_H_split"])
        assert (log_odds > 0, -log_odds > 0) == (decision["split"], decision["merge"])


def test_evidence_of_one_sample_is_students_distribution(published):
    memory, x = published
    prior = InverseWishart.of(memory)
    one = PrototypeMemory(5, "full").update(x[:1], torch.tensor([3]))
    freedom = prior.freedom - 5 + 1
    shape = prior.scale * (prior.strength + 1) / (prior.strength * freedom)
    peer = multivariate_t(prior.mean.numpy(), shape.numpy(), df=freedom)
    same(prior.log_evidence(one)[0], peer.logpdf(x[0].numpy()))


def test_clients_rows_add_up_before_the_evidence(published):
    memory, x = published
    prior = InverseWishart.of(memory)
    labels = torch.arange(6).repeat_interleave(30)
    first, second = (
        PrototypeMemory(5, "full").update(x[rows], labels[rows])
        for rows in (slice(0, 77), slice(77, None))
    )
    same(prior.log_evidence(first + second), prior.log_evidence(memory))


def test_what_does_not_fit_is_refused(published):
    memory, _ = published
    prior = InverseWishart.of(memory)
    with pytest.raises(ValueError, match="6 rows: expected the two halves"):
        prior.split_evidence(memory)
    with pytest.raises(ValueError, match="level 'diagonal': expected 'full'"):
        prior.log_evidence(memory.at_level("diagonal"))
    with pytest.raises(ValueError, match="empty"):
        InverseWishart.of(memory.empty_like())
