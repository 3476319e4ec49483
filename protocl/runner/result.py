"""What ``result.json`` says of an experiment."""

from __future__ import annotations

from typing import Any

from protocl.backbones import Backbone, fingerprint
from protocl.config import ExperimentConfig
from protocl.memory import PrototypeMemory
from protocl.metrics.history import History
from protocl.runner.prepare import Prepared


def build_result(
    config: ExperimentConfig, prepared: Prepared, strategy: Any, history: History
) -> dict[str, Any]:
    """What ``result.json`` says of an experiment after at least one evaluation.

    Args:
        config: what is run.
        prepared: stream and model.
        strategy: the Avalanche strategy in its present state.
        history: the evaluations so far.
    """
    info = config.strategy.info
    memory = memory_of(strategy)
    return {
        "benchmark": _describe_benchmark(config, prepared),
        "strategy": {
            "name": config.strategy.name,
            "title": info.title,
            "keeps_data": info.keeps_data,
            "stored": info.stored_between_experiences,
            "old_prototypes": config.strategy.old_prototypes,
            "state_bytes": None if memory is None else memory.nbytes,
        },
        "backbone": _describe_backbone(config, prepared, strategy),
        **history.measures(),
    }


def memory_of(strategy: Any) -> PrototypeMemory | None:
    """The prototype memory of a strategy: its own, or that of one of its plugins."""
    for owner in (strategy, *strategy.plugins):
        memory = getattr(owner, "memory", None)
        if isinstance(memory, PrototypeMemory):
            return memory
    return None


def backbone_of(strategy: Any) -> Backbone | None:
    """The backbone inside a strategy's model."""
    return next((m for m in strategy.model.modules() if isinstance(m, Backbone)), None)


def _describe_benchmark(config: ExperimentConfig, prepared: Prepared) -> dict[str, Any]:
    train, test = prepared.benchmark.train_stream, prepared.benchmark.test_stream
    return {
        "name": config.benchmark.name,
        "n_experiences": len(train),
        "classes_per_experience": [
            [int(c) for c in experience.classes_in_this_experience] for experience in train
        ],
        "data_hash": prepared.data_hash,
        "n_train": sum(len(experience.dataset) for experience in train),
        "n_test": sum(len(experience.dataset) for experience in test),
        "class_names": prepared.class_names,
    }


def _describe_backbone(
    config: ExperimentConfig, prepared: Prepared, strategy: Any
) -> dict[str, Any]:
    trained = backbone_of(strategy) if config.strategy.trains_backbone else None
    return {
        "name": config.backbone.name,
        "fingerprint": prepared.fingerprint if trained is None else fingerprint(trained),
        "feature_dim": prepared.feature_dim if trained is None else trained.feature_dim,
    }
