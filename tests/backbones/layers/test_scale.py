"""Deviations: from sums alone, kept with the backbone, the same in a run and in its model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeClassifier, load_model
from protocl.backbones import BackboneConfig, fingerprint, standardise
from protocl.backbones.layers.scale import deviations, standardised
from protocl.cli.main import main
from protocl.data import class_order, load_data
from protocl.errors import ConfigError
from protocl.memory import PrototypeMemory
from protocl.runner.experiment import EXPERIMENT
from tests.backbones.layers.networks import built
from tests.runner.test_experiment import run

SMALL = (
    "benchmark=digits",
    "benchmark.n_experiences=2",
    "benchmark.classes=4",
    "benchmark.train_per_class=12",
    "backbone=conv4",
    "backbone.width=4",
    "backbone.image_size=16",
    "seed=3",
)


@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from(["diagonal", "shared", "full"]))
@settings(max_examples=20, deadline=None)
def test_they_are_those_of_all_samples_whoever_holds_them(seed, samples, level):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.0]) + 5
    y = torch.randint(0, 4, (samples,), generator=generator)
    cut = samples // 2
    parts = [PrototypeMemory(3, level).update(x[s], y[s]) for s in (slice(cut), slice(cut, None))]
    expected = x.double().std(0, correction=0)
    expected[2] = 1.0  # constant
    if samples == 1:
        expected[:] = 1.0
    found = deviations(parts[0] + parts[1]).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_backbone_keeps_them():
    raw, backbone = (built("conv4", layers=2, width=4).eval() for _ in range(2))
    images = torch.rand(9, 1, 28, 28)
    with torch.no_grad():
        features = raw(images)
        scaled = standardised(backbone, features)
        assert torch.equal(backbone(images), scaled)
    found = scaled[:, features.std(0) > 0].std(0, correction=0)
    torch.testing.assert_close(found, torch.ones_like(found))
    assert fingerprint(raw) != fingerprint(backbone)
    other = built("conv4", layers=2, width=4).eval()
    standardised(other, features[:5])
    assert fingerprint(other) != fingerprint(backbone)


def test_what_has_no_deviations_is_refused():
    memory = PrototypeMemory(8, "diagonal")
    with pytest.raises(ValueError, match="the memory is empty"):
        standardise(built("conv4", layers=2, width=4), memory)
    with pytest.raises(ConfigError, match="reads no layers"):
        standardise(built("conv4", width=4), memory)
    with pytest.raises(ConfigError, match="reads layers of scale 'unit'"):
        standardise(built("conv4", layers=2, width=4, layer_scale="unit"), memory)
    with pytest.raises(ValueError, match="holds 7 features: expected the 8"):
        standardise(built("conv4", layers=2, width=4), PrototypeMemory(7, "diagonal"))
    mean = PrototypeMemory(8).update(torch.rand(2, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="level 'mean'"):
        standardise(built("conv4", layers=2, width=4), mean)


@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_a_run_measures_them_on_its_first_experience(validation: float, tmp_path: Path):
    more = [f"benchmark.validation={validation}", "backbone.layers=2", "backbone.layer_scale=std"]
    result, folder = run(tmp_path, *SMALL, "strategy=frozen", "strategy.head=nearest_mean", *more)
    model = load_model(folder / "model")
    reader = model.encoder_.backbone.reader
    config = EXPERIMENT.from_yaml((folder / "config.yaml").read_text())
    data = load_data(config.benchmark)
    order = class_order(config.benchmark, data.y_train, 3)
    raw = built("conv4", data.input_shape, layers=2, width=4, image_size=16, seed=3).eval()
    shown = model.memory_.total
    assert shown == (48 if validation == 0 else 36)
    first = torch.isin(data.y_train, torch.tensor(order[:2]))
    if validation == 0:
        with torch.no_grad():
            features = raw(data.x_train[first])
        expected = features.std(0, correction=0)
        expected[expected == 0] = 1.0
        torch.testing.assert_close(reader.deviation, expected)
    assert result["backbone"]["fingerprint"] == fingerprint(model.encoder_.backbone)
    assert result["backbone"]["feature_dim"] == 8


@pytest.mark.parametrize(("branches", "width"), [("false", 16), ("true", 32)])
def test_a_first_session_adapts_what_is_read(branches: str, width: int, tmp_path: Path):
    settings = [*SMALL, "strategy=nearest_mean", "strategy.first_experience_epochs=1",
                "backbone.layers=all", "backbone.layer_scale=unit",
                f"strategy.session.two_branches={branches}"]  # fmt: skip
    answers = []
    for _ in range(2 if width == 16 else 1):  # the second finds the adapted backbone in the cache
        result, folder = run(tmp_path, *settings)
        model = load_model(folder / "model")
        assert isinstance(model, PrototypeClassifier)
        assert model.memory_.feature_dim == width
        answers.append(result["confusion"]["counts"])
    assert answers[0] == answers[-1]


def test_a_backbone_that_moves_has_no_lasting_deviations(tmp_path: Path):
    for strategy in ("slda", "joint"):
        more = ["strategy.first_experience_epochs=1"] if strategy == "slda" else []
        with pytest.raises(ConfigError, match=r"layer_scale=std: deviations are measured by"):
            run(tmp_path, *SMALL, f"strategy={strategy}", *more, "backbone.layers=2",
                "backbone.layer_scale=std")  # fmt: skip


def test_clients_send_statistics_of_layers(tmp_path: Path):
    words = ["federation=digits", "backbone=conv4", "backbone.width=4", "backbone.image_size=16",
             "backbone.layers=2", "verify=true", "method.exact=true"]  # fmt: skip
    unit, std = tmp_path / "unit", tmp_path / "std"
    assert main(["federate", *words, "backbone.layer_scale=unit", f"output={unit}"]) == 0
    (file,) = unit.rglob("result.json")
    result = json.loads(file.read_text())
    assert result["federation"]["one_place"]["identical"]
    assert result["backbone"]["feature_dim"] == 8
    assert main(["federate", *words, "backbone.layer_scale=std", f"output={std}"]) != 0
    assert not list(std.rglob("model"))


def test_trained_strategies_train_through_the_layers(tmp_path: Path):
    prd = ("strategy=prd", "strategy.train_epochs=1")
    result, _ = run(tmp_path, *SMALL, *prd, "backbone.layers=2")
    assert result["backbone"]["feature_dim"] == 8


def test_classifiers_measure_them_on_the_first_samples(tmp_path: Path):
    config = BackboneConfig("mlp", width=8, layers="all", layer_scale="std")
    x, y = np.random.default_rng(0).random((20, 5), dtype=np.float32), np.arange(20) % 2
    several = PrototypeClassifier(backbone=config).partial_fit(x[:10], y[:10])
    first = several.encoder_.backbone.reader.deviation.clone()
    several.partial_fit(x[10:], y[10:])
    assert torch.equal(several.encoder_.backbone.reader.deviation, first)
    once = PrototypeClassifier(backbone=config).fit(x, y)
    with pytest.raises(ValueError, match="backbone"):
        several.merge(once)
    single = PrototypeClassifier(backbone=config).fit(x[:1], y[:1])
    assert single.predict(x[:2]).tolist() == [0, 0]
