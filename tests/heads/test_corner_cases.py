"""Degenerate statistics and queries have a defined answer or a clear error."""

from __future__ import annotations

import pytest
import torch

from protocl import PrototypeMemory
from protocl.errors import NotFittedError
from protocl.heads import BayesianPrototypes, LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.memory.feature_maps import ReluProjection, Tukey

HEADS = {
    "euclidean": NearestMean,
    "cosine": lambda: NearestMean("cosine"),
    "nme": lambda: NearestMean(normalize_input=True, normalize_mean=True),
    "lda": LinearDiscriminant,
    "lda without shrinkage": lambda: LinearDiscriminant(0.0),
    "fecam": Mahalanobis,
    "fecam low_rank": lambda: Mahalanobis(covariance="low_rank", rank=4),
    "fecam shared": lambda: Mahalanobis(covariance="shared"),
    "fecam vit": Mahalanobis.fecam_vit,
    "fecam without shrinkage": lambda: Mahalanobis(None),
    "covariance": lambda: Mahalanobis(tukey=None, correlation=False, normalize=False),
    "ridge": Ridge,
    "ranpac": lambda: Ridge(projection=40),
}
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def clusters(samples: int = 30, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 3
    centres = 3 * torch.rand(3, dim, generator=generator)
    return centres[labels] + 0.1 * torch.rand(samples, dim, generator=generator), labels


def by_class(features, labels):
    return [features[labels == c] for c in labels.unique()]


def fitted(make, features, labels):
    head = make()
    return head.fit(head.new_memory(features.shape[1]).update(features, labels))


@every_head
def test_a_class_with_one_sample_is_recognised(make):
    features, labels = clusters()
    rare = torch.tensor([[9.0, 0, 0, 9, 0, 0, 9, 0]])
    head = fitted(make, torch.cat([features, rare]), torch.cat([labels, torch.tensor([77])]))
    assert head.predict(rare).tolist() == [77]
    assert head.predict(features).tolist() == labels.tolist()


def test_a_class_with_one_sample_has_the_mean_variance_of_all():
    features, labels = clusters()
    rare = torch.full((1, 8), 9.0)
    head = Mahalanobis(None, tukey=None, correlation=False, normalize=False)
    memory = head.new_memory(8).update(features, labels).update(rare, torch.tensor([77]))
    scatter = sum(
        len(part) * part.var(0, correction=0).sum() for part in by_class(features, labels)
    )
    variance = scatter / 8 / memory.total
    logits = head.fit(memory)(rare + 0.3)
    torch.testing.assert_close(-logits[0, -1], 8 * 0.3**2 / variance, rtol=1e-4, atol=0)


@every_head
def test_constant_features_do_no_harm(make):
    features, labels = clusters()
    constant = torch.cat([features, torch.zeros(30, 2), torch.ones(30, 1)], dim=1)
    assert fitted(make, constant, labels).predict(constant).tolist() == labels.tolist()


@every_head
def test_a_zero_vector_has_finite_logits(make):
    features, labels = clusters()
    assert torch.isfinite(fitted(make, features, labels)(torch.zeros(2, 8))).all()


@every_head
def test_a_class_of_zero_vectors_is_kept(make):
    features, labels = clusters()
    head = fitted(
        make, torch.cat([features, torch.zeros(5, 8)]), torch.cat([labels, labels[:5] * 0 + 8])
    )
    assert head.classes.tolist() == [0, 1, 2, 8]
    assert torch.isfinite(head(features)).all()


@every_head
def test_one_class_only(make):
    features, labels = clusters()
    assert fitted(make, features, labels * 0 + 4).predict(features).unique().tolist() == [4]


@every_head
def test_no_queries(make):
    features, labels = clusters()
    head = fitted(make, features, labels)
    assert head(features[:0]).shape == (0, 3)
    assert head.predict(features[:0]).shape == (0,)


@every_head
def test_half_precision_and_autocast_queries(make):
    features, labels = clusters()
    head = fitted(make, features, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(features), head(features))
        assert head(features).dtype == torch.float32
    assert head.predict(features.to(torch.float16)).tolist() == labels.tolist()


@every_head
def test_infinite_queries_are_refused(make):
    features, labels = clusters()
    with pytest.raises(ValueError, match="NaN or infinite"):
        fitted(make, features, labels)(features.index_fill(1, torch.tensor([3]), float("inf")))


@every_head
def test_arrays_are_refused_by_name(make):
    features, labels = clusters()
    with pytest.raises(TypeError, match=r"features is a numpy.ndarray.*torch.as_tensor"):
        fitted(make, features, labels).predict(features.numpy())
    with pytest.raises(TypeError, match="labels is a list"):
        make().new_memory(8).update(features, labels.tolist())


@every_head
def test_wrong_width_is_refused(make):
    features, labels = clusters()
    head = fitted(make, features, labels)
    with pytest.raises(ValueError, match=r"\(30, 9\).*expected \(N, 8\)"):
        head(torch.zeros(30, 9))


@every_head
def test_unfitted_and_empty(make):
    with pytest.raises(NotFittedError, match="call fit"):
        make()(torch.zeros(1, 8))
    with pytest.raises(ValueError, match="memory is empty"):
        make().fit(make().new_memory(8))


@every_head
def test_unseen_classes_never_win(make):
    """Centred features, whose unseen classes Avalanche would place at the origin."""
    features, labels = clusters()
    if not (make().raw_means or make().feature_map(8).spec.startswith("tukey")):
        features = features - features.mean(0)
    dense = fitted(make, features, labels * 10).dense_logits(features, 40)
    assert dense.shape == (30, 40)
    assert set(dense.argmax(1).tolist()) <= {0, 10, 20}
    assert torch.isneginf(dense[:, 1:10]).all()


def test_dense_logits_have_a_floor_and_grow_to_the_largest_class():
    head = fitted(NearestMean, *clusters())
    assert head.dense_logits(torch.zeros(2, 8)).shape == (2, 3)
    assert (head.dense_logits(torch.zeros(2, 8), 5, floor=-1e4)[:, 3:] == -1e4).all()


def test_tukey_refuses_negative_features_and_says_what_to_do():
    features, labels = clusters()
    with pytest.raises(
        ValueError, match=r"non-negative features, got -1; use tukey=None .*head.tukey=null"
    ):
        fitted(Mahalanobis, features - features.min() - 1, labels)
    with pytest.raises(ValueError, match="positive"):
        fitted(lambda: Mahalanobis(tukey=0.0), features.clamp(max=0) * 0, labels)


@pytest.mark.parametrize(
    ("make", "memory", "message"),
    [
        (LinearDiscriminant, PrototypeMemory(8), "level 'shared', got 'mean'"),
        (Mahalanobis, PrototypeMemory(8, "full"), "map 'tukey:0.5', got 'identity'"),
        (lambda: NearestMean(normalize_input=True), PrototypeMemory(8), "map 'unit'"),
        (
            lambda: LinearDiscriminant(streaming=True),
            PrototypeMemory(8, "shared"),
            "StreamingMemory",
        ),
        (LinearDiscriminant, LinearDiscriminant(streaming=True).new_memory(8), "additive memory"),
    ],
)
def test_statistics_of_another_kind_are_refused(make, memory, message):
    features, labels = clusters()
    with pytest.raises(ValueError, match=message):
        make().fit(memory.update(features, labels))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NearestMean("manhattan"), "metric='manhattan'"),
        (lambda: LinearDiscriminant(1.5), "shrinkage=1.5"),
        (lambda: LinearDiscriminant(ddof="1"), "ddof='1'"),
        (lambda: Mahalanobis((-1.0, 0.0)), "shrinkage"),
        (lambda: Mahalanobis(mean_of="median"), "mean_of='median'"),
        (lambda: Ridge(regularization=0.0), "regularization=0.0"),
        (lambda: Ridge(projection=0).new_memory(8), "projection=0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lda_without_a_degree_of_freedom_is_refused():
    with pytest.raises(ValueError, match="degree of freedom"):
        fitted(lambda: LinearDiscriminant(ddof="n-c"), torch.eye(3), torch.arange(3))


def test_streaming_statistics_cannot_be_merged():
    features, labels = clusters()
    memory = LinearDiscriminant(streaming=True).new_memory(8).update(features, labels)
    with pytest.raises(ValueError, match="cannot be merged"):
        memory + memory
    with pytest.raises(ValueError, match="cannot be merged"):
        memory.all_reduce()
    with pytest.raises(ValueError, match="fit_base starts"):
        memory.fit_base(features, labels)


def test_a_full_memory_serves_heads_of_lower_levels():
    features, labels = clusters()
    memory = PrototypeMemory(8, "full").update(features, labels)
    for head in (NearestMean(), LinearDiscriminant(), Ridge()):
        own = head.new_memory(8).update(features, labels)
        expected = head.fit(own)(features)
        torch.testing.assert_close(head.fit(memory)(features), expected)


def test_a_projection_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = ReluProjection(4, 6, seed=9).weight
    torch.manual_seed(2)
    assert torch.equal(ReluProjection(4, 6, seed=9).weight, first)
    assert not torch.equal(ReluProjection(4, 6, seed=8).weight, first)


@pytest.mark.parametrize(
    ("make", "message"),
    {
        "strength first": (lambda: Ridge(1.0), r"projection=1\.0.*strength is regularization=1\.0"),
        "a switch": (lambda: Ridge(True), "projection=True: expected a whole number"),
        "auto first": (lambda: Ridge("auto"), "projection='auto': expected a whole number"),
        "no strength": (lambda: Ridge(regularization=None), "regularization=None: expected 'auto'"),
        "target first": (lambda: LinearDiscriminant("scaled"), "shrinkage='scaled': expected"),
        "no shrinkage": (lambda: LinearDiscriminant(None), "shrinkage=None: expected 'auto'"),
        "one weight": (lambda: Mahalanobis(0.5), r"shrinkage=0\.5: expected two numbers"),
        "a short pair": (lambda: Mahalanobis((1.0,)), r"shrinkage=\(1\.0,\): expected two numbers"),
        "half a rank": (lambda: Mahalanobis(covariance="low_rank", rank=2.5), r"rank=2\.5"),
        "noise first": (lambda: BayesianPrototypes(0.05), r"prior=0\.05.*noise="),
        "noise in words": (lambda: BayesianPrototypes(noise="small"), "noise='small': expected"),
        "no noise": (lambda: BayesianPrototypes(noise=None), "noise=None: expected"),
        "a type's name": (lambda: NearestMean(dtype="float64"), "dtype='float64': expected torch"),
        "whole numbers": (lambda: NearestMean(dtype=torch.int64), "dtype=torch.int64: expected"),
    }.values(),
)
def test_a_setting_in_the_wrong_place_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("power", [0, 0.5, 0.3, 2.0])
def test_what_tukeys_transform_gives_is_in_its_range(power):
    features = 0.1 + torch.rand(5, 3, dtype=torch.float64)
    transform = Tukey(power)
    mapped = transform(features)
    assert torch.equal(transform.in_range(mapped), mapped)
    lowest = float(transform.in_range(torch.full((1, 1), -2.0)))
    assert lowest == (-2.0 if power == 0 else 0.0)
