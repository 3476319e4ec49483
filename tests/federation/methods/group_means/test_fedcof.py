"""``method=fedcof`` on digits: what is estimated, from whom, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from protocl import PrototypeMemory, load_model
from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.federation.client.client import ClientData
from protocl.federation.client.state import NoStates
from protocl.federation.config import FederationConfig, FederationSetup
from protocl.federation.config.compose import load
from protocl.federation.methods.group_means.fedcof import FedCOFConfig, GroupMerge
from protocl.federation.runner.run import FederatedRun
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, MessageReader, encode
from protocl.federation.wire.validation import RejectedError
from protocl.memory.estimates.group_moments import GroupMoments
from protocl.memory.estimates.subsamples import SubSamples
from protocl.memory.estimates.variance import with_variance
from protocl.runner.context import RunContext
from protocl.runner.folders import open_run

WORDS = ["federation=digits", "method=fedcof", "clients=6", "rounds=1", "partition=dirichlet"]


def federated(tmp_path: Path, *words: str) -> FederatedRun:
    (config,) = load([*WORDS, f"output={tmp_path}", *words])
    run = FederatedRun(RunContext("federation", config, open_run(config)))
    run.finish()
    return run


def of_one_place(run: FederatedRun, means: int, without: int | None = None) -> PrototypeMemory:
    """What the clients' own samples give, without a message."""
    dealt = SubSamples(means)
    parts = [torch.cat([torch.from_numpy(chunk) for chunk in rows]) for rows in run.clients.parts]
    memories = []
    for client, rows in enumerate(parts):
        if client != without:
            memory = PrototypeMemory(64, exact=True, fingerprint=run.fingerprint)
            samples = dealt(run.data.x_train[rows], run.data.y_train[rows])
            memories.append(memory.update(*samples))
    return with_variance(GroupMoments(memories, dealt).memory(), 0.1)


def same(a: PrototypeMemory, b: PrototypeMemory) -> None:
    assert torch.equal(a.counts, b.counts)
    torch.testing.assert_close(a.second_moment, b.second_moment, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("means", [1, 3])
def test_messages_bring_what_the_samples_give_and_a_client_can_leave(tmp_path, means):
    run = federated(tmp_path, f"method.means={means}")
    same(run.method.memory, of_one_place(run, means))
    strategy = run.method.strategy
    nodes = {int(client): client for client in strategy.merged.clients}
    gone = sorted(nodes)[2]
    strategy.forget_client(nodes[gone])
    candidates = [of_one_place(run, means, without=client) for client in range(6)]
    left = [c for c in candidates if c.total == run.method.memory.total]
    same(run.method.memory, left[0])


def test_growing_data_lost_and_late_replies_change_nothing_in_the_end(tmp_path):
    words = ["rounds=7", "partition.growth=stream", "lost=0.2", "late=0.2", "seed=4"]
    run = federated(tmp_path, *words)
    assert run.reports[-1].accuracy > 0.8
    assert run.method.memory.total <= 1347


def test_clients_answer_with_the_estimate_under_a_backbone_that_was_sent(tmp_path):
    words = ["method.distribute=true", "method.precision=float32"]
    run = federated(tmp_path, "evaluate=1.0", "method.means=2", *words)
    (confusion,) = run.method.strategy.evaluations.values()
    assert confusion.accuracy > 0.85


def test_the_command_prints_the_error_and_does_not_demand_equality(tmp_path, capsys):
    words = [*WORDS, "clients=12", "method.means=4", "method.gamma=0.01", "verify=true"]
    assert main(["federate", *words, f"output={tmp_path}"]) == 0
    assert "has an estimated covariance, " in " ".join(capsys.readouterr().err.split())
    (file,) = tmp_path.rglob("result.json")
    compared = json.loads(file.read_text())["federation"]["one_place"]
    assert not compared["identical"]
    assert 0 < compared["estimated_error"] < 0.6
    assert compared["accuracy"] > 0.9
    memory = load_model(file.parent).memory_
    assert "group means" in memory.estimated
    assert main(["info", str(file.parent)]) == 0
    assert "forgets nothing" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="no samples can be added"):
        memory.update(torch.zeros(1, 64), torch.tensor([0]))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["method.secure=true"], "which a sum over clients hides"),
        (["method.keep_contributions=false"], "which a sum over clients hides"),
        (["method.head=mahalanobis"], "one covariance for all classes"),
        (
            ["method.head.scatter=total", "method.head.regularization=auto"],
            "scores fits by exact sums",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(tmp_path, words, match):
    with pytest.raises(ConfigError, match=match):
        federated(tmp_path, *words)


def test_groups_of_classes_that_have_names_for_ids_are_refused(tmp_path):
    setup = FederationSetup(
        load=lambda context: ClientData([]), backbone=nn.Identity(), feature_dim=4, n_classes=2,
        fingerprint="", seed=0, federation=FederationConfig(), states=NoStates(),
        checkpoints=tmp_path, class_names=["a", "b"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="known by name"):
        FedCOFConfig(means=2).build(setup)
    assert FedCOFConfig().build(setup).memory.total == 0
    assert FedCOFConfig(means=2).build(replace(setup, class_names=())).memory.total == 0


def contribution(label: int, samples: int, dealt: SubSamples, life: str) -> Contribution:
    generator = torch.Generator().manual_seed(label)
    rows = torch.randn(samples, 3, generator=generator)
    memory = PrototypeMemory(3, exact=True)
    return Contribution(memory.update(*dealt(rows, torch.full((samples,), label))), life, 1, "full")


def test_a_class_is_forgotten_with_all_its_groups_and_no_other():
    dealt = SubSamples(5)
    strategy = FederatedPrototypes(PrototypeMemory(3, exact=True), merge=GroupMerge(dealt))
    for label, samples in ((0, 20), (1, 7), (2, 3)):  # the last fills three of five groups
        sent = contribution(label, samples, dealt, f"e{label}")
        strategy.merged.accept(sent, client=f"c{label}")
    with pytest.raises(KeyError, match=r"classes \[20\] are not"):
        strategy.forget_classes([0, 20])
    strategy.forget_classes(2)
    assert strategy.memory.classes.tolist() == [0, 1]
    assert strategy.memory.counts.tolist() == [20, 7]
    strategy.forget_classes(2)  # once more changes nothing
    strategy.merged.accept(contribution(2, 9, dealt, "late"), client="late")
    assert strategy.memory.counts.tolist() == [20, 7]


@pytest.mark.parametrize(
    "limit", ["classes=[0,1,2,3,4,5,6,7,8,9]", "max_classes=10", "max_classes_in_all=10"]
)
def test_limits_are_of_classes_and_not_of_their_groups(tmp_path, limit):
    run = federated(tmp_path, "method.means=5", f"limits.{limit}")
    assert run.method.memory.classes.tolist() == list(range(10))
    assert not run.method.strategy.merged.ledger.outcomes()["rejected"]


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"classes": [0, 1, 10, 14]}, "class 2 is not in limits.classes"),
        ({"max_classes": 2}, "3 classes; at most 2 are accepted"),
    ],
)
def test_a_message_of_groups_is_refused_for_its_classes(limits, match):
    dealt, memory = SubSamples(5), PrototypeMemory(3)
    memory.update(*dealt(torch.zeros(30, 3), torch.arange(30) % 3))
    reader = MessageReader(memory.empty_like(), Limits(**limits), means=5)
    with pytest.raises(RejectedError, match=match):
        reader.read(*encode(Contribution(memory, "e", 1, "full")))
