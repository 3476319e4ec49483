"""``unknown=true`` in runs and federations: the same numbers, and refusals."""

from __future__ import annotations

import pytest
from sklearn.datasets import load_digits

from protocl.config.compose import load
from protocl.errors import ConfigError
from protocl.federation.config.compose import load as load_federation
from protocl.federation.runner.run import run_federation
from protocl.metrics.detection import detection
from protocl.registry import SCORES
from protocl.runner.context import RunContext
from protocl.runner.experiment import EXPERIMENT, run_experiment
from protocl.runner.feature_run import FeatureRun
from protocl.runner.folders import open_run
from protocl.runner.prepare import prepare, seed_generators

SMALL = ("benchmark.train_per_class=25", "benchmark.test_per_class=7", "seed=3")


def experiment(tmp_path, *words):
    (config,) = load([*SMALL, "benchmark=digits", "unknown=true", f"output={tmp_path}", *words])
    return run_experiment(config, open_run(config))


def federation(tmp_path, *words):
    given = ["federation=digits_stream", *SMALL, "unknown=true", f"output={tmp_path}", *words]
    (config,) = load_federation(given)
    return run_federation(config, open_run(config))


def test_a_run_and_a_federation_measure_the_same(tmp_path):
    exact = ("strategy=frozen", "strategy.head=lda", "strategy.sums.exact=true")
    alone = experiment(tmp_path, *exact)["detection"]
    rounds = federation(tmp_path, "method.head=lda")["federation"]["rounds"]
    assert len(alone) == len(rounds) == 5
    assert set(alone[0]) == set(SCORES.names())
    assert alone[-1] == rounds[-1]["detection"] == {}  # all classes are known
    assert 0.6 < alone[0]["distance"]["auroc"] < 1
    for here, there in zip(alone, rounds, strict=True):
        for name in here:
            assert here[name] == pytest.approx(there["detection"][name], abs=1e-6)


def test_a_run_that_goes_on_keeps_what_it_measured(tmp_path):
    whole = experiment(tmp_path, "strategy=nearest_mean")
    (config,) = load(
        [*SMALL, "benchmark=digits", "strategy=nearest_mean", "unknown=true", f"output={tmp_path}"]
    )

    class Killed(FeatureRun):
        def _evaluate(self, t):
            if t == 2:
                raise KeyboardInterrupt
            super()._evaluate(t)

    folder = open_run(config)
    run = RunContext(EXPERIMENT.name, config, folder)
    seed_generators(config.seed)
    prepared = prepare(run)
    with pytest.raises(KeyboardInterrupt):
        Killed(run, prepared, config.strategy.learner(prepared.setup(run))).finish()
    config.resume = True
    assert run_experiment(config, folder)["detection"] == whole["detection"]


def test_strategies_without_a_memory_of_frozen_features_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"strategy=naive.*frozen"):
        experiment(tmp_path, "strategy=naive")


def test_methods_without_a_memory_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="method=fedavg"):
        federation(tmp_path, "method=fedavg")


def test_a_single_experience_has_no_unknown_classes(tmp_path):
    with pytest.raises(ConfigError, match="n_experiences=2 or more"):
        experiment(tmp_path, "strategy=nearest_mean", "benchmark.n_experiences=1")


def test_a_classifier_gives_every_score_of_its_memory():
    from protocl import PrototypeClassifier

    x, y = load_digits(return_X_y=True)
    few = y < 5
    known = PrototypeClassifier(head="lda").fit(x[few][:300], y[few][:300])
    scores = known.known_scores(x[300:])
    assert list(scores) == SCORES.names()
    found = detection(scores["whitened_cosine"][few[300:]], scores["whitened_cosine"][~few[300:]])
    assert found.auroc > 0.8


def test_without_it_results_stay_as_they_are(tmp_path):
    assert "detection" not in experiment(tmp_path, "strategy=nearest_mean", "unknown=false")
