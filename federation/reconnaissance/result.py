"""The content of a run's ``result.json``, in the form that ``protocl compare`` reads."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from protocl.federation.reconnaissance.measures import per_class_costs
from protocl.federation.runner.result import FORMAT
from protocl.io import provenance

if TYPE_CHECKING:
    from protocl.federation.reconnaissance.run import Reconnaissance


def build_result(run: Reconnaissance) -> dict[str, Any]:
    """All that a finished run found, in the form of JSON."""
    config = run.config
    n_field = sum(len(mission.rows) for mission in run.scenario.missions)
    return {
        "format": FORMAT,
        "name": config.name,
        "seed": config.seed,
        "status": "complete",
        "benchmark": {
            "name": config.benchmark.name,
            "n_experiences": len(run.stages),
            "classes_per_experience": [sorted(stage) for stage in run.stages],
            "data_hash": run.data_hash,
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
        "metrics": run.history.summary(),
        "confusion": run.history.confusion_table(),
        "reconnaissance": {
            "clients": run.scenario.clients,
            "setup_bytes": run.setup_bytes,
            "per_class": per_class_costs(run.reports),
            "steps": [asdict(report) for report in run.reports],
        },
        "phases": run.phases.entries,
        "versions": provenance.versions(),
        "git": provenance.git_state(),
        "machine": provenance.machine(config.device, torch.get_num_threads()),
    }
