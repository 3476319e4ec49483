"""Messages with a scatter of low rank: what they bring, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord

from protocl import PrototypeMemory
from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.federation.client.client import ClientData, PrototypeClient
from protocl.federation.config.compose import load
from protocl.federation.runner.run import run_federation
from protocl.federation.wire.messages import Contribution, decode
from protocl.federation.wire.npy import array_of, read_npy
from protocl.federation.wire.validation import RejectedError
from protocl.memory.estimates.low_rank import low_rank_kind, of_low_rank
from protocl.runner.folders import open_run

RANK = 3


def sent(samples: int = 30) -> tuple[PrototypeMemory, ArrayRecord, object]:
    generator = torch.Generator().manual_seed(0)
    memory = PrototypeMemory(8, "shared", fingerprint="f")
    x = torch.randn(samples, 8, generator=generator)
    memory.update(x, torch.arange(samples) % 3)
    client = PrototypeClient(lambda _: ClientData([]), memory.empty_like(), rank=RANK)
    return memory, *client.packed(Contribution(memory, "epoch", 1))


@pytest.mark.parametrize("samples", [30, 1, 0])
def test_the_server_reads_the_scatter_of_low_rank(samples):
    memory, arrays, header = sent(samples)
    assert "second" not in arrays
    assert read_npy(arrays["factor"].data).shape == (RANK, 8)
    found = decode(arrays, header, low_rank_kind(memory, RANK)).memory
    expected, _ = of_low_rank(memory, RANK)
    assert torch.equal(found.sums, memory.sums)
    torch.testing.assert_close(found.second_moment, expected.second_moment, rtol=1e-6, atol=1e-5)


BROKEN = {
    "factor": [np.zeros((9, 8), "f4"), np.zeros((3, 7), "f4"), np.zeros((3, 8)), np.zeros(3, "f4")],
    "rest": [np.array([-1.0], "f4"), np.zeros(2, "f4"), np.array([np.nan], "f4")],
    "sum": [np.zeros((1, 2, 8)), np.zeros((1, 3, 8), "f4")],
    "classes": [np.zeros(3, "i8"), np.array([[0, 1, 2], [0, 0, 0]])],
    "second": [np.zeros((1, 36))],
}


@pytest.mark.parametrize(
    ("name", "number"), [(n, i) for n, v in BROKEN.items() for i in range(len(v))]
)
def test_what_does_not_fit_is_refused(name, number):
    memory, arrays, header = sent()
    arrays[name] = array_of(np.ascontiguousarray(BROKEN[name][number]))
    if name == "second":
        del arrays["rest"]
    with pytest.raises(RejectedError):
        decode(arrays, header, low_rank_kind(memory, RANK))


def test_values_without_bounds_are_refused():
    memory, arrays, header = sent()
    for value in (np.inf, np.nan, 3e38):
        arrays["factor"] = array_of(np.full((RANK, 8), value, "f4"))
        with pytest.raises(RejectedError):
            decode(arrays, header, low_rank_kind(memory, RANK))


def test_a_federation_of_exact_moments_takes_none():
    memory, arrays, header = sent()
    with pytest.raises(RejectedError, match="rank 3"):
        decode(arrays, header, memory)


def test_a_run_is_near_the_exact_one_at_a_fraction_of_the_bytes(tmp_path, capsys):
    words = [
        "federation=digits", "clients=4", "rounds=2", "partition=iid", "partition.growth=samples",
        "method.exact=false", "method.head=ridge", "method.head.projection=100", "verify=true",
        "method.head.regularization=1", "method.rank=10", "evaluate=0.5", f"output={tmp_path}",
    ]  # fmt: skip
    assert main(["federate", *words]) == 0
    (file,) = tmp_path.rglob("result.json")
    federation = json.loads(file.read_text())["federation"]
    compared = federation["one_place"]
    assert 0 < compared["estimated_error"] < 1
    assert compared["merged_samples"] == compared["samples"]
    assert compared["federated_accuracy"] > compared["accuracy"] - 0.05
    assert "has an estimated covariance" in " ".join(capsys.readouterr().err.split())
    exact_moments = 4 * 8 * 100 * 101 / 2  # of four clients
    assert federation["rounds"][0]["bytes_up"] < 0.5 * exact_moments


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["method.head=lda"], "method.exact=false"),
        (["method.head=lda", "method.exact=false", "method.precision=int8"], "precision=exact"),
        (["method.exact=false"], "takes no second moment"),
        (["method.exact=false", "method.head=ridge"], "ridge with a given regularization"),
        (["method=fedcof"], "no second moment is sent"),
        (["method=robust", "method.centre=exact", "method.head=lda"], "method.exact=false"),
    ],
)
def test_settings_without_sense(tmp_path, words, match):
    (config,) = load(["federation=digits", "method.rank=5", f"output={tmp_path}", *words])
    with pytest.raises(ConfigError, match=match):
        run_federation(config, open_run(config))


def test_an_interrupted_run_is_not_resumed_to_another_end(tmp_path):
    words = [
        "federation=digits", "method.rank=5", "method.exact=false", "method.head=lda", "rounds=3",
        "partition.growth=samples", "resume=true", f"output={tmp_path}",
    ]  # fmt: skip
    (config,) = load(words)
    folder = open_run(config)

    def stop(progress):
        if progress.report is not None and progress.report.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_federation(config, folder, on_progress=stop)
    with pytest.raises(ConfigError, match=r"method\.rank=5 clients would now send one moment"):
        run_federation(config, folder)
