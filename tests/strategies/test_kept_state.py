"""What strategies say they keep is what they keep, and what becomes of old prototypes is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from protocl.config.compose import load
from protocl.errors import ConfigError
from protocl.heads import LinearDiscriminant, Mahalanobis, NearestMean
from protocl.registry import STRATEGIES
from protocl.runner.experiment import run_experiment
from protocl.strategies import (
    FeTrILPlugin,
    ICaRLPlugin,
    IL2APlugin,
    NAPAVQPlugin,
    PASSPlugin,
    PRDPlugin,
    ProtoCLPlugin,
    PrototypePlugin,
)
from tests.strategies.small import build_strategy, train_on

PLUGINS: dict[str, Callable[[], Any]] = {
    "prd": PRDPlugin,
    "napa_vq": NAPAVQPlugin,
    "pass": PASSPlugin,
    "il2a": partial(IL2APlugin, ratio=0.1, augmentation_weight=0.1),
    "protocl": partial(ProtoCLPlugin, mem_size=20),
    "fetril": FeTrILPlugin,
    "icarl_nme": partial(ICaRLPlugin, 60),
    "nearest_mean": partial(PrototypePlugin, NearestMean()),
    "simplecil": partial(PrototypePlugin, NearestMean("cosine")),
    "slda": partial(PrototypePlugin, LinearDiscriminant()),
    "fecam": partial(PrototypePlugin, Mahalanobis()),
}


def tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)


def evaluated(formula: str, **sizes: int) -> int:
    python = re.sub(r"(\d) ([DCM])", r"\1 * \2", formula).replace("^", "**")
    return int(eval(python, {}, sizes))


@pytest.mark.parametrize("name", PLUGINS)
def test_one_more_class_costs_the_bytes_that_are_stated(name: str, benchmark: Any) -> None:
    plugin = PLUGINS[name]()
    strategy = build_strategy("naive", [plugin])
    size = []
    for experience in benchmark.train_stream:
        train_on(strategy, [experience])
        size.append(sum(tensor.nbytes for tensor in tensors(plugin.state_dict())))
    formula = STRATEGIES.get(name).info.bytes_per_class
    # A moment that classes share gets its other half when it is first added to.
    assert size[2] - size[1] == sum(evaluated(formula, D=16, C=4 + k) for k in range(2))


def test_every_strategy_of_ours_states_its_bytes() -> None:
    for name in STRATEGIES.names():
        assert evaluated(STRATEGIES.get(name).info.bytes_per_class, D=1, C=1, M=1) >= 0


@pytest.mark.parametrize(
    ("settings", "fate"),
    [
        (["naive"], "none"),
        (["lwf", "strategy.answer=nearest_mean"], "left"),
        (["lwf", "strategy.answer=lda", "strategy.drift=ldc"], "compensated (ldc)"),
        (["naive", "strategy.answer=ridge", "strategy.freeze_backbone=true"], "exact"),
        (["slda"], "exact"),
        (["napa_vq"], "left"),
        (["pass", "strategy.drift=adc"], "compensated (adc)"),
        (["prd"], "trained"),
        (["protocl"], "trained"),
        (["protocl", "strategy.plugin.refit=memory"], "refreshed"),
        (["icarl_nme"], "refreshed"),
        (["fetril"], "exact"),
        (["aper"], "exact"),
    ],
)
def test_the_fate_of_old_prototypes_is_part_of_the_configuration(
    settings: list[str], fate: str
) -> None:
    (config,) = load([f"strategy={settings[0]}", *settings[1:]])
    assert config.strategy.old_prototypes == fate


def test_a_baseline_answers_by_compensated_prototypes(tmp_path: Path) -> None:
    results = []
    for drift in ("none", "ldc"):
        (config,) = load([
            "benchmark=digits", "benchmark.n_experiences=5", "backbone=mlp", "backbone.width=64",
            "strategy=naive", "strategy.train_epochs=3", "strategy.lr=0.005",
            "strategy.answer=nearest_mean",
            f"strategy.drift={drift}", f"output={tmp_path}", "device=cpu", "seed=1",
        ])  # fmt: skip
        folder = tmp_path / drift
        folder.mkdir()
        results.append(run_experiment(config, folder))
    fates = [result["strategy"]["old_prototypes"] for result in results]
    assert fates == ["left", "compensated (ldc)"]
    left, compensated = (result["metrics"]["last_accuracy"] for result in results)
    assert compensated > left + 0.3
    assert (tmp_path / "ldc" / "model" / "memory.safetensors").is_file()


def test_compensation_of_nothing_is_refused(tmp_path: Path) -> None:
    (config,) = load(["strategy=replay", "strategy.drift=sdc", f"output={tmp_path}", "device=cpu"])
    with pytest.raises(ConfigError, match=r"drift=sdc: there are no prototypes to carry over"):
        run_experiment(config, tmp_path)
    with pytest.raises(ConfigError, match=r"strategy\.drift\.method=up: expected none, sdc"):
        load(["strategy=replay", "strategy.answer=nearest_mean", "strategy.drift=up"])
