"""LoRanPAC as a strategy: experiences go on from all before, and what it keeps is found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from protocl.backbones import Classifier
from protocl.config.compose import load
from protocl.errors import ConfigError
from protocl.federation.config.compose import load as load_federation
from protocl.heads import LinearDiscriminant, Ridge
from protocl.memory.estimates.eigenpairs import LowRankMemory
from protocl.model.folder import read_memory
from protocl.runner.experiment import run_experiment
from protocl.runner.folders import open_run
from protocl.runner.progress import Progress
from protocl.strategies import SLDA, LoRanPAC
from protocl.strategies.plugin.prototypes import Prototypes
from tests.strategies.small import quiet_evaluator, train_on


def build(kind: Any = LoRanPAC, **settings: Any) -> Any:
    model = nn.Sequential(nn.Flatten(), Classifier(nn.Identity(), nn.Linear(64, 6)))
    return kind(model=model, evaluator=quiet_evaluator(), **settings)


def samples(benchmark: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for experience in benchmark.train_stream:
        pairs = [(x.flatten(), int(y)) for x, y, *_ in experience.dataset]
        found.append((torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])))
    return found


def test_it_is_the_head_on_one_batch_an_experience(benchmark: Any) -> None:
    strategy = build(projection=60, rank=20, seed=3)
    head = Ridge(60, rank=20, seed=3, regularization=0.0)
    memory = head.new_memory(64)
    for experience, batch in zip(benchmark.train_stream, samples(benchmark), strict=True):
        for _ in range(2):  # the same experience again adds nothing
            train_on(strategy, [experience])
        memory.update(*batch)
        torch.testing.assert_close(strategy.memory.second_moment, memory.second_moment)
    assert strategy.memory.total == memory.total
    assert 0 < strategy.memory.error_bound == pytest.approx(memory.error_bound)


def test_it_differs_from_ranpac_by_what_was_dropped_alone(benchmark: Any) -> None:
    """With room for every direction the weights are those of ridge regression."""
    exact, kept = (
        Ridge(30, regularization=0.01, dtype=torch.float64, **more)
        for more in ({}, {"rank": 30, "share": 1.0})
    )
    answers = []
    for head in (exact, kept):
        learner = Prototypes(head)
        for features, labels in samples(benchmark):
            learner.learn([(features, labels, None)])
        answers.append(learner.logits(samples(benchmark)[0][0]))
    torch.testing.assert_close(*answers, rtol=1e-6, atol=1e-6)


def test_deep_slda_goes_on_in_a_strategy_of_avalanche_too(benchmark: Any) -> None:
    strategy = build(SLDA, streaming=True)
    train_on(strategy, benchmark.train_stream)
    head = LinearDiscriminant(streaming=True)
    memory = head.new_memory(64)
    for batch in samples(benchmark):
        memory.update(*batch)
    torch.testing.assert_close(strategy.memory.second_moment, memory.second_moment)


class StoppedError(Exception):
    """Stands for the end of the process."""


def stop_at_the_third_experience(progress: Progress) -> None:
    if progress.phase == "train" and progress.done == 2:
        raise StoppedError


def test_a_run_that_was_stopped_goes_on_and_its_model_holds_the_eigenpairs(tmp_path: Path) -> None:
    results, memories = [], []
    for name in ("quiet", "stopped"):
        (config,) = load([
            "benchmark=digits", "strategy=loranpac", "strategy.head.projection=50", "resume=true",
            "strategy.head.rank=30", "seed=2", f"output={tmp_path / name}",
        ])  # fmt: skip
        folder = open_run(config)
        if name == "stopped":
            with pytest.raises(StoppedError):
                run_experiment(config, folder, on_progress=stop_at_the_third_experience)
        results.append(run_experiment(config, folder)["metrics"])
        memories.append(read_memory(folder / "model")[0])
    assert results[0] == results[1]
    first, second = memories
    assert isinstance(first, LowRankMemory)
    assert torch.equal(first.factor, second.factor)
    assert first.error_bound > 0
    assert len(first.factor) == 30


@pytest.mark.parametrize(
    "words", [["ridge", "rank=20", "regularization=1"], ["lda", "streaming=true"]]
)
def test_a_federation_refuses_what_does_not_add_up(words: list[str]) -> None:
    head, *settings = words
    chosen = [f"method.head={head}", *(f"method.head.{setting}" for setting in settings)]
    with pytest.raises(ConfigError, match="does not add up over clients"):
        load_federation(["federation=digits", *chosen])
