"""FedProto: the loss and the averages of the released code, and a run from the common config."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from protocl import PrototypeMemory
from protocl.errors import AllFailedError, ConfigError
from protocl.federation.config.compose import load
from protocl.federation.methods.fedproto_client import penalty
from protocl.federation.methods.fedproto_strategy import average
from protocl.federation.runner.run import run_federation
from protocl.runner.folders import open_run


def memory_of(vectors: list[list[float]], labels: list[int]) -> PrototypeMemory:
    return PrototypeMemory(2).update(torch.tensor(vectors), torch.tensor(labels))


def federate(tmp_path: Path, *words: str):
    (config,) = load(["federation=digits", "method=fedproto", f"output={tmp_path}", *words])
    return run_federation(config, open_run(config))


def test_penalty_is_the_released_loss():
    """``loss2`` of ``LocalUpdate.update_weights_het``: MSE against a copy of the embeddings."""
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(5, 2, generator=generator, requires_grad=True)
    labels = torch.tensor([7, 3, 3, 9, 1])
    prototypes = memory_of([[1.0, 2.0], [0.5, -1.0]], [3, 9])
    expected = embedded.data.clone()
    for i, label in enumerate(labels.tolist()):
        if label in (3, 9):
            expected[i] = prototypes.means[[3, 9].index(label)].float()
    term = penalty(prototypes, 0.1)
    assert term is not None
    ours, theirs = term(embedded, labels), 0.1 * nn.MSELoss()(embedded, expected)
    assert torch.equal(ours, theirs)
    gradient = torch.autograd.grad(ours, embedded)[0]
    assert gradient[[0, 4]].abs().max() == 0 < gradient[[1, 2, 3]].abs().min()


def test_without_prototypes_there_is_no_penalty():
    assert penalty(PrototypeMemory(2), 1.0) is None


@pytest.mark.parametrize(("aggregation", "shared"), [("uniform", 4.0), ("count", 6.0)])
def test_prototypes_are_averaged_over_their_owners(aggregation, shared):
    """Class 1 has mean 0 of one sample here and 8 of three there; nobody sent class 8."""
    few = memory_of([[0.0, 0.0]], [1])
    many = memory_of([[8.0, 8.0]] * 3 + [[5.0, 1.0]], [1, 1, 1, 2])
    before = memory_of([[9.0, 9.0], [3.0, 4.0]], [1, 8])
    prototypes = average([few, many], before, aggregation)
    assert prototypes.classes.tolist() == [1, 2, 8]
    assert prototypes.counts.tolist() == [1, 1, 1]
    assert prototypes.means.tolist() == [[shared, shared], [5.0, 1.0], [3.0, 4.0]]


@pytest.mark.parametrize("aggregation", ["uniform", "count"])
def test_clients_learn_their_own_classes(tmp_path, aggregation):
    result = federate(tmp_path, "rounds=3", f"method.aggregation={aggregation}")
    rounds = result["federation"]["rounds"]
    assert rounds[-1]["accuracy"] > 0.95
    # Two prototypes of 64 float32 values go up; all ten come down, twice from the second round on.
    assert 10 * 2 * 64 * 4 < rounds[0]["bytes_up"] < 5 * 10 * 2 * 64 * 4
    assert rounds[1]["bytes_down"] > 2 * 10 * 10 * 64 * 4
    assert (
        sum(sum(row) for row in result["confusion"]["counts"]) == 2 * result["benchmark"]["n_test"]
    )


def test_the_term_changes_what_clients_learn_from_the_second_round_on(tmp_path):
    words = ["rounds=2", "method.answer=classifier", "partition=iid"]
    first, second = (
        federate(tmp_path, *words, f"method.weight={weight}")["federation"]["rounds"]
        for weight in (0, 10)
    )
    assert first[0]["accuracy"] == second[0]["accuracy"]
    assert first[1]["accuracy"] != second[1]["accuracy"]


def test_accuracy_is_that_of_who_answered(tmp_path):
    result = federate(tmp_path, "rounds=4", "lost=0.8", "evaluate=1", "seed=2")
    rounds = result["federation"]["rounds"]
    counts = [one["evaluated"] for one in rounds]
    assert min(counts) < result["benchmark"]["n_test"]
    for one in rounds:
        assert (one["accuracy"] is None) == (one["evaluated"] == 0)
    answered = sum(sum(row) for row in result["confusion"]["counts"])
    assert answered in counts, "the newest answers there are"


def test_nobody_who_ever_answers_has_no_accuracy(tmp_path):
    with pytest.raises(AllFailedError, match=r"ever answered an evaluation.*not known; lower lost"):
        federate(tmp_path, "rounds=2", "lost=1.0", "evaluate=1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.aggregation=median"], "uniform or count"),
        (["method.answer=knn"], "prototypes or classifier"),
        (["method.weight=-1"], ">= 0"),
        (["method.train=head"], "use projection"),
        (["method.train=backbone"], "no weights"),
    ],
)
def test_settings_that_do_not_work_are_refused(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        federate(tmp_path, *words)
