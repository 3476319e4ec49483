"""What ``result.json`` says of a reconnaissance."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from protocl.federation.reconnaissance.measures import per_class_costs

if TYPE_CHECKING:
    from protocl.federation.reconnaissance.run import Reconnaissance


def build_result(run: Reconnaissance) -> dict[str, Any]:
    """What ``result.json`` says of a run after at least one step."""
    config = run.config
    n_field = sum(len(mission.rows) for mission in run.scenario.missions)
    return {
        "benchmark": {
            "name": config.benchmark.name,
            "n_experiences": len(run.stages),
            "classes_per_experience": [sorted(stage) for stage in run.stages],
            "data_hash": run.run.data_hash,
            "n_train": len(run.scenario.base_rows) + n_field,
            "n_test": len(run.scenario.test_rows),
            "class_names": run.class_names,
        },
        "strategy": {
            "name": config.method.name,
            "title": config.method.title,
            "keeps_data": config.method.keeps_data,
            "stored": config.method.info.stored,
            "state_bytes": round(run.reports[-1].state_bytes),
        },
        "backbone": {
            "name": config.backbone.name,
            "fingerprint": run.fingerprint,
            "feature_dim": run.x.shape[1],
        },
        **run.history.measures(),
        run.run.kind: {
            "clients": run.scenario.clients,
            "setup_bytes": run.setup_bytes,
            "per_class": per_class_costs(run.reports),
            "steps": [asdict(report) for report in run.reports],
        },
    }
