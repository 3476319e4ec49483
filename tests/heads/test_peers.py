"""The heads beside scikit-learn's and Avalanche's own."""

from __future__ import annotations

import pytest
import torch
from sklearn.covariance import OAS
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import NearestCentroid

from protocl.heads import LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.memory.estimates.shrinkage import oas_shrinkage

F64 = torch.float64


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.from_numpy(data.data / 16.0), torch.from_numpy(data.target)


def around_their_mean(logits):
    """Scores of a discriminant hold up to a number that all classes of a sample share."""
    return logits - logits.mean(1, keepdim=True)


def fitted(head, batch):
    return head.fit(head.new_memory(batch[0].shape[1]).update(*batch))


def test_nearest_mean_is_sklearns_nearest_centroid(digits):
    peer = NearestCentroid().fit(digits[0].numpy(), digits[1].numpy())
    found = fitted(NearestMean(dtype=F64), digits).predict(digits[0])
    assert found.tolist() == peer.predict(digits[0].numpy()).tolist()


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.9])
def test_lda_is_sklearns(digits, shrinkage):
    """Digits have constant pixels, so without shrinkage the covariance is singular."""
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None)
    peer.fit(digits[0].numpy(), digits[1].numpy())
    head = LinearDiscriminant(shrinkage, target="scaled", priors="empirical", dtype=F64)
    logits = fitted(head, digits)(digits[0])
    expected = torch.from_numpy(peer.decision_function(digits[0].numpy()))
    torch.testing.assert_close(
        around_their_mean(logits), around_their_mean(expected), rtol=1e-6, atol=1e-6
    )


def test_automatic_shrinkage_is_sklearns_oas(digits):
    features, labels = digits
    means = torch.stack([features[labels == c].mean(0) for c in range(10)])
    peer = OAS(assume_centered=True).fit((features - means[labels]).numpy())
    head = LinearDiscriminant("auto")
    memory = head.new_memory(64).update(*digits)
    weight = oas_shrinkage(memory.scatter() / memory.total, memory.total)
    assert weight == pytest.approx(peer.shrinkage_, rel=1e-10)
    torch.testing.assert_close(head.covariance(memory), torch.from_numpy(peer.covariance_))


@pytest.mark.parametrize("strength", [0.01, 10.0])
def test_ridge_is_sklearns(digits, strength):
    features, labels = digits
    one_hot = torch.nn.functional.one_hot(labels).double()
    peer = SklearnRidge(alpha=strength, fit_intercept=False).fit(features.numpy(), one_hot.numpy())
    logits = fitted(Ridge(regularization=strength, dtype=F64), digits)(features)
    expected = torch.from_numpy(peer.predict(features.numpy()))
    torch.testing.assert_close(logits, expected, rtol=1e-8, atol=1e-8)


def test_ridges_own_choice_is_near_the_best_by_leave_one_out(digits):
    """Generalised cross-validation against the exact leave-one-out error of each strength."""
    from protocl.heads.regression.spectrum import GRID

    features, labels = digits[0][::6], digits[1][::6]
    one_hot = torch.nn.functional.one_hot(labels).double()
    errors = []
    for strength in GRID:
        gram = features.T @ features + strength * torch.eye(64, dtype=F64)
        hat = features @ torch.linalg.solve(gram, features.T)
        residual = (one_hot - hat @ one_hot) / (1 - hat.diagonal())[:, None]
        errors.append(float(residual.square().mean()))
    chosen = errors[GRID.index(fitted(Ridge(dtype=F64), (features, labels)).chosen)]
    assert chosen <= 1.02 * min(errors)


@pytest.mark.parametrize("size", [0.0, 3.0])
def test_a_covariance_that_is_its_own_target_is_shrunk_wholly(size):
    """Zero over zero in the formula, where scikit-learn takes 1 as well."""
    assert oas_shrinkage(size * torch.eye(4, dtype=F64), 10**9) == 1.0


class TestAvalanche:
    """Avalanche's classifiers, given the same statistics, where they are right."""

    def test_ncm(self, digits):
        from avalanche.models import NCMClassifier

        memory = NearestMean().new_memory(64).update(*digits)
        peer = NCMClassifier(normalize=False)
        peer.update_class_means_dict(
            {c: mean.float() for c, mean in enumerate(memory.means)}, momentum=1
        )
        logits = NearestMean().fit(memory)(digits[0].float())
        expected = -peer(digits[0].float()).square()
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)

    def test_fecam(self, digits):
        from avalanche.models import FeCAMClassifier

        features, labels = digits[0].float(), digits[1]
        peer = FeCAMClassifier()
        mapped = {c: peer._tukey_transforms(features[labels == c]) for c in range(10)}
        peer.update_class_means_dict({c: x.mean(0) for c, x in mapped.items()})
        covariances = {c: torch.cov(x.T) for c, x in mapped.items()}
        peer.update_class_cov_dict(peer.apply_cov_transforms(covariances))
        expected = peer(features[:200])
        logits = fitted(Mahalanobis.avalanche(), (features, labels))(features[:200])
        torch.testing.assert_close(logits, expected, rtol=1e-2, atol=1e-2)
        assert logits.argmax(1).tolist() == expected.argmax(1).tolist()

    def test_streaming_lda(self, digits):
        from avalanche.training.supervised import StreamingLDA

        order = torch.randperm(len(digits[1]), generator=torch.Generator().manual_seed(0))[:300]
        features, labels = digits[0][order].float(), digits[1][order]
        peer = StreamingLDA(torch.nn.Identity(), None, 64, 10)
        for x, y in zip(features, labels, strict=True):
            peer.fit(x[None], y[None])
        head = LinearDiscriminant(streaming=True)
        logits = around_their_mean(fitted(head, (features, labels))(features))
        expected = around_their_mean(peer.predict(features))
        torch.testing.assert_close(logits, expected, rtol=1e-2, atol=2e-2)
