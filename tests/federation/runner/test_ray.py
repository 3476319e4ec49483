"""Every method under Flower's own simulation engine: the same result as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocl import PrototypeMemory
from protocl.federation.config.compose import load
from protocl.federation.runner.run import run_federation
from protocl.federation.server.state import same_statistics
from protocl.runner.folders import open_run

pytestmark = pytest.mark.slow


def run(folder: Path, engine: str, *words: str) -> tuple[dict[str, Any], Path]:
    (config,) = load([f"engine={engine}", f"output={folder}", f"cache={folder}", *words])
    run_dir = open_run(config)
    return run_federation(config, run_dir), run_dir


@pytest.mark.parametrize(
    "words",
    [
        ["federation=digits", "rounds=2", "partition.growth=samples", "evaluate=0.5"],
        ["federation=digits", "method.distribute=true", "backbone=mlp", "rounds=2"],
        ["federation=digits_secure", "rounds=2", "partition.growth=samples"],
        ["federation=digits_pinned", "rounds=2", "partition.growth=samples"],
        ["federation=digits_graph", "clients=30", "rounds=2", "partition.growth=samples"],
        ["federation=digits_robust", "clients=8"],
        ["federation=digits_robust", "clients=8", "method.centre=exact", "method.screen=0.3"],
        ["federation=digits", "method=fedavg", "rounds=2"],
        ["federation=digits", "method=fedproto", "rounds=2"],
        ["federation=digits", "method=fedavg_prototypes", "rounds=3", "method.training_rounds=2"],
    ],
    ids=lambda words: "-".join(word.partition("=")[2] for word in words[:2]),
)
def test_ray_ends_where_one_process_does(tmp_path: Path, words: list[str]) -> None:
    pytest.importorskip("ray", reason="needs flwr[simulation]")
    (ray, there), (here, at_home) = (
        run(tmp_path / engine, engine, *words) for engine in ("ray", "in_process")
    )
    # Weights are averaged in the order of answers, which is not the same.
    accuracies = [r["metrics"]["last_accuracy"] for r in (ray, here)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.005)
    kinds = [r["federation"]["bytes_by_message_type"] for r in (ray, here)]
    assert kinds[0].keys() == kinds[1].keys()
    for kind, sizes in kinds[0].items():
        # Other nodes are asked to evaluate, and epochs are drawn at random.
        assert sizes == pytest.approx(kinds[1][kind], rel=0.1)
    # Weights that were averaged in another order make other features.
    if (
        there / "model" / "memory.safetensors"
    ).exists() and "method=fedavg_prototypes" not in words:
        memories = [
            PrototypeMemory.load(folder / "model" / "memory.safetensors")
            for folder in (there, at_home)
        ]
        assert same_statistics(*memories)


def test_private_noise_is_drawn_under_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs flwr[simulation]")
    result, folder = run(tmp_path, "ray", "federation=digits_private")
    assert result["metrics"]["last_accuracy"] > 0.8
    assert PrototypeMemory.load(folder / "model" / "memory.safetensors").total != 1347
