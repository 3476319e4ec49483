"""Federated reconnaissance: clients learn classes, merge, and are asked about all of them.

Source: Hendryx et al., Federated Reconnaissance: Efficient, Distributed, Class-Incremental
Learning, arXiv 2109.00150, 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.federation.reconnaissance.config import (
        Learner,
        LearnerConfig,
        LearnerSetup,
        ReconnaissanceConfig,
        ScenarioConfig,
    )
    from protocl.federation.reconnaissance.run import run_reconnaissance
    from protocl.federation.reconnaissance.scenario import SERVER, Mission, Scenario, Step

__all__ = [
    "SERVER",
    "Learner",
    "LearnerConfig",
    "LearnerSetup",
    "Mission",
    "ReconnaissanceConfig",
    "Scenario",
    "ScenarioConfig",
    "Step",
    "run_reconnaissance",
]

_HOMES = {
    "Learner": "config",
    "LearnerConfig": "config",
    "LearnerSetup": "config",
    "ReconnaissanceConfig": "config",
    "ScenarioConfig": "config",
    "run_reconnaissance": "run",
    "SERVER": "scenario",
    "Mission": "scenario",
    "Scenario": "scenario",
    "Step": "scenario",
}

__getattr__ = importer(__name__, _HOMES)
