"""Clients that the data name themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protocl.data import ArrayData
from protocl.errors import ConfigError
from protocl.federation.client.benchmark_clients import BenchmarkClients, number_of_clients
from protocl.federation.client.partition import PartitionConfig
from protocl.federation.config.compose import load
from protocl.federation.reconnaissance.config import ScenarioConfig
from protocl.federation.reconnaissance.drawing import draw_scenario
from protocl.federation.runner.run import run_federation

HOLDERS = ("Bern", "Oslo", "Łódź")


def table(folder: Path) -> Path:
    """Four classes; every client holds other rows, and Bern nothing of the last class."""
    lines = ["a,b,label,hospital"]
    for i in range(60):
        label, holder = i % 4, HOLDERS[i % 3]
        if label == 3 and holder == "Bern":
            holder = "Oslo"
        lines.append(f"{10 * label + i % 7},{-5 * label + i % 5},k{label},{holder}")
    path = folder / "patients.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def settings(folder: Path) -> list[str]:
    return [
        "benchmark=table", f"benchmark.path={table(folder)}", "benchmark.test=0.25",
        "benchmark.columns.client=hospital", "rounds=1", "benchmark.n_experiences=2",
    ]  # fmt: skip


def held() -> ArrayData:
    x = torch.arange(12.0).view(12, 1)
    y = torch.arange(12) % 3
    clients = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0])
    return ArrayData(x, y, x, y, ["a", "b", "c"], "data", clients, ("s", "t"))


def test_a_column_of_clients_deals_the_data_and_merges_to_one_place(tmp_path: Path) -> None:
    (config,) = load([*settings(tmp_path), "verify=true", f"cache={tmp_path}"])
    assert config.partition.name == "client"
    folder = tmp_path / "run"
    folder.mkdir()
    result = run_federation(config, folder)
    assert result["federation"]["clients"] == 3
    assert result["federation"]["one_place"]["samples"] == 44
    assert result["federation"]["one_place"]["identical"] or (
        result["federation"]["one_place"]["difference"] < 1e-12
    )
    assert result["backbone"]["name"] == "identity"


def test_each_client_has_its_own_rows() -> None:
    clients = BenchmarkClients.from_config(
        held(), PartitionConfig("client"), clients=2, rounds=1, seed=0
    )
    rows = [part.tolist() for (part,) in clients.parts]
    assert rows == [[0, 2, 4, 6, 8, 9, 10, 11], [1, 3, 5, 7]]


def test_a_partition_that_is_picked_counts_more_than_the_column(tmp_path: Path) -> None:
    (config,) = load([*settings(tmp_path), "partition.name=iid", "clients=5"])
    assert (config.partition.name, config.federation.clients) == ("iid", 5)
    (config,) = load(["benchmark=digits"])
    assert (config.partition.name, config.federation.clients) == ("classes", 10)
    with pytest.raises(ConfigError, match="clients=0: expected at least 1"):
        load(["benchmark=digits", "clients=0"])


def test_what_the_data_do_not_say_is_refused() -> None:
    given = PartitionConfig("client")
    data = held()
    assert number_of_clients(data, 0, given) == number_of_clients(data, 2, given) == 2
    assert number_of_clients(data, 7, PartitionConfig()) == 7
    with pytest.raises(ConfigError, match=r"clients=5: the data name 2 \(s, t\); leave clients"):
        number_of_clients(data, 5, given)
    silent = ArrayData(*(getattr(data, n) for n in ("x_train", "y_train", "x_test", "y_test")),
                       data.class_names, "data")  # fmt: skip
    with pytest.raises(ConfigError, match=r"do not say who holds what; name the column"):
        number_of_clients(silent, 0, given)
    with pytest.raises(ConfigError, match="schedule=client: the data of benchmark 'data' do not"):
        draw_scenario(ScenarioConfig(schedule="client"), silent, [], [0, 1, 2], 0)


def test_missions_are_with_those_who_hold_the_samples() -> None:
    data = held()
    config = ScenarioConfig(schedule="client", classes_per_mission=1)
    scenario = draw_scenario(config, data, [], [2, 0, 1], 0)
    assert scenario.clients == 2
    assert data.clients is not None
    assert sorted(row for m in scenario.missions for row in m.rows) == list(range(12))
    for mission in scenario.missions:
        assert set(data.clients[list(mission.rows)].tolist()) == {mission.client}
        assert len(data.y_train[list(mission.rows)].unique()) == 1
    with pytest.raises(ConfigError, match=r"redraw=true: nobody holds the test samples"):
        draw_scenario(ScenarioConfig(schedule="client", redraw=True), data, [], [0, 1, 2], 0)
