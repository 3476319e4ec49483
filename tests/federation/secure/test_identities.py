"""Long-lived identities on disk, and federations whose nodes pin a roster."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.cli.main import main
from protocl.errors import AllFailedError, ConfigError
from protocl.federation.client.client import ClientData
from protocl.federation.config.compose import load as load_settings
from protocl.federation.privacy.vector import StatisticsLayout
from protocl.federation.runner.run import run_federation
from protocl.federation.secure.client import ProtectedClient
from protocl.federation.secure.identities import (
    IdentitiesOnDisk,
    SimulatedIdentities,
    read_identity,
    write_identity,
)
from protocl.federation.secure.protocol.identity import Signer, new_private_key
from protocl.federation.secure.strategy import ProtectedPrototypes
from protocl.federation.wire.grid import InProcessGrid
from protocl.io import atomic
from protocl.runner.folders import open_run
from tests.federation.deploy.test_apps import NODES, PARTS, configuration, everything
from tests.federation.deploy.test_apps import run as deployed

EMPTY = PrototypeMemory(1, exact=True)
NAMES = ["Klinik Süd", "partition-1", "c"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three nodes of one machine, whose folder has a space and a letter beyond ASCII."""
    folder = tmp_path / "Käse brot"
    members = {name: write_identity(folder, name) for name in NAMES}
    (folder / "roster.json").write_text(json.dumps(members))
    return folder


def context(**config: Any) -> Context:
    return Context(1, 1, config, RecordDict(), {})


def test_each_node_signs_as_itself(folder: Path) -> None:
    identities = IdentitiesOnDisk(folder)
    assert identities.has_roster
    for name, config in (
        ("Klinik Süd", {"name": "Klinik Süd"}),
        ("partition-1", {"partition-id": 1}),
    ):
        signer = identities(context(**config))
        assert signer.roster.name_of(signer.member) == name
        assert stat.S_IMODE((folder / f"{name}.identity.pem").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match=r"partition-9.identity.pem is no identity"):
        identities(context(**{"partition-id": 9}))
    with pytest.raises(ConfigError, match="exists; whoever has its public key relies on it"):
        write_identity(folder, "c")
    write_identity(folder, "stranger")
    with pytest.raises(ConfigError, match="is not on the roster that it pins"):
        identities(context(name="stranger"))


def test_damaged_files_are_refused(folder: Path) -> None:
    for text in ("", "{", "[]", '{"a": "xx"}', '{"a": 5}', "{}"):
        (folder / "roster.json").write_text(text)
        with pytest.raises(ConfigError, match="roster"):
            _ = IdentitiesOnDisk(folder).roster
    key = folder / "c.identity.pem"
    for data in (b"", key.read_bytes()[:40], b"\xff" * 50):
        key.write_bytes(data)
        with pytest.raises(ConfigError, match="is no identity"):
            read_identity(key)


def test_the_command_makes_an_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federate", "identity", str(tmp_path / "clients"), "hospital-1"]) == 0
    key = capsys.readouterr().out.strip().rpartition(" ")[2].strip('"')
    assert len(bytes.fromhex(key)) == 32
    assert main(["federate", "identity", str(tmp_path / "clients")]) != 0
    assert "give the folder" in capsys.readouterr().err


def run(tmp_path: Path, *words: str) -> dict[str, Any]:
    (config,) = load_settings([f"output={tmp_path}", *words])
    return run_federation(config, open_run(config))


@pytest.mark.parametrize("federation", ["digits_pinned", "digits_graph"])
def test_presets_equal_the_plain_sum_and_say_against_whom(
    tmp_path: Path, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["clients=30"] if federation == "digits_graph" else []
    with caplog.at_level(logging.INFO):
        result = run(tmp_path, f"federation={federation}", *words)
    plain = run(tmp_path, "federation=digits", "rounds=1")
    assert result["metrics"] == plain["metrics"]
    assert not result["federation"]["waited_for"]
    against = result["federation"]["privacy"]["against"]
    assert f"(secure={federation[7:]}) against {against}" in caplog.text
    if federation == "digits_graph":
        assert against == "an honest but curious server"
    else:
        assert "of 10 on the pinned roster 3 may be away" in caplog.text


def test_settings_that_do_not_work_are_refused(tmp_path: Path) -> None:
    for words, message in (
        (["method.secure=pinned", "clients=129"], "129 members: expected 3 to 128"),
        (["method.secure=pinned", "clients=2"], "2 members"),
        (["method.secure=pinned", "clients=9", "participation=0.5"], "and 7 must stay .* 2 may be"),
        (["method.secure=graph", "method.colluding=0.6", "method.leaving=0.5"], "0.9 together"),
        (["method.secure=maybe"], "method.secure=maybe"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path, "federation=digits", "method=protected", "partition=iid", *words)


def test_a_deployment_whose_nodes_pin_a_roster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings say ``pinned``; keys and rosters lie in the folders of the nodes and the server."""
    monkeypatch.setattr(atomic, "flush", lambda path: None)  # no machine dies here
    app = tmp_path / "app"
    words = configuration(app, "method=protected", "method.secure=pinned", rounds=2)
    members = {
        f"partition-{i}": write_identity(app / "clients", f"partition-{i}") for i in range(NODES)
    }
    (app / "clients" / "roster.json").write_text(json.dumps(members))
    with pytest.raises(ConfigError, match=r"output.roster.json is no roster"):
        deployed(words)
    (app / "output").mkdir(exist_ok=True)
    (app / "output" / "roster.json").write_text(json.dumps(members))
    half = deployed(words)
    assert not half.failures
    done = deployed(configuration(app, rounds=PARTS + 1), first_node=2000)
    assert_same(done.memory, everything(done.memory), "after both runs")
    # A server that would rather not be checked finds nobody to take part.
    other = configuration(app, rounds=PARTS + 2) | {"method.secure": True}
    with pytest.raises(ConfigError, match=r"method.secure=True: .* pins a roster"):
        deployed(other)
    (app / "output" / "roster.json").unlink()
    with pytest.raises(AllFailedError, match="pins a roster"):
        deployed(other | {"output": str(tmp_path / "other")})


class Unchecked(Signer):
    """Of a node that goes on although it is on no roster."""

    def __post_init__(self) -> None:
        pass


def test_a_node_on_no_roster_uses_up_no_rounds_while_a_member_is_away() -> None:
    """It is there, but nobody who is waited for; what it did is told by name."""
    identities, layout = SimulatedIdentities(3), StatisticsLayout(EMPTY, range(4))
    stranger = Unchecked(new_private_key(), identities.roster)

    def signer(context: Context) -> Signer:
        own = context.node_config["partition-id"] == 3
        return stranger if own else identities(context)

    def load(context: Context) -> ClientData:
        number = int(context.node_config["partition-id"])
        return ClientData([(torch.ones(1, 1), torch.tensor([number]))])

    grid = InProcessGrid(ProtectedClient(load, layout, signer_of=signer).app(), 4)
    late = sorted(grid.online)[2]
    grid.online.discard(late)
    strategy = ProtectedPrototypes(layout, roster=identities.roster, wait=60.0)
    asked = []

    def node_ids() -> list[int]:
        asked.append(strategy.round)
        grid.online |= {late} if asked.count(2) > 1 else set()
        return sorted(grid.online)

    grid.get_node_ids = node_ids  # type: ignore[method-assign]
    strategy.start(grid, ArrayRecord(), num_rounds=2)
    assert "signed by no member of the pinned roster" in strategy.named[1]
    assert strategy.failures.keys() == {1}
    assert strategy.memory.classes.tolist() == [0, 1, 2]


def test_simulated_identities_are_of_one_run() -> None:
    first, second = SimulatedIdentities(3), SimulatedIdentities(3)
    assert first.roster.digest != second.roster.digest
    assert first(context(**{"partition-id": 2})).member in first.roster.members.values()
