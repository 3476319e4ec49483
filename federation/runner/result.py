"""What ``result.json`` says of a federation."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from protocl.data.config import imbalanced_counts

if TYPE_CHECKING:
    from protocl.federation.runner.run import FederatedRun


def build_result(run: FederatedRun) -> dict[str, Any]:
    """What ``result.json`` says of a federation after at least one evaluation."""
    config, memory = run.config, run.method.memory
    return {
        "benchmark": {
            "name": config.benchmark.name,
            "n_experiences": len(run.stages),
            "classes_per_experience": [[int(c) for c in stage] for stage in run.stages],
            "data_hash": run.run.data_hash,
            "n_train": len(run.data.y_train),
            "n_test": len(run.data.y_test),
            "class_names": run.data.class_names,
        },
        "strategy": {
            "name": config.method.name,
            "title": config.method.title,
            "keeps_data": False,
            "stored": config.method.info.stored,
            "state_bytes": None if memory is None else memory.nbytes,
        },
        "backbone": {
            "name": config.backbone.name,
            "fingerprint": run.fingerprint,
            "feature_dim": run.backbone.feature_dim,
        },
        **run.history.measures(imbalanced_counts(config.benchmark, run.data)),
        run.run.kind: _describe_federation(run),
    }


def _describe_federation(run: FederatedRun) -> dict[str, Any]:
    federation = run.config.federation
    merged = getattr(run.method.strategy, "merged", None)
    seconds = getattr(run.method.strategy, "seconds", None)
    return {
        "clients": federation.clients,
        "rounds": [asdict(report) for report in run.reports],
        "bytes_by_message_type": run.traffic.by_type(),
        "contributions": dict(Counter() if merged is None else merged.ledger.outcomes()),
        "rejected_for": dict(Counter() if merged is None else merged.ledger.reasons()),
        "failed_evaluations": _failed_evaluations(run),
        "server_seconds": {} if seconds is None else asdict(seconds),
        "privacy": getattr(run.method, "privacy", None),
        "waited_for": {str(k): v for k, v in getattr(run.method.strategy, "failures", {}).items()},
        "named": {str(k): v for k, v in getattr(run.method.strategy, "named", {}).items()},
        "one_place": None
        if run.one_place is None
        else run.one_place.model_dump(exclude_defaults=True),
    }


def _failed_evaluations(run: FederatedRun) -> dict[str, list[str]]:
    """Round -> whose evaluations do not count, and why."""
    failed = getattr(run.method.strategy, "failed_evaluations", {})
    return {str(number): reasons for number, reasons in failed.items() if reasons}
