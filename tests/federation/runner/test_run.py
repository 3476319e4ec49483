"""``protocl federate`` on digits: equal to one place, fit for ``protocl compare``, resumable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from protocl import PrototypeMemory, load_model
from protocl.backbones import BackboneConfig, build_backbone, fingerprint
from protocl.cli.main import main
from protocl.config.compose import to_yaml
from protocl.config.presets import group_names
from protocl.data import BenchmarkConfig, load_data
from protocl.errors import ConfigError, DataError
from protocl.federation.config.compose import load
from protocl.federation.runner import run as run_module
from protocl.federation.runner.run import FederatedRun, run_federation
from protocl.federation.server.state import same_statistics
from protocl.federation.wire.traffic import Ledger
from protocl.heads import LinearDiscriminant, NearestMean
from protocl.registry import HEADS
from protocl.report import load_run
from protocl.runner.context import RunContext
from protocl.runner.folders import create_run, open_run


def digits():
    data = load_data(BenchmarkConfig(name="digits"))
    return data.x_train.flatten(1), data.y_train, data.x_test.flatten(1), data.y_test


def run(tmp_path: Path, *words: str):
    (config,) = load(["federation=digits", f"output={tmp_path}", *words])
    folder = open_run(config)
    return run_federation(config, folder), folder


def read_scalars(folder: Path) -> dict[str, float]:
    """The last value of every curve in TensorBoard."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("head", ["nearest_mean", "lda", "mahalanobis", "ridge"])
def test_ten_clients_of_two_classes_equal_one_place_bit_for_bit(tmp_path, head):
    result, folder = run(tmp_path, f"method.head={head}")
    x, y, x_test, y_test = digits()
    backbone = build_backbone(BackboneConfig(), (64,), 0)
    one_place = HEADS.get(head)()
    memory = one_place.new_memory(64, exact=True, fingerprint=fingerprint(backbone)).update(x, y)
    assert same_statistics(PrototypeMemory.load(folder / "model" / "memory.safetensors"), memory)
    accuracy = float((one_place.fit(memory).predict(x_test) == y_test).double().mean())
    assert result["metrics"]["last_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert accuracy > 0.85


def test_ten_clients_of_two_classes_equal_one_place_in_float64(tmp_path):
    _, folder = run(tmp_path, "method.exact=false", "method.head=lda")
    x, y, *_ = digits()
    memory = LinearDiscriminant().new_memory(64).update(x, y)
    merged = PrototypeMemory.load(folder / "model" / "memory.safetensors")
    assert torch.equal(merged.counts, memory.counts)
    torch.testing.assert_close(merged.sums, memory.sums, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.second_moment, memory.second_moment, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exact", ["true", "false"])
def test_the_command_says_whether_it_equals_one_place(tmp_path, capsys, exact):
    words = ["federation=digits", "method.head=lda", f"method.exact={exact}", "verify=true"]
    assert main(["federate", *words, f"output={tmp_path}"]) == 0
    (file,) = tmp_path.rglob("result.json")
    compared = json.loads(file.read_text())["federation"]["one_place"]
    assert compared["identical"] or exact == "false"
    assert compared["difference"] <= (0 if exact == "true" else 1e-12)
    assert compared["accuracy"] == compared["federated_accuracy"] > 0.95
    said = "bit for bit" if compared["identical"] else "to "
    assert f"equals that of one place {said}" in " ".join(capsys.readouterr().err.split())


def test_a_client_that_was_never_asked_is_missed(tmp_path, capsys):
    words = ["federation=digits", "rounds=1", "participation=0.5", "verify=true"]
    assert main(["federate", *words, f"output={tmp_path}"]) == 0
    (file,) = tmp_path.rglob("result.json")
    compared = json.loads(file.read_text())["federation"]["one_place"]
    assert compared["difference"] is None
    assert not compared["identical"]
    assert 0 < compared["merged_samples"] < compared["samples"] == 1347
    counted = f"({compared['merged_samples']:,} of 1,347 samples)"
    said = " ".join(capsys.readouterr().err.split())
    assert f"does not hold the counts of one place {counted}" in said


def test_what_clients_could_add_is_compared_though_one_batch_of_all_does_not_fit(tmp_path):
    words = ["method.head=lda", "method.step=1.06e-8", "verify=true", "rounds=1"]
    result, _ = run(tmp_path, *words)
    assert result["federation"]["one_place"]["identical"]
    x, y = digits()[:2]
    with pytest.raises(OverflowError, match="smaller batches"):
        LinearDiscriminant().new_memory(64, exact=True, step=1.06e-8).update(x, y)


def test_the_model_is_kept_should_the_comparison_fail(tmp_path, monkeypatch):
    def fail(_: FederatedRun) -> None:
        raise OverflowError("too large")

    monkeypatch.setattr(run_module, "compare_with_one_place", fail)
    with pytest.raises(OverflowError, match="too large"):
        run(tmp_path, "verify=true", "rounds=1")
    (memory,) = tmp_path.rglob("memory.safetensors")
    assert PrototypeMemory.load(memory).total == len(digits()[0])


def test_a_difference_from_one_place_is_seen(tmp_path):
    result, _ = run(tmp_path, "verify=true", "method.precision=int8", "method.exact=false")
    assert 1e-6 < result["federation"]["one_place"]["difference"] < 0.1
    with pytest.raises(ConfigError, match="prototypes, robust or protected"):
        run(tmp_path, "method=fedavg", "verify=true")


def test_clients_without_a_state_give_the_same_memory_in_one_round(tmp_path):
    memories = [
        PrototypeMemory.load(
            run(tmp_path, "rounds=1", f"remember={keep}")[1] / "model" / "memory.safetensors"
        )
        for keep in ("true", "false")
    ]
    assert same_statistics(*memories)


def test_every_client_has_two_classes_and_the_ledger_says_so(tmp_path):
    result, folder = run(tmp_path)
    ledger = list(Ledger.load(folder / "ledger.jsonl"))
    assert [len(entry.classes) for entry in ledger] == [2] * 10
    assert sum(sum(entry.counts) for entry in ledger) == result["benchmark"]["n_train"]


def test_bytes_in_the_result_are_those_of_the_messages(tmp_path):
    result, folder = run(tmp_path, "evaluate=0.5", "rounds=2")
    rows = [line.split(",") for line in (folder / "traffic.csv").read_text().splitlines()[1:]]
    up = sum(int(size) for number, _, _, way, size in rows if (number, way) == ("1", "up"))
    (first, second) = result["federation"]["rounds"]
    assert first["bytes_up"] == up > second["bytes_up"] > 0
    assert set(result["federation"]["bytes_by_message_type"]) == {"train", "evaluate"}
    scalars = read_scalars(folder)
    assert scalars["bytes/train/up"] + scalars["bytes/evaluate/up"] == second["bytes_up"]
    assert len([row for row in rows if row[2] == "evaluate" and row[3] == "up"]) == 2 * 5


def test_a_stream_of_experiences_gives_the_class_incremental_matrix(tmp_path):
    (config,) = load(["federation=digits_stream", f"output={tmp_path}"])
    result = run_federation(config, open_run(config))
    matrix = result["metrics"]["accuracy_matrix"]
    assert [len(row) for row in matrix] == [1, 2, 3, 4, 5]
    assert [r["classes"] for r in result["federation"]["rounds"]] == [2, 4, 6, 8, 10]
    x, y, x_test, y_test = digits()
    first, second, *_ = result["benchmark"]["classes_per_experience"]
    seen = torch.tensor([*first, *second])
    memory = NearestMean().new_memory(64, exact=True)
    memory.update(x[torch.isin(y, seen)], y[torch.isin(y, seen)])
    known = torch.isin(y_test, seen)
    answers = NearestMean().fit(memory).predict(x_test[known])
    expected = float((answers == y_test[known]).double().mean())
    assert result["metrics"]["stream_accuracy"][1] == pytest.approx(expected, abs=1e-12)


def test_faults_and_partial_participation_end_at_the_same_memory(tmp_path):
    plain, first = run(tmp_path)
    faulty, second = run(
        tmp_path, "lost=0.2", "late=0.2", "rounds=25", "participation=0.5",
        "partition.growth=samples",
    )  # fmt: skip
    memories = [PrototypeMemory.load(f / "model" / "memory.safetensors") for f in (first, second)]
    assert memories[1].total <= memories[0].total
    assert faulty["federation"]["contributions"]["merged"] >= 10
    assert plain["metrics"]["last_accuracy"] - faulty["metrics"]["last_accuracy"] < 0.05


def test_fedavg_learns_from_the_same_configuration(tmp_path):
    result, folder = run(
        tmp_path, "method=fedavg", "rounds=8", "partition=iid", "method.local_epochs=2"
    )
    rounds = result["federation"]["rounds"]
    assert rounds[-1]["accuracy"] > 0.85 > rounds[0]["accuracy"] - 0.15
    # One layer of 10 x 64 weights and 10 biases in float32, up and down, for ten clients.
    assert rounds[0]["bytes_up"] > 10 * 650 * 4
    assert not (folder / "model" / "memory.safetensors").exists()


def test_an_interrupted_run_is_resumed_to_the_same_end(tmp_path):
    words = ["federation=digits", "rounds=4", "partition.growth=samples", f"output={tmp_path}"]
    (config,) = load(words)
    whole = run_federation(config, create_run(config))
    memory = PrototypeMemory.load(next(tmp_path.rglob("model/memory.safetensors")))
    shutil.rmtree(tmp_path)

    (config,) = load([*words, "resume=true"])
    folder = create_run(config)

    def stop(progress):
        if progress.report is not None and progress.report.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_federation(config, folder, on_progress=stop)
    assert open_run(config) == folder
    result = run_federation(config, folder)
    assert result["status"] == "complete"
    assert [r["round"] for r in result["federation"]["rounds"]] == [1, 2, 3, 4]
    assert [r["accuracy"] for r in result["federation"]["rounds"]] == [
        r["accuracy"] for r in whole["federation"]["rounds"]
    ]
    assert same_statistics(PrototypeMemory.load(folder / "model" / "memory.safetensors"), memory)


def test_a_client_can_be_forgotten_after_the_run(tmp_path):
    (config,) = load(["federation=digits", f"output={tmp_path}"])
    run_state = FederatedRun(RunContext("federation", config, create_run(config)))
    run_state.finish()
    strategy = run_state.method.strategy
    strategy.forget_client("1004")
    rows = torch.cat([
        torch.from_numpy(part[0]) for i, part in enumerate(run_state.clients.parts) if i != 4
    ])  # fmt: skip
    x, y, *_ = digits()
    assert same_statistics(strategy.memory, strategy.empty.empty_like().update(x[rows], y[rows]))


def test_compare_reads_federated_runs(tmp_path, capsys):
    for trained in ("head", "projection"):
        run(tmp_path, "method=fedavg", f"method.train={trained}", "rounds=1")
    for clients in (5, 10):
        run(tmp_path, f"clients={clients}")
    assert main(["compare", str(tmp_path), "--output", str(tmp_path)]) == 0
    table = (tmp_path / "table.md").read_text()
    assert "FedAvg, linear head" in table
    assert "FedAvg, projection" in table
    assert "clients=5" in table
    page = (tmp_path / "report.html").read_text()
    assert "protocl federate federation=" in page


def test_the_command_writes_a_whole_run(tmp_path, capsys):
    assert main(["federate", "federation=digits", f"output={tmp_path}", "seed=1"]) == 0
    folders = sorted(path.parent for path in tmp_path.rglob("result.json"))
    assert len(folders) == 1
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "ledger.jsonl", "traffic.csv", "model"} <= names
        assert any(name.startswith("events.out.tfevents") for name in names)
        assert load_run(folder).complete
    again = load([f"federation={folders[0] / 'config.yaml'}", "seed=7"])[0]
    assert (again.seed, again.partition.classes_per_client) == (7, 2)
    assert "digits" in capsys.readouterr().out


def test_the_command_writes_a_deployment(tmp_path, capsys):
    assert main(["federate", "deploy", str(tmp_path / "app")]) == 0
    assert (tmp_path / "app/federated_app/task.py").is_file()
    assert main(["federate", "deploy"]) == 2


# -- configurations -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", group_names("federation"))
def test_every_preset_is_valid_and_survives_its_own_file(name, tmp_path):
    (config,) = load([f"federation={name}"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load([f"federation={file}"]) == [config]


def test_short_keys_overrule_the_preset_and_sweep():
    configs = load(["federation=digits", "clients=3,4", "federation.rounds=7"])
    assert [c.federation.clients for c in configs] == [3, 4]
    assert {c.federation.rounds for c in configs} == {7}
    assert configs[0].partition.classes_per_client == 2


def test_picking_a_partition_anew_drops_the_presets_keys():
    (config,) = load(["federation=digits", "partition=dirichlet", "partition.alpha=0.5"])
    assert (config.partition.name, config.partition.alpha) == ("dirichlet", 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["federation=digit"], "did you mean 'digits'"),
        (["clents=3"], "did you mean federation.clients"),
        (["clients=0"], "clients=0: expected at least 1"),
        (["deadline=0"], "deadline=0.0: expected a number > 0"),
        (["clients=many"], "expected int"),
        (["participation=0"], r"share in \(0, 1\]"),
        (["engine=gpu"], "expected in_process or ray"),
        (["engine=ray", "lost=0.1"], "in_process only"),
        (["rounds=2", "remember=false"], "need their state"),
        (["method=fedprox"], "choose from"),
        (["method.lr=3"], "unknown key"),
        (["method.head=lda", "method.head.shrinkag=1"], r"did you mean method\.head\.shrinkage"),
        (["method.head=lda", "method.head.shrinkage=2"], r"^method\.head\.shrinkage=2\.0: expect"),
        (["method.head=lda,ridge", "method.head.shrinkage=1"], "but not of 'method.head=ridge'"),
        (["partition.alpha=x"], "expected float"),
    ],
)
def test_wrong_settings_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        load(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.head=nearest"], "did you mean"),
        (["method.head.metric=manhattan"], "expected euclidean or cosine"),
        (["method.precision=float8"], "exact, float32"),
        (["partition=shards"], "choose from"),
        (["method=fedavg", "method.lr=-1"], "number > 0"),
        (["method=fedavg", "method.lr=nan"], "number > 0"),
        (["method=fedavg", "method.momentum=1"], r"momentum=1.0: expected a number in \[0, 1\)"),
        (["method=fedavg", "method.weight_decay=-1"], "weight_decay=-1.0: expected a number >= 0"),
        (["method=fedproto", "method.weight=nan"], "weight=nan: expected a number >= 0"),
        (["method=fedavg_prototypes", "rounds=1"], "fewer than rounds=1.*raise rounds"),
        (["method=robust", "method.max_count=nan"], "max_count=nan: expected 0 for none"),
        (["method.step=0"], r"^method\.step=0\.0: expected a number > 0"),
        (["method.step=nan"], "step=nan: expected a number > 0"),
        (["partition=dirichlet", "partition.alpha=nan"], "alpha=nan: expected a number > 0"),
    ],
)
def test_wrong_parts_are_refused_before_anything_runs(tmp_path, words, message):
    with pytest.raises((ConfigError, DataError), match=message):
        run(tmp_path, *words)


def test_result_is_json_without_surprises(tmp_path):
    result, folder = run(tmp_path)
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize("method", ["prototypes", "fedavg", "protected"])
def test_the_model_answers_as_the_federation_did(tmp_path, method):
    result, folder = run(tmp_path, "rounds=2", f"method={method}")
    data = load_data(BenchmarkConfig(name="digits"))
    answers = load_model(folder / "model").predict(data.x_test)
    right = np.array(data.class_names)[data.y_test.numpy()] == answers
    assert right.mean() == pytest.approx(result["metrics"]["last_accuracy"], abs=1e-9)
