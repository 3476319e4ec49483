"""Parts beside classes: sums that any order of experiences gives, and scores by them."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from protocl import PrototypeMemory
from protocl.config.compose import load
from protocl.errors import ConfigError
from protocl.open_world.parts.beside import PartsBeside
from protocl.open_world.parts.codebook import learn_codebook
from protocl.open_world.scores import known_scores
from protocl.runner.experiment import run_experiment
from protocl.runner.folders import open_run

SMALL = ("benchmark=digits", "benchmark.train_per_class=25", "benchmark.test_per_class=7", "seed=3")


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x[:600] / 16), torch.from_numpy(y[:600]).long()


def test_classes_in_turn_give_the_parts_of_all_at_once(digits):
    x, y = digits
    like = PrototypeMemory(64, level="shared", exact=True)
    beside = PartsBeside(4, seed=1)
    for some in ((7, 2), (0, 9), (1,)):
        chosen = torch.isin(y, torch.tensor(some))
        beside.learn(like, x[chosen], y[chosen])
    chosen = torch.isin(y, torch.tensor([0, 1, 2, 7, 9]))
    x, y = x[chosen], y[chosen]
    whole = learn_codebook(like, x, y, 4, seed=1)
    assert beside.codebook.ids.equal(whole.ids)
    assert beside.codebook.centres.equal(whole.centres)
    memory = whole.update(like.empty_like(), x, y)
    assert beside.memory.sums.equal(memory.sums)
    assert beside.memory.second_moment.equal(memory.second_moment)
    expected = known_scores(memory, x[:9])
    assert all(beside.scores(x[:9])[f"parts_{name}"].equal(expected[name]) for name in expected)
    summed = whole.whole(beside.memory)
    assert summed.sums.equal(like.empty_like().update(x, y).sums)


def test_samples_of_a_class_that_has_parts_go_to_them(digits):
    x, y = digits
    like = PrototypeMemory(64)
    beside = PartsBeside(4)
    beside.learn(like, x[:300], y[:300])
    centres = beside.codebook.centres
    beside.learn(like, x[300:], y[300:])
    beside.learn(like, x[:0], y[:0])
    assert beside.codebook.centres is centres
    assert beside.memory.total == 600


def test_codebooks_of_the_same_class_are_not_put_together(digits):
    x, y = digits
    like = PrototypeMemory(64)
    two, four = (learn_codebook(like, x[y == c], y[y == c], n) for c, n in ((1, 2), (3, 4)))
    with pytest.raises(ValueError, match=r"classes \[1\] have parts in both"):
        two.beside(two)
    with pytest.raises(ValueError, match="2 and 4 parts"):
        two.beside(four)


def result(tmp_path, *words):
    (config,) = load([*SMALL, f"output={tmp_path}", *words])
    return run_experiment(config, open_run(config))


def test_a_run_gives_scores_by_parts_beside_the_others(tmp_path):
    words = ("strategy=frozen", "strategy.head.map=unit", "unknown=true")
    plain = result(tmp_path, *words)
    parts = result(tmp_path, *words, "unknown_parts=8")
    assert set(parts["detection"][0]) == {"distance", "parts_distance"}
    for here, there in zip(parts["detection"], plain["detection"], strict=True):
        assert {name: here[name] for name in there} == there
    assert parts["metrics"] == plain["metrics"]
    assert (
        parts["detection"][2]["parts_distance"]["auroc"]
        > plain["detection"][2]["distance"]["auroc"] + 0.02
    )


def test_parts_without_scores_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown_parts=4: .*unknown=true"):
        result(tmp_path, "strategy=slda", "unknown_parts=4")
