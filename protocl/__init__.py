"""Continual and federated learning on prototype memories.

``PrototypeMemory`` holds the statistics of classes, ``protocl.heads`` answers from them,
``PrototypeClassifier`` is both behind scikit-learn's interface. ``run``, ``federate``,
``reconnaissance`` and ``pretrain`` are the commands of these names; ``load_run`` reads what they
wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocl.lazy import importer

if TYPE_CHECKING:
    from protocl.memory import PrototypeMemory
    from protocl.model import PrototypeClassifier, load_model, save_model
    from protocl.python.results import Results, RunsFailedError
    from protocl.python.runs import federate, pretrain, reconnaissance, run
    from protocl.report.runs import load_run

__all__ = [
    "PrototypeClassifier",
    "PrototypeMemory",
    "Results",
    "RunsFailedError",
    "__version__",
    "federate",
    "load_model",
    "load_run",
    "pretrain",
    "reconnaissance",
    "run",
    "save_model",
]

__version__ = "0.1.0"

_HOMES = {
    "PrototypeClassifier": "model.classifier",
    "PrototypeMemory": "memory.memory",
    "Results": "python.results",
    "RunsFailedError": "python.results",
    "federate": "python.runs",
    "load_model": "model.folder",
    "load_run": "report.runs",
    "pretrain": "python.runs",
    "reconnaissance": "python.runs",
    "run": "python.runs",
    "save_model": "model.folder",
}
_ROOMS = (
    "backbones", "checks", "data", "errors", "federation", "heads", "memory", "metrics", "model",
    "report", "strategies",
)  # fmt: skip

__getattr__ = importer(__name__, _HOMES, _ROOMS)


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
