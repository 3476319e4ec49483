"""Small run directories whose numbers come from real counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from protocl.metrics.calibration import ReliabilityBins
from protocl.metrics.confusion import Confusion
from protocl.metrics.history import Evaluation, History

PER_CLASS = 10


def make_result(
    strategy: str = "slda",
    seed: int = 1,
    sizes: tuple[int, ...] = (2, 2, 2),
    skill: float = 0.9,
    **changes: Any,
) -> dict[str, Any]:
    """A ``result.json`` of a learner that answers right with probability ``skill``."""
    random = np.random.default_rng(seed)
    order = random.permutation(sum(sizes))
    experiences = [sorted(part.tolist()) for part in np.split(order, np.cumsum(sizes)[:-1])]
    history = History()
    for t in range(len(sizes)):
        seen = np.concatenate(experiences[: t + 1])
        history.append(_evaluate(random, experiences[: t + 1], seen, skill))
    result = {
        "format": 2,
        "kind": "experiment",
        "name": f"digits-{strategy}",
        "seed": seed,
        "status": "complete",
        "benchmark": {
            "name": "digits",
            "n_experiences": len(sizes),
            "classes_per_experience": experiences,
            "data_hash": "0123456789abcdef",
            "n_train": 1000,
            "n_test": PER_CLASS * sum(sizes),
            "class_names": [f"<{i}>" for i in range(sum(sizes))],
        },
        "strategy": {
            "name": strategy,
            "title": strategy.upper(),
            "keeps_data": strategy == "replay",
            "stored": "sums",
            "state_bytes": 2048,
        },
        "backbone": {"name": "identity", "fingerprint": "fedcba9876543210", "feature_dim": 64},
        "metrics": history.summary(),
        "confusion": history.confusion_table(),
        "phases": [
            {"phase": "data", "experience": None, "seconds": 0.5, "peak_mib": 100.0},
            *(
                {"phase": "train", "experience": t, "seconds": 1.0, "peak_mib": 200.0 + t}
                for t in range(len(sizes))
            ),
        ],
        "versions": {"torch": "2.14.1"},
        "git": {"commit": "0f1e2d3c4b5a", "dirty": False},
        "machine": {"cores": 2, "device": "cpu", "platform": "Linux"},
    }
    return {**result, **changes}


def write_run(
    root: Path,
    result: dict[str, Any],
    time: str = "20260101-000000",
    checkpoint: str | None = None,
    **config: Any,
) -> Path:
    """Write ``result`` and a ``config.yaml`` with ``config`` in its strategy section."""
    directory = root / result["name"] / f"{time}-{result['seed']}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(json.dumps(result))
    settings = {
        "seed": result["seed"],
        "benchmark": {"name": "digits", "root": f"/data/{result['seed']}"},
        "backbone": {"name": "identity", "checkpoint": checkpoint},
        "strategy": {"name": result["strategy"]["name"], "lr": 0.1, **config},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    return directory


def _evaluate(
    random: np.random.Generator, experiences: list[list[int]], seen: np.ndarray, skill: float
) -> Evaluation:
    confusion = {}
    for i, classes in enumerate(experiences):
        true = np.repeat(classes, PER_CLASS)
        right = random.random(len(true)) < skill
        answers = np.where(right, true, random.choice(seen, len(true)))
        confusion[i] = Confusion.from_predictions(true, answers)
    return Evaluation(confusion, ReliabilityBins.from_confidence([0.9, 0.8], [True, False]))
