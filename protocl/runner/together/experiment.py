"""An experiment that several processes carry out together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from protocl.backbones import BackboneConfig, Classifier, build_backbone
from protocl.config import ExperimentConfig
from protocl.config.schema import SharedLearner
from protocl.errors import ConfigError, as_config_error
from protocl.runner.prepare import Prepared, prepare, seed_generators
from protocl.runner.together.adaptation import adapted_backbone
from protocl.runner.together.context import SharedContext
from protocl.runner.together.feature_run import SharedFeatureRun


def execute_together(run: SharedContext[ExperimentConfig]) -> dict[str, Any]:
    """Carry out what remains of an experiment, on each of the processes that share it.

    Raises:
        ConfigError: the strategy, or a setting, is not distributed.
    """
    config = run.config
    _require_distributed(config)
    seed_generators(config.seed)
    prepared = prepare(run)
    learner = _learner(run, prepared)  # refused before anything is trained
    if config.strategy.adaptation is not None:
        prepared = _over_features(run, prepared)
        learner = _learner(run, prepared)
    return SharedFeatureRun(run, prepared, learner).finish()


def _require_distributed(config: ExperimentConfig) -> None:
    """Refuse early what trains in every experience, and what sums outside of the strategy."""
    if config.strategy.trains_backbone and config.strategy.adaptation is None:
        raise _refusal(config, "trains its backbone in every experience")
    if config.backbone.layer_scale == "std":
        raise ConfigError(
            "backbone.layer_scale=std sums deviations before the run, which is not distributed; "
            "leave it out, or leave torchrun out"
        )
    if config.unknown:
        raise ConfigError(
            "unknown=true scores the samples of all experiences in one place, which is not "
            "distributed; leave it out, or leave torchrun out"
        )


def _learner(run: SharedContext[ExperimentConfig], prepared: Prepared) -> SharedLearner:
    config = run.config
    with as_config_error(f"strategy={config.strategy.name}: "):
        learner = config.strategy.feature_learner(prepared.setup(run))
    if not isinstance(learner, SharedLearner):
        raise _refusal(config, "does more than add up features")
    ordered_by = getattr(getattr(learner, "head", None), "ordered_by", "")
    if ordered_by:
        raise _refusal(config, f"keeps what depends on the order of samples (head.{ordered_by})")
    return learner


def _refusal(config: ExperimentConfig, reason: str) -> ConfigError:
    return ConfigError(
        f"strategy '{config.strategy.name}' {reason}, which is not distributed: start it without "
        "torchrun (jobs=N runs a sweep side by side)"
    )


def _over_features(run: SharedContext[ExperimentConfig], prepared: Prepared) -> Prepared:
    """Adapt the backbone to the first experience, and go on with features of it."""
    encoded = prepared.encoded(run, adapted_backbone(run, prepared))
    identity = build_backbone(BackboneConfig(name="identity"), encoded.data.input_shape, 0)
    layer = nn.Linear(encoded.feature_dim, encoded.n_classes)
    return replace(encoded, model=Classifier(identity, layer).to(run.device))
