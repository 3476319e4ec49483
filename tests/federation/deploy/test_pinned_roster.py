"""A deployment whose nodes pin a roster, with a node that is not on it and one that pins another.

Three members are the fewest that there may be, and of three none may be away.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from protocl.cli.main import main
from tests.federation.deploy.test_deployment import (
    Network,
    check_is_sum_of,
    clients_data,
    command_of,
    network,
    summed,
    wait,
)

MEMBERS, ROUNDS, PATIENCE = 3, 6, 1200.0
UNLISTED = MEMBERS  # a node whose Flower key is registered, and whose identity is on no roster
SETTINGS = ["benchmark=digits", "method=protected", "method.secure=pinned", "partition=iid",
            "partition.growth=samples", "seed=0"]  # fmt: skip
UNLISTED_APP = f"""
from flwr.clientapp import ClientApp

from protocl.federation.deploy.apps import client_app
from protocl.federation.secure import identities
from protocl.federation.secure.protocol.identity import Signer

from .task import new_task

honest = client_app(new_task)


class Unchecked(Signer):
    def __post_init__(self):
        pass


class Unlisted(ClientApp):
    def __call__(self, message, context):
        if context.node_config["partition-id"] == {UNLISTED}:
            identities.Signer = Unchecked  # it goes on although it is on no roster
        return honest(message, context)


app = Unlisted()
"""


class Pinned(Network):
    """Nodes with long-lived identities, made and shared as the README says."""

    def identity(self, folder: str, name: str) -> str:
        """The public key of a new identity."""
        told = self.once("protocl", "federate", "identity", str(self.folder / folder), name)
        (key,) = re.findall(r'"([0-9a-f]{64})"', told)
        return key

    def enrol(self) -> None:
        """Identities and rosters: of the members, and of two nodes that will be refused."""
        members = {f"partition-{i}": self.identity("clients", f"partition-{i}") for i in range(3)}
        unlisted = self.identity("unlisted", f"partition-{UNLISTED}")
        for name in ("clients", "output", "unlisted"):
            self.pin(name, members)
        self.pin("other", {**members, "unlisted": unlisted})
        shutil.copy(self.folder / "clients/partition-2.identity.pem", self.folder / "other")

    def pin(self, folder: str, members: dict[str, str]) -> None:
        (self.folder / folder).mkdir(exist_ok=True)
        (self.folder / folder / "roster.json").write_text(json.dumps(members))

    def member(self, number: int, state: str = "clients") -> None:
        config = f"partition-id={number} num-partitions={MEMBERS + 1}"
        self.supernode(number, f"{config} state='{self.folder / state}'")

    def run(self, config: str = "") -> None:
        words = [word for word in command_of(self.folder, "flwr run") if word != "--stream"]
        self.once(*words, "--run-config", "min-clients=3 deadline=120.0 log-json=true")

    def messages(self) -> list[str]:
        """What the server logged."""
        file = self.folder / "output/log.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line)["message"] for line in lines]

    def refused(self, why: str) -> set[int]:
        """Whom the server named for a reason."""
        found = (re.search(rf"client (\d+) .*{why}", text) for text in self.messages())
        return {int(match[1]) for match in found if match}

    def history(self) -> list[dict[str, object]]:
        file = self.folder / "output/rounds.json"
        return json.loads(file.read_text()) if file.exists() else []


OTHER_ROSTER = "expected 'pinned 4 "
ON_NO_ROSTER = "signed by no member of the pinned roster"


@pytest.mark.slow
def test_the_smallest_roster_sums_bit_for_bit_and_names_who_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    words = [*SETTINGS, f"clients={MEMBERS + 1}", f"rounds={ROUNDS}"]
    assert main(["federate", "deploy", str(folder), *words]) == 0
    (folder / "federated_app/client_app.py").write_text(UNLISTED_APP)
    with network(folder, Pinned) as net:
        assert isinstance(net, Pinned)
        net.enrol()
        net.superlink()
        for number in range(MEMBERS + 1):
            net.register(number)
        net.member(0)
        net.member(1)
        net.member(2, state="other")
        net.run()
        wait("a node of another roster", lambda: bool(net.refused(OTHER_ROSTER)), PATIENCE)
        assert not any(entry["merged"] for entry in net.history()), "of three none may be away"
        net.stop("node2")
        net.member(2)
        net.member(UNLISTED, state="unlisted")
        wait("a node on no roster", lambda: bool(net.refused(ON_NO_ROSTER)), PATIENCE)
        wait("the last round", lambda: net.rounds() == ROUNDS, PATIENCE)
        parts = summed(folder)
        assert parts.keys() == set(range(MEMBERS))
        assert min(parts.values()) > 0, parts
        check_is_sum_of(folder, parts, clients_data(MEMBERS + 1, ROUNDS))
        assert sum(entry["merged"] for entry in net.history()) >= MEMBERS
        named = " ".join(str(entry["named"]) for entry in net.history())
        assert all(f"client {node}: its keys are {ON_NO_ROSTER}" in named
                   for node in net.refused(ON_NO_ROSTER))  # fmt: skip
        assert len(net.refused(OTHER_ROSTER)) == len(net.refused(ON_NO_ROSTER)) == 1
