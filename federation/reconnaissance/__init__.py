"""Federated reconnaissance: clients learn classes, merge, and are asked about all of them.

Source: Hendryx et al., Federated Reconnaissance: Efficient, Distributed, Class-Incremental
Learning, arXiv 2109.00150, 2021.
"""

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
