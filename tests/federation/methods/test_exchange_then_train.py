"""Federated averaging from a start that statistics give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protocl.errors import AllFailedError, ConfigError
from protocl.federation.config.compose import load
from protocl.federation.methods.exchange_then_train import HEADS, MERGES, write_layer
from protocl.federation.runner.run import run_federation
from protocl.runner.folders import open_run
from tests.golden.statistics_methods import inputs, values


def layer_of(start: str) -> nn.Linear:
    data, head = inputs(), HEADS[start]()
    parts = [
        head.new_memory(12).update(data["X"][data["client"] == c], data["y"][data["client"] == c])
        for c in range(8)
    ]
    layer = nn.Linear(12, 7).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    write_layer(layer, start, MERGES[start](parts) if start in MERGES else sum(parts))
    return layer


@pytest.mark.parametrize(
    ("start", "key"),
    [
        ("nearest_mean", "fedncm_weights"),
        ("ridge", "fed3r_own_repository_weights"),
        ("fedcof", "fedcof_gamma0.1_weights"),
    ],
)
def test_the_layer_is_that_of_the_authors(start, key):
    golden, layer = values("fedncm_fed3r_fedcof"), layer_of(start)
    expected = torch.tensor(golden[key], dtype=torch.float64)
    torch.testing.assert_close(layer.weight[:6].detach(), expected, rtol=1e-6, atol=1e-7)
    assert not layer.weight[6].any()
    if start == "ridge":
        bias = torch.tensor(golden["fed3r_own_repository_bias"], dtype=torch.float64)
        torch.testing.assert_close(layer.bias[:6].detach(), bias, rtol=1e-7, atol=1e-8)


def test_the_layer_scores_as_the_discriminant_does():
    data, head = inputs(), HEADS["lda"]()
    head.fit(head.new_memory(12).update(data["X"], data["y"]))
    found = layer_of("lda")(data["T"])[:, :6].detach()
    torch.testing.assert_close(found, head(data["T"]), rtol=1e-8, atol=1e-8)


def test_averaging_goes_on_from_the_start(tmp_path):
    words = ["federation=digits", "method=fedavg", "rounds=3", "method.lr=0.01"]
    (config,) = load([*words, "method.initialize=lda", f"output={tmp_path}"])
    rounds = run_federation(config, open_run(config))["federation"]["rounds"]
    accuracies = [r["accuracy"] for r in rounds]
    assert accuracies[0] > 0.95
    assert min(accuracies) > 0.9
    assert rounds[0]["bytes_up"] > 0


@pytest.mark.parametrize("words", [["method.train=projection"], ["rounds=1"]])
def test_a_start_needs_a_layer_and_rounds(tmp_path, words):
    base = ["federation=digits", "method=fedavg", "method.initialize=ridge", "rounds=2"]
    (config,) = load([*base, f"output={tmp_path}", *words])
    with pytest.raises(ConfigError, match="fits a linear layer in the first round"):
        run_federation(config, open_run(config))


@pytest.mark.parametrize(
    "words",
    [
        ["method=fedavg", "method.initialize=fedcof"],
        ["method=fedavg_prototypes", "method.training_rounds=1"],
    ],
)
def test_where_all_statistics_were_refused_the_run_fails_with_the_reason(tmp_path, words):
    base = ["federation=digits", "clients=3", "partition=iid", "rounds=2", "limits.classes=[77]"]
    (config,) = load([*base, *words, f"output={tmp_path}"])
    with pytest.raises(AllFailedError, match=r"nothing was merged: .*not in limits\.classes"):
        run_federation(config, open_run(config))
