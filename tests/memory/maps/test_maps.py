"""Feature maps: found by name, rebuilt from their text, the same for samples and queries."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeClassifier, PrototypeMemory, load_model
from protocl.errors import ConfigError, ProtoclError
from protocl.heads import BayesianPrototypes, LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.memory.feature_maps import (
    FeatureMap,
    ReluProjection,
    Tukey,
    UnitNorm,
    feature_map,
    map_for,
)
from protocl.memory.maps.gelu_projection import GeluProjection
from protocl.memory.maps.joint import Joint
from protocl.memory.maps.random_fourier import RandomFourier
from protocl.memory.maps.relu_linear import ReluLinear
from protocl.memory.maps.top_k import TopKProjection
from protocl.memory.maps.tukey_unit import TukeyUnit
from protocl.registry import MAPS
from tests import third_party

DRAWN = {
    "relu_projection": lambda seed=3: ReluProjection(6, 9, seed=seed),
    "relu_linear": lambda seed=3: ReluLinear(6, 9, seed=seed),
    "top_k": lambda seed=3: TopKProjection(6, 9, 2, 0.4, seed=seed),
    "random_fourier": lambda seed=3: RandomFourier(6, 9, 0.1, seed=seed),
    "gelu_projection": lambda seed=3: GeluProjection(6, 9, seed=seed),
}
MADE = DRAWN | {
    "identity": FeatureMap,
    "unit": UnitNorm,
    "tukey": lambda: Tukey(0.5),
    "tukey_unit": lambda: TukeyUnit(0.5),
    "joint": lambda: Joint([UnitNorm(), ReluLinear(6, 4, seed=3)]),
}
HEADS = {
    "nearest_mean": NearestMean,
    "cosine": lambda **o: NearestMean("cosine", **o),
    "lda": LinearDiscriminant,
    "mahalanobis": lambda **o: Mahalanobis(tukey=None, **o),
    "ridge": Ridge,
    "bayesian": BayesianPrototypes,
    "bayesian_full": lambda **o: BayesianPrototypes(covariance="full", **o),
}


def samples(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    features = torch.rand(n, 6, generator=generator) + torch.eye(6)[labels]
    return features, labels


@pytest.fixture
def acme(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("a package")
    third_party.install(folder)
    monkeypatch.syspath_prepend(str(folder))


def test_every_registered_map_is_tried_here():
    assert MAPS.names() == sorted(MADE)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_map_is_rebuilt_from_its_text_and_maps_each_row_by_itself(make, tmp_path):
    made, features = make(), samples()[0]
    again = feature_map(made.spec)
    mapped = made(features)
    assert torch.equal(again(features), mapped)
    assert mapped.shape == (60, made.width(6))
    assert mapped.dtype == torch.float32
    assert made(features.double()).dtype == torch.float64
    torch.testing.assert_close(torch.cat([made(row[None]) for row in features]), mapped)
    assert made(features[:0]).shape == (0, made.width(6))
    torch.testing.assert_close(made.in_range(mapped), mapped)
    memory = PrototypeMemory(6, "shared", feature_map=make()).update(*samples())
    memory.save(tmp_path / "m.safetensors")
    loaded = PrototypeMemory.load(tmp_path / "m.safetensors")
    assert torch.equal(loaded.feature_map(features), mapped)


def test_the_texts_of_before_mean_the_same_bits():
    """Files name maps by these; the hash is over all weights."""
    assert [feature_map(spec).spec for spec in ("identity", "unit", "tukey:0.5", "tukey:0")] == [
        "identity", "unit", "tukey:0.5", "tukey:0"
    ]  # fmt: skip
    spec = "relu_projection:6:9:seed=3:e8cb36047bd072e5"
    assert torch.equal(feature_map(spec).weight, ReluProjection(6, 9, seed=3).weight)
    assert ReluProjection(6, 9, seed=3).spec == spec


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
def test_what_is_drawn_depends_on_the_seed_alone(make):
    torch.manual_seed(1)
    first = make(5)
    torch.manual_seed(2)
    assert first.spec == make(5).spec != make(6).spec
    other = first.spec[:-4] + "0000"
    with pytest.raises(ConfigError, match="random numbers or the package"):
        feature_map(other)


@pytest.mark.parametrize("power", [0.5, 1 / 3, 0.1 + 0.2, 1e-7, 2.0])
def test_a_power_keeps_all_its_digits(power):
    assert feature_map(Tukey(power).spec).power == power


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
def test_given_weights_cannot_be_rebuilt_and_are_taken_from_the_caller(make, tmp_path):
    drawn = make()
    given = type(drawn)(6, 9, weight=drawn.weight + 1)
    PrototypeMemory(6, feature_map=given).update(*samples()).save(tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="pass feature_map="):
        PrototypeMemory.load(tmp_path / "m.safetensors")
    loaded = PrototypeMemory.load(tmp_path / "m.safetensors", feature_map=given)
    assert loaded.total == 60
    with pytest.raises(ValueError, match="weight has shape"):
        type(drawn)(6, 9, weight=drawn.weight[:, 1:])


@pytest.mark.parametrize(
    ("attempt", "message"),
    {
        "name": (lambda: feature_map("unti"), "unknown feature map 'unti': did you mean 'unit'"),
        "empty": (lambda: feature_map(""), "unknown feature map ''.*choose from .*identity"),
        "words": (lambda: feature_map("unit:3"), "'unit:3' cannot be built"),
        "no number": (lambda: feature_map("tukey:half"), "'tukey:half' cannot be built"),
        "cut": (lambda: feature_map("top_k:6"), "'top_k:6' cannot be built"),
        "wish": (lambda: map_for("topk", 6), "did you mean 'top_k'"),
        "setting": (lambda: map_for("top_k:degre=3", 6), r"did you mean 'degree=\.\.\.'"),
        "no value": (lambda: map_for("top_k:degree", 6), "no setting 'degree'"),
        "text": (lambda: map_for("top_k:keep=all", 6), "map='top_k:keep=all'"),
        "share": (lambda: map_for("top_k:keep=1.5", 6), "keep=1.5: expected a share"),
        "degree": (lambda: map_for("top_k:degree=0", 6), "degree=0: expected a positive"),
        "missing": (lambda: map_for("relu_projection", 6), "map='relu_projection'.*dim"),
        "gamma": (lambda: map_for("random_fourier:gamma=0", 6), "gamma=0"),
    }.values(),
)
def test_what_does_not_exist_is_named_with_the_nearest(attempt, message):
    with pytest.raises(ProtoclError, match=message):
        attempt()


# -- with heads ------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", ["top_k:dim=40:degree=3", "random_fourier:dim=40", "acme_cube:2"])
@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_every_head_takes_any_map_as_if_features_came_mapped(acme, make, wish):
    """Fitted on features that were mapped before, it answers the same, by every way of asking."""
    import acme_continual

    features, labels = samples()
    wish = acme_continual.Cube(2.0) if wish.startswith("acme") else wish
    head, plain = make(map=wish, dtype=torch.float64), make(dtype=torch.float64)
    mapped = head.feature_map(6)(features.double())
    memory = head.new_memory(6, calibrated=True).update(features.double(), labels)
    alike = plain.new_memory(mapped.shape[1], calibrated=True)
    if isinstance(head, Mahalanobis):  # scales after a map, and before its sums without one
        alike = PrototypeMemory(mapped.shape[1], alike.level)
        plain = make(map=FeatureMap(), dtype=torch.float64)
    alike.update(mapped, labels)
    head.calibrate(memory), plain.calibrate(alike)
    head.chunk_bytes = 200  # a few rows at a time
    for ask in ("__call__", "predict_proba"):
        found = getattr(head, ask)(features.double())
        torch.testing.assert_close(found, getattr(plain, ask)(mapped), rtol=1e-6, atol=1e-6)
    assert torch.equal(head.predict(features), head.classes[head(features).argmax(1)])
    if isinstance(head, BayesianPrototypes):
        found, expected = head.unknown_probability(features.double()), plain.unknown_probability
        torch.testing.assert_close(found, expected(mapped), rtol=1e-6, atol=1e-6)


def test_a_map_of_another_package_saves_and_loads_by_itself(acme, tmp_path: Path):
    import acme_continual

    features, labels = samples()
    head = LinearDiscriminant(map="acme_cube:power=1.5")
    memory = head.new_memory(6).update(features, labels)
    assert memory.feature_map.spec == "acme_cube:1.5"
    memory.save(tmp_path / "memory.safetensors")
    loaded = PrototypeMemory.load(tmp_path / "memory.safetensors")
    assert isinstance(loaded.feature_map, acme_continual.Cube)
    assert torch.equal(head.fit(loaded)(features), head.twin().fit(memory)(features))
    with pytest.raises(ValueError, match="summed under the map 'acme_cube:3'"):
        LinearDiscriminant(map=acme_continual.Cube(3)).fit(loaded)


@pytest.mark.parametrize("wish", ["acme_cube:power=2.0", "top_k:dim=30:keep=0.5", None])
def test_a_model_on_disk_answers_as_it_did(acme, tmp_path: Path, wish):
    import acme_continual

    features, labels = (each.numpy() for each in samples())
    for number, head in enumerate(
        [Ridge(map=wish or acme_continual.Cube(2.0), seed=5), NearestMean(map=wish or UnitNorm())]
    ):
        model = PrototypeClassifier(head).fit(features, labels)
        model.save(tmp_path / str(number))
        loaded = load_model(tmp_path / str(number))
        assert (loaded.predict_proba(features) == model.predict_proba(features)).all()
        assert (loaded.unknown(features) == model.unknown(features)).all()


def test_without_its_package_a_map_is_asked_for(tmp_path: Path):
    class Log(FeatureMap):
        spec = "acme_logarithm"

        def forward(self, features):
            return features.log1p()

    path = tmp_path / "memory.safetensors"
    PrototypeMemory(6, feature_map=Log()).update(*samples()).save(path)
    with pytest.raises(ConfigError, match=r"'acme_logarithm'.*register its package, or pass"):
        PrototypeMemory.load(path)
    assert PrototypeMemory.load(path, feature_map=Log()).total == 60


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NearestMean(normalize_input=True, map="unit"), "normalize_input=True is a map"),
        (lambda: LinearDiscriminant(normalize_input=True, map="unit"), "normalize_input=True is"),
        (lambda: LinearDiscriminant(streaming=True, map="unit"), "streaming=True takes features"),
        (lambda: Mahalanobis(map="unit"), "tukey=0.5 is a map itself"),
        (lambda: Ridge(map=5), "map=5: expected a FeatureMap"),
    ],
)
def test_two_maps_are_one_too_many(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


# -- what the maps are -----------------------------------------------------------------------


def test_a_linear_layers_start():
    weight = ReluLinear(50, 4000).weight
    torch.testing.assert_close(weight.std(), torch.tensor(1 / math.sqrt(3 * 50)), rtol=0.01, atol=0)
    assert float(weight.abs().max()) <= 1 / math.sqrt(50) + 2**-17
    assert torch.equal(weight * 2**16, (weight * 2**16).round())


@given(keep=st.floats(0.01, 1.0), degree=st.integers(1, 9), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_the_largest_are_kept_and_each_looks_at_few(keep, degree, seed):
    drawn = TopKProjection(6, 30, degree, keep, seed=seed)
    assert int((drawn.weight != 0).sum(0).max()) <= min(degree, 6)
    features = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mapped, plain = drawn(features), features @ drawn.weight.double()
    for row, whole in zip(mapped, plain, strict=True):
        least = whole.sort(descending=True).values[drawn.kept - 1]
        assert torch.equal(row, torch.where(whole >= least, whole, 0.0))
    assert torch.equal(feature_map(drawn.spec).weight, drawn.weight)


def test_products_of_fourier_features_are_a_kernel():
    features = samples()[0].double()
    mapped = RandomFourier(6, 20_000, 0.3)(features)
    expected = torch.exp(-0.3 * torch.cdist(features, features).square())
    assert float((mapped @ mapped.T - expected).abs().max()) < 0.05


def test_queries_are_mapped_a_few_rows_at_a_time():
    """10,000 random features of all queries at once would take more than the logits by far."""
    seen: list[int] = []

    class Wide(FeatureMap):
        spec = "wide"

        def width(self, feature_dim: int) -> int:
            return 50 * feature_dim

        def forward(self, features):
            seen.append(len(features))
            return features.repeat(1, 50)

    features, labels = samples(600)
    for head in (Ridge(map=Wide()), BayesianPrototypes(map=Wide())):
        head.fit(head.new_memory(6).update(features, labels))
        head.chunk_bytes = 120
        seen.clear()
        logits = head(features)
        assert max(seen) <= 10
        assert sum(seen) == 600
        head.chunk_bytes = 2**20
        torch.testing.assert_close(head(features), logits)


@pytest.mark.parametrize("power", [0, -1.0])
def test_lengths_are_of_positive_powers(power):
    with pytest.raises(ValueError, match="above 0"):
        TukeyUnit(power)
