"""Deep SLDA's running covariance goes on from experience to experience, in the order of samples."""

from __future__ import annotations

import re

import pytest
import torch

from protocl import PrototypeClassifier, PrototypeMemory
from protocl.cli.main import main
from protocl.heads import LinearDiscriminant
from protocl.memory.estimates.streaming import StreamingMemory
from protocl.strategies.plugin.prototypes import Prototypes


def test_experiences_go_on_where_the_last_one_ended_and_so_does_a_resumed_run():
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(6).repeat_interleave(20)
    x = torch.randn(120, 5, generator=rng) + 3 * torch.randn(6, 5, generator=rng)[y]
    parts = [(x[n : n + 40], y[n : n + 40], None) for n in range(0, 120, 40)]
    whole = StreamingMemory(5)
    for features, labels, _ in parts:
        whole.update(features, labels)
    direct = LinearDiscriminant(streaming=True).fit(whole)(x)

    learner = Prototypes(LinearDiscriminant(streaming=True))
    for part in parts[:2]:
        learner.learn([part])
    before, seen = learner.memory, learner.memory.copy()
    resumed = Prototypes(LinearDiscriminant(streaming=True))
    resumed.load_state_dict(learner.state_dict())
    for each in (learner, resumed):
        each.learn([parts[2]])
        torch.testing.assert_close(each.head.fit(each.memory)(x), direct, rtol=0, atol=0)
    with pytest.raises(ValueError, match="NaN"):
        learner.learn([(x * float("nan"), y, None)])
    assert torch.equal(before.second_moment, seen.second_moment)
    assert learner.memory.total == 120


def test_a_file_says_that_its_statistics_depend_on_the_order_of_samples(tmp_path):
    y = torch.arange(4).repeat(5)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    head, more = LinearDiscriminant(streaming=True), (x.flip(0), y.flip(0))
    memory = head.new_memory(3, fingerprint="a backbone").update(x, y)
    memory.save(tmp_path / "running.safetensors")
    loaded = PrototypeMemory.load(tmp_path / "running.safetensors", fingerprint="a backbone")
    assert torch.equal(head.fit(loaded)(x), head.fit(memory)(x))
    assert torch.equal(loaded.update(*more).second_moment, memory.update(*more).second_moment)
    exact = PrototypeMemory(3, "shared").update(x, y)
    for refused in (
        lambda: loaded + loaded, lambda: loaded - loaded, lambda: loaded.forget(0),
        lambda: loaded + exact, lambda: loaded - exact, lambda: loaded.subset(0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="depends on the order of samples"):
            refused()
    for refused in (lambda: exact + loaded, lambda: exact - loaded):
        with pytest.raises(ValueError, match="order_of_samples is free here, kept in the other"):
            refused()
    with pytest.raises(ValueError, match="order_of_samples is free in this memory, kept in the"):
        PrototypeMemory(3, "shared").load_state_dict(memory.state_dict())


def test_a_saved_model_of_running_statistics_answers_and_learns(tmp_path, capsys):
    y = torch.arange(4).repeat(30)
    x = torch.randn(120, 8, generator=torch.Generator().manual_seed(0)) + 3 * y[:, None]
    x[:, 5] = 0  # a feature without variance has no scatter that sums would leave
    PrototypeClassifier(LinearDiscriminant(streaming=True)).fit(x, y).save(tmp_path / "model")
    model = PrototypeClassifier.load(tmp_path / "model").partial_fit(x, y)
    assert not model.says_how_sure  # probabilities are those of sums, which these are not
    assert len(model.guesses(x.numpy(), 1)) == 120
    assert main(["info", str(tmp_path / "model")]) == 0
    assert re.search(r"forgets +nothing", capsys.readouterr().out)
