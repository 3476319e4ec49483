"""What ``result.json`` says of an experiment."""

from __future__ import annotations

from typing import Any

from protocl.backbones import Backbone, fingerprint
from protocl.config import ExperimentConfig
from protocl.data import ClassStream
from protocl.data.config import imbalanced_counts
from protocl.memory import PrototypeMemory
from protocl.metrics.clusters import split_accuracy
from protocl.metrics.confusion import Confusion
from protocl.metrics.history import History
from protocl.runner.prepare import Prepared


def build_result(
    config: ExperimentConfig,
    prepared: Prepared,
    history: History,
    memory: PrototypeMemory | None,
    trained: Backbone | None = None,
) -> dict[str, Any]:
    """What ``result.json`` says of an experiment after at least one evaluation.

    Args:
        config: what is run.
        prepared: stream and model.
        history: the evaluations so far.
        memory: what the strategy keeps of the classes at present, if prototypes.
        trained: the backbone in its present state, if the strategy trains it.
    """
    info = config.strategy.info
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
        "backbone": _describe_backbone(config, prepared, trained),
        **history.measures(imbalanced_counts(config.benchmark, prepared.data)),
    }


def discovery_of(strategy: Any, stream: ClassStream, t: int) -> dict[str, Any] | None:
    """How well a strategy sorts the unlabelled samples that came with experiences up to ``t``.

    Args:
        strategy: it sorts them where it has ``categories(rows)``.
        stream: holds them and, hidden from the strategy, their classes.
        t: the experience that was learned last.

    Returns:
        ``experience``, accuracies ``all``, ``old`` and ``new`` by one assignment of categories to
        classes (:func:`.split_accuracy`), numbers of ``samples`` and of ``categories`` used. None
        where there is nothing to sort, or nobody who does.
    """
    unlabelled, hidden = stream.unlabelled, stream.hidden
    if unlabelled is None or hidden is None or not hasattr(strategy, "categories"):
        return None
    rows = (unlabelled.experiences <= t).nonzero().flatten()
    found = strategy.categories(rows) if len(rows) else None
    if found is None:
        return None
    table = Confusion.from_predictions(hidden[rows], found.cpu())
    old = [class_id for classes in stream.classes[: t + 1] for class_id in classes]
    used = {"samples": len(rows), "categories": len(table.predicted.unique())}
    return {"experience": t, **split_accuracy(table, old)._asdict(), **used}


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
    stream = prepared.stream
    train = [stream.train(t) for t in range(len(stream))]
    return {
        "name": config.benchmark.name,
        "n_experiences": len(stream),
        "classes_per_experience": [samples.classes for samples in train],
        "data_hash": prepared.data_hash,
        "n_train": sum(map(len, train)),
        "n_test": sum(len(stream.test(t)) for t in range(len(stream))),
        "class_names": prepared.class_names,
        **({} if stream.unlabelled is None else {"n_unlabelled": len(stream.unlabelled.x)}),
    }


def _describe_backbone(
    config: ExperimentConfig, prepared: Prepared, trained: Backbone | None
) -> dict[str, Any]:
    return {
        "name": config.backbone.name,
        "fingerprint": prepared.fingerprint if trained is None else fingerprint(trained),
        "feature_dim": prepared.feature_dim if trained is None else trained.feature_dim,
    }
