"""Forms in which the Mahalanobis head keeps covariances: what they compute, and their size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protocl import PrototypeMemory
from protocl.errors import CapacityError
from protocl.heads import LinearDiscriminant, Mahalanobis
from protocl.heads.covariance.shrinkage import whitening

WIDTH, CLASSES, SAMPLES = 6, 5, 40
PLAIN = {"tukey": None, "normalize": False, "correlation": False, "dtype": torch.float64}


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(CLASSES, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(CLASSES, SAMPLES, WIDTH, generator=generator, dtype=torch.float64)
    centres = torch.randn(CLASSES, 1, WIDTH, generator=generator, dtype=torch.float64)
    features = (noise @ mix + 2 * centres).reshape(-1, WIDTH)
    return features, torch.arange(CLASSES).repeat_interleave(SAMPLES)


def fitted(head: Mahalanobis, data: tuple[Tensor, Tensor]) -> Mahalanobis:
    return head.fit(head.new_memory(WIDTH).update(*data))


def distances(features: Tensor, means: Tensor, matrices: Tensor) -> Tensor:
    """``(N, C)`` by the definition, with one matrix a class."""
    differences = features[:, None] - means
    return torch.einsum("ncw,cwv,ncv->nc", differences, torch.linalg.inv(matrices), differences)


def covariances(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    features = data[0].reshape(CLASSES, SAMPLES, WIDTH)
    return features.mean(1), torch.stack([group.T.cov() for group in features])


def test_all_directions_are_the_whole_covariance(data: tuple[Tensor, Tensor]) -> None:
    whole = fitted(Mahalanobis(None, **PLAIN), data)(data[0])
    low = fitted(Mahalanobis(None, covariance="low_rank", rank=WIDTH, **PLAIN), data)(data[0])
    torch.testing.assert_close(low, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rank", [WIDTH - 1, WIDTH, WIDTH + 5])
def test_all_directions_keep_their_digits_in_single_precision(
    rank: int, data: tuple[Tensor, Tensor]
) -> None:
    single, double = (
        Mahalanobis(None, covariance="low_rank", rank=rank, **{**PLAIN, "dtype": dtype})
        for dtype in (torch.float32, torch.float64)
    )
    found, expected = (fitted(head, data)(data[0]).double() for head in (single, double))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_low_rank_is_directions_and_a_diagonal(rank: int, data: tuple[Tensor, Tensor]) -> None:
    means, matrices = covariances(data)
    values, vectors = torch.linalg.eigh(matrices)
    floor = values[:, : WIDTH - rank].mean(1)[:, None, None]
    top = vectors[:, :, WIDTH - rank :] * (values[:, None, WIDTH - rank :] - floor).sqrt()
    rest = matrices.diagonal(dim1=1, dim2=2) - top.square().sum(2)
    logits = fitted(Mahalanobis(None, covariance="low_rank", rank=rank, **PLAIN), data)(data[0])
    expected = distances(data[0], means, top @ top.mT + torch.diag_embed(rest))
    torch.testing.assert_close(-logits, expected, rtol=1e-9, atol=1e-9)


def test_more_directions_come_closer_to_the_whole(data: tuple[Tensor, Tensor]) -> None:
    whole = fitted(Mahalanobis(**PLAIN), data)(data[0])
    gaps = [
        float((fitted(Mahalanobis(covariance="low_rank", rank=rank, **PLAIN), data)(data[0])
               - whole).abs().mean())
        for rank in (0, 2, 4, WIDTH)
    ]  # fmt: skip
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-4 < gaps[0]


def test_a_shared_covariance_is_the_pooled_one(data: tuple[Tensor, Tensor]) -> None:
    means, matrices = covariances(data)
    head = fitted(Mahalanobis(None, covariance="shared", **PLAIN), data)
    expected = distances(data[0], means, matrices.mean(0).expand(CLASSES, -1, -1))
    torch.testing.assert_close(-head(data[0]), expected, rtol=1e-9, atol=1e-9)
    discriminant = LinearDiscriminant(shrinkage=0.0, dtype=torch.float64)
    discriminant.fit(discriminant.new_memory(WIDTH).update(*data))
    assert torch.equal(head.predict(data[0]), discriminant.predict(data[0]))


def test_a_shared_covariance_needs_no_more_than_shared_statistics(
    data: tuple[Tensor, Tensor],
) -> None:
    head = Mahalanobis(covariance="shared", tukey=None)
    memory = head.new_memory(WIDTH, level="full").update(*data)
    assert head.new_memory(WIDTH).level == "shared"
    reduced = Mahalanobis(covariance="shared", tukey=None).fit(memory.at_level("shared"))
    torch.testing.assert_close(head.fit(memory)(data[0]), reduced(data[0]))


@pytest.mark.parametrize("covariance", ["class", "low_rank", "shared"])
def test_classes_of_one_sample_are_told_apart(covariance: str) -> None:
    head = Mahalanobis(covariance=covariance)
    features = torch.eye(4)
    head.fit(head.new_memory(4).update(features, torch.arange(4)))
    assert head.predict(features).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("covariance", "numbers"),
    [
        ("class", CLASSES * WIDTH * (WIDTH + 1) + WIDTH),
        ("low_rank", CLASSES * (WIDTH * (2 + 2) + 2 + 1) + WIDTH),
        ("shared", WIDTH * WIDTH + CLASSES * (WIDTH + 1) + WIDTH),
    ],
)
def test_what_it_takes_is_what_is_stated(
    covariance: str, numbers: int, data: tuple[Tensor, Tensor]
) -> None:
    head = Mahalanobis(None, tukey=None, normalize=False, covariance=covariance, rank=2)
    fitted(head, data)
    assert head.nbytes == 4 * numbers + 8 * CLASSES  # class ids


def test_what_does_not_fit_is_refused_before_it_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("protocl.memory.limits.capacity.available_bytes", lambda device: 10**9)
    head = Mahalanobis()
    smaller = r"4\.2 GB on cpu, where 1 GB are available; 'low_rank' takes 73\.7 MB, 'shared' takes"
    with pytest.raises(CapacityError, match=rf"'class' of 1,000 classes x 1024 .* {smaller}"):
        head._require_bytes(1000, 1024, torch.device("cpu"))
    memory = PrototypeMemory(1024, "full")
    labels = torch.arange(200)
    smaller = r"1\.68 GB .*; level 'mean' takes 3\.28 MB, level 'diagonal' .*, level 'shared' takes"
    with pytest.raises(CapacityError, match=rf"level 'full' of 200 classes .* {smaller}"):
        memory.update(torch.zeros(200, 1024), labels)
    assert len(memory) == 0
    memory.update(torch.zeros(10, 1024), labels[:10])
    assert memory.nbytes <= memory.bytes_for(10)


@pytest.mark.parametrize("correlation", [True, False])
@pytest.mark.parametrize("covariance", ["class", "low_rank", "shared"])
def test_a_head_that_is_fitted_again_is_a_new_one(
    covariance: str, correlation: bool, data: tuple[Tensor, Tensor]
) -> None:
    def make() -> Mahalanobis:
        return Mahalanobis(covariance=covariance, correlation=correlation, tukey=None, rank=2)

    features, labels = data[0].float(), data[1]
    head = make()
    memory = head.new_memory(WIDTH, level="full")
    parts = [
        memory.empty_like().update(features[labels == c], labels[labels == c])
        for c in range(CLASSES)
    ]
    changes = [
        lambda: memory.merge(parts[0]).merge(parts[3]),
        lambda: memory.merge(parts[1]),
        lambda: memory.update(features[:50], labels[:50]),
        lambda: memory.subtract(parts[3]),
        lambda: memory.merge(parts[4]).merge(parts[3]),
    ]
    for change in changes:
        change()
        assert torch.equal(head.fit(memory)(features), make().fit(memory)(features))


def test_classes_that_have_not_changed_are_not_factorised_again(
    data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    factorised: list[int] = []

    def counting(matrices: Tensor) -> Tensor:
        factorised.append(len(matrices))
        return whitening(matrices)

    monkeypatch.setattr("protocl.heads.covariance.forms.whitening", counting)
    features, labels = data
    head = Mahalanobis(tukey=None)
    memory = head.new_memory(WIDTH).update(features[labels < 3], labels[labels < 3])
    head.fit(memory)
    memory.update(features[labels >= 3], labels[labels >= 3])
    head.fit(memory)
    memory.update(features[labels == 1], labels[labels == 1])
    head.fit(memory.copy())
    assert factorised == [3, 2, 1]


@pytest.mark.parametrize(("name", "value"), [("covariance", "shard"), ("rank", -1)])
def test_unknown_forms_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}='?{value}"):
        Mahalanobis(**{"covariance": "low_rank", name: value})


@pytest.mark.parametrize("roundings", [0, 1, 2, 4, 30])
def test_what_rounding_leaves_of_a_feature_that_repeats_another_is_no_direction(
    roundings: int,
) -> None:
    """Cholesky goes through by luck here, and would divide by the rounding."""
    matrix = torch.ones(2, 2, dtype=torch.float64)
    matrix[1, 1] += roundings * torch.finfo(torch.float64).eps
    half = whitening(matrix[None])[0]
    torch.testing.assert_close(half.T @ half, torch.full_like(matrix, 0.25), rtol=1e-9, atol=0)


def test_factors_that_are_kept_go_with_any_others() -> None:
    """Of two samples a class has a singular matrix, whose factor is not triangular."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(60, WIDTH, generator=generator)
    steps = [(samples[:2], 1), (samples[2:30], 0), (samples[30:32], 2), (samples[32:], 1)]
    head = Mahalanobis(None)
    memory = head.new_memory(WIDTH)
    for features, label in steps:
        memory.update(features, torch.full((len(features),), label))
        fresh = Mahalanobis(None).fit(memory)
        assert torch.equal(head.fit(memory)(samples), fresh(samples))
