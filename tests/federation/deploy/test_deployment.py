"""A deployment as its README describes it, with processes that die."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from protocl import PrototypeMemory
from protocl.cli.main import main
from protocl.data import BenchmarkConfig, load_data
from protocl.errors import ConfigError
from protocl.federation.client.benchmark_clients import BenchmarkClients
from protocl.federation.client.partition import PartitionConfig
from protocl.federation.config.compose import compose, settle_short
from protocl.federation.deploy import server_loop as server
from protocl.federation.deploy.places import HOME
from protocl.federation.deploy.scaffold import write_deployment
from protocl.federation.deploy.server_loop import RUN_CONFIG, serve
from protocl.federation.exactly_once.server import name_of_life
from protocl.federation.server.state import same_statistics
from protocl.federation.server.strategy import FederatedPrototypes
from protocl.federation.wire.compat import ENVIRONMENT
from protocl.federation.wire.traffic import Ledger
from protocl.io.checkpoint import CheckpointFolder
from protocl.runner.folders import exclusive

BIN = Path(sys.executable).parent
PROTOTYPES = settle_short(
    ["partition=iid", "partition.growth=samples", "rounds=10", "seed=0", "evaluate=1"]
)[0]
"""Parts of the data arrive over ten rounds."""


def prototypes(output: Path) -> FederatedPrototypes:
    return FederatedPrototypes(PrototypeMemory(2, exact=True), checkpoints=output / "checkpoint")


def test_the_app_declares_every_key_of_its_configuration(tmp_path):
    write_deployment(tmp_path / "app", PROTOTYPES)
    project = tomllib.loads((tmp_path / "app/pyproject.toml").read_text())
    declared = project["tool"]["flwr"]["app"]["config"]
    assert declared == {
        **RUN_CONFIG,
        "rounds": 10,
        "parts": 10,
        "output": "output",
        "client-state": "clients",
        "method": asdict(compose(PROTOTYPES).method) | {"head": {"name": "nearest_mean"}},
        "benchmark": {"name": "digits"},
        "backbone": {"name": "identity"},
        "partition": {"name": "iid", "growth": "samples"},
    }
    for name in project["tool"]["flwr"]["app"]["components"].values():
        assert (tmp_path / "app" / (name.partition(":")[0].replace(".", "/") + ".py")).is_file()


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        write_deployment(tmp_path, PROTOTYPES)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_test_keys_are_made(tmp_path):
    folder = tmp_path / "app"
    write_deployment(folder, PROTOTYPES)
    subprocess.run([folder / "make_test_keys.sh", "2"], check=True, capture_output=True)
    keys = {path.name for path in (folder / "keys").iterdir()}
    assert {"ca.crt", "server.pem", "server.key", "node0", "node0.pub", "node1.pub"} <= keys
    check = ["openssl", "verify", "-CAfile", "keys/ca.crt", "keys/server.pem"]
    assert subprocess.run(check, cwd=folder, check=False, capture_output=True).returncode == 0


def test_the_server_needs_an_absolute_output(monkeypatch):
    monkeypatch.delenv(HOME, raising=False)
    with pytest.raises(ConfigError, match="absolute folder"):
        serve(None, prototypes(Path("here")), {"output": "here"})  # type: ignore[arg-type]


def test_one_server_at_a_time_writes_to_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_PATIENCE", 0.0)
    values = {"output": str(tmp_path / "server"), "rounds": 0}
    strategy = prototypes(tmp_path / "server")
    serve(None, strategy, values)  # type: ignore[arg-type]
    assert strategy.round == 0
    with exclusive(tmp_path / "server"), pytest.raises(ConfigError, match="in use by another"):
        serve(None, strategy, values)  # type: ignore[arg-type]


def test_a_server_waits_for_the_one_before_to_end(tmp_path):
    """As when a SuperLink is restarted: the ServerApp of the run before has a last message."""
    output = tmp_path / "server"
    output.mkdir()
    hold = "import sys; from pathlib import Path; from protocl.runner.folders import exclusive\n"
    hold += "with exclusive(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as before:
        assert before.stdout.readline() == b"held\n"
        threading.Timer(1.0, before.stdin.close).start()
        strategy = prototypes(output)
        serve(None, strategy, {"output": str(output), "rounds": 0})  # type: ignore[arg-type]
        assert before.stdin.closed
    assert strategy.round == 0


# -- real processes -----------------------------------------------------------------------------

NODES, ROUNDS = 4, 10
STRANGER = NODES  # a node that has a key, which nobody registered


def command_of(folder: Path, beginning: str) -> list[str]:
    """The words of the command that the deployment's README gives for a network."""
    text = (folder / "README.md").read_text().partition("## Over a network")[2]
    lines = text.replace("\\\n", " ").splitlines()
    (found,) = [line for line in lines if re.match(rf"    {beginning}(?![\w/.-])", line)]
    return shlex.split(found, comments=True)


class Network:
    """A SuperLink and SuperNodes on loopback, each a process group that is ended with the test.

    All that is run are the commands of the README, with other ports and numbers of nodes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, *self.node_ports = free_ports(2 + NODES)
        connections = folder / "flower/config.toml"
        connections.write_text(re.sub(r"127.0.0.1:\d+", f"127.0.0.1:{self.port}",
                                      connections.read_text()))  # fmt: skip
        self.environment = {
            **os.environ,
            **ENVIRONMENT,
            "FLWR_HOME": str(folder / "flower"),
            HOME: str(folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

        self.once("./make_test_keys.sh", str(NODES + 1), "127.0.0.1")

    def start(self, name: str, words: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]], cwd=self.folder, env=self.environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def once(self, *words: str) -> str:
        done = self.call(*words)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=self.folder, env=self.environment,
                              capture_output=True, text=True, check=False)  # fmt: skip

    def says(self, *words: str) -> bool:
        """Whether ``protocl`` ends well."""
        return self.call("protocl", *words).returncode == 0

    def superlink(self) -> None:
        words = command_of(self.folder, "flower-superlink")
        words[words.index("--port") + 1] = str(self.port)
        self.start("superlink", [*words, "--host", "127.0.0.1"])
        wait("the SuperLink's port", lambda: is_open(self.port), 300)

    def register(self, number: int) -> None:
        words = command_of(self.folder, "flwr supernode register keys/node0.pub")
        self.once(*(word.replace("node0", f"node{number}") for word in words))

    def supernode(self, number: int, config: str = "") -> None:
        words = command_of(self.folder, "flower-supernode .* keys/node0 .*")
        words[words.index("--superlink") + 1] = f"127.0.0.1:{self.port}"
        words[words.index("--port") + 1] = str(self.node_ports[number])
        config = config or f"partition-id={number} num-partitions={NODES}"
        words[words.index("--node-config") + 1] = config
        self.start(f"node{number}", [word.replace("node0", f"node{number}") for word in words])

    def run(self, config: str = f"rounds={ROUNDS} quorum=0.6 grace=2.0 evaluate=0.0") -> None:
        config += " min-clients=3 deadline=120.0"
        words = [w for w in command_of(self.folder, "flwr run") if w != "--stream"]
        self.once(*words, "--run-config", config)

    def begin(self, *config: str) -> None:
        """Four nodes are registered; three of them and the stranger are there, and a round ends."""
        self.superlink()
        for number in range(NODES):
            self.register(number)
        for number in (0, 1, 2, STRANGER):
            self.supernode(number)
        self.run(*config)
        wait("the first round", lambda: self.rounds() >= 1, 900)

    def kill(self, name: str) -> None:
        """SIGKILL to the whole group: as if the machine lost its power."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, name: str) -> None:
        """As an operator does: the SuperLink knows, and takes the node back at once."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait(60)

    def rounds(self) -> int:
        file = self.folder / "output/rounds.json"
        return len(json.loads(file.read_text())) if file.exists() else 0

    def log(self) -> str:
        return "\n".join(
            f"== {file.name}\n{file.read_text()[-1500:]}" for file in self.folder.glob("*.log")
        )


@contextmanager
def network(folder: Path, kind: type[Network] = Network) -> Iterator[Network]:
    net = kind(folder)
    try:
        yield net
    except AssertionError as error:
        raise AssertionError(f"{error}\n{net.log()}") from error
    finally:
        for name in list(net.processes):
            net.kill(name)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def wait(what: str, condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.3)


def epochs(folder: Path) -> dict[str, int]:
    """The lives of each client's state on disk -> its partition."""
    found = {}
    for file in (folder / "clients").glob("*.safetensors"):
        with safe_open(file, framework="pt") as state:
            life = json.loads(state.metadata()["state"])
        partition = int(re.sub(r"\D", "", file.stem))
        lives = map(name_of_life, (life["epoch"], *life["replaces"]))
        found |= dict.fromkeys(lives, partition)
    return found


def clients_data(clients: int = NODES, rounds: int = ROUNDS) -> BenchmarkClients:
    """What the app's ``task.py`` shares out; in as many parts as there are rounds at most."""
    data = load_data(BenchmarkConfig(name="digits"))
    flat = data.with_samples(data.x_train.flatten(1), data.x_test.flatten(1))
    return BenchmarkClients.from_config(
        flat, PartitionConfig("iid", growth="samples"), clients=clients, rounds=rounds, seed=0
    )


def expected(folder: Path, like: PrototypeMemory) -> PrototypeMemory:
    """The sum over the data chunks that the ledger says were accepted, in one update."""
    clients = clients_data()
    owner = epochs(folder)
    samples = dict.fromkeys(range(NODES), 0)
    for entry in Ledger.load(folder / "output/ledger.jsonl"):
        if entry.outcome == "merged":
            partition = owner[entry.epoch]
            samples[partition] *= entry.kind != "full"  # which replaces what was sent before
            samples[partition] += sum(entry.counts)
    assert min(samples.values()) > 0, f"a client contributed nothing: {samples}"
    rows = torch.cat([first_rows(clients.parts[p], count) for p, count in samples.items()])
    return like.empty_like().update(clients.data.x_train[rows], clients.data.y_train[rows])


def first_rows(chunks, count: int) -> torch.Tensor:
    """The chunks that together have ``count`` samples."""
    sizes = [len(chunk) for chunk in chunks]
    (n,) = [n for n in range(1, len(chunks) + 1) if sum(sizes[:n]) == count]
    return torch.cat([torch.from_numpy(chunk) for chunk in chunks[:n]])


@pytest.mark.slow
def test_nodes_and_superlink_die_and_the_sum_stays_exact(tmp_path):
    folder = tmp_path / "app"
    write_deployment(folder, PROTOTYPES)
    with network(folder) as net:
        net.begin()
        net.kill("node1")
        net.supernode(3)
        wait("the fourth node's state", lambda: 3 in epochs(folder).values(), 900)
        net.kill("superlink")
        before = net.rounds()
        assert 1 <= before < ROUNDS, "the SuperLink was to die in the middle of the run"
        net.superlink()
        net.run()
        wait("the last round", lambda: net.rounds() == ROUNDS, 1800)
        memory = PrototypeMemory.load(folder / "output/memory.safetensors")
        assert same_statistics(memory, expected(folder, memory))
        assert STRANGER not in epochs(folder).values()


@pytest.mark.slow
def test_a_restored_backup_and_a_restored_client_are_counted_once(tmp_path):
    """Both forget what they told each other, and nobody is asked to mend it."""
    folder, clients = tmp_path / "app", tmp_path / "app/clients"
    write_deployment(folder, PROTOTYPES)
    with network(folder) as net:
        net.begin()
        net.supernode(3)
        wait("all clients", lambda: set(epochs(folder).values()) == {0, 1, 2, 3}, 900)
        net.once("protocl", "federate", "backup", "output", "books.backup")  # while it runs
        shutil.copytree(clients, tmp_path / "snapshot")
        before = net.rounds()
        wait("two more rounds", lambda: net.rounds() >= before + 2, 900)
        net.stop("node1")
        net.kill("superlink")
        assert net.rounds() < ROUNDS, "the SuperLink was to die in the middle of the run"
        wait("the books", lambda: net.says("federate", "restore", "output", "books.backup"), 300)
        for file in (tmp_path / "snapshot").glob("partition-1.*"):
            shutil.copy(file, clients / file.name)
        net.superlink()
        net.supernode(1)
        net.run()
        wait("the last round", lambda: net.rounds() == ROUNDS, 1800)
        memory = PrototypeMemory.load(folder / "output/memory.safetensors")
        assert same_statistics(memory, expected(folder, memory))
        ledger = Ledger.load(folder / "output/ledger.jsonl")
        later = {e.epoch for e in ledger if e.outcome == "merged" and e.round > before}
        assert {epochs(folder)[epoch] for epoch in later} == {0, 1, 2, 3}
        assert net.says("federate", "audit", "output")


def summed(folder: Path) -> dict[int, int]:
    """Partition -> how many parts of its data the server's secure sum holds."""
    state = CheckpointFolder(folder / "output/checkpoint").load_newest({})
    assert state is not None
    found = {}
    for file in (folder / "clients").glob("*.offer.safetensors"):
        with safe_open(file, framework="pt") as offer:
            client = json.loads(offer.metadata()["state"])["client"]
        node = state["summed"].nodes.get(client)
        found[int(re.sub(r"\D", "", file.stem))] = state["summed"].of(node)
    return found


def check_is_sum_of(folder: Path, parts: dict[int, int], clients: BenchmarkClients) -> None:
    """The server's memory is that of these parts, bit for bit."""
    chunks = [chunk for p, count in parts.items() for chunk in clients.parts[p][:count]]
    rows = torch.cat([torch.from_numpy(chunk) for chunk in chunks])
    memory = PrototypeMemory.load(folder / "output/memory.safetensors")
    plain = memory.empty_like().update(clients.data.x_train[rows], clients.data.y_train[rows])
    assert same_statistics(memory, plain)


@pytest.mark.slow
def test_nodes_and_superlink_die_and_secure_sums_stay_exact(tmp_path):
    """The server knows no terms of its sums, and a node that comes back is counted once."""
    folder, config = tmp_path / "app", "rounds=4 quorum=0.75 grace=10.0"
    write_deployment(folder, PROTOTYPES | {"method": "protected"})
    with network(folder) as net:
        net.begin(config)
        net.kill("node1")
        net.supernode(3)
        wait("the second round", lambda: net.rounds() >= 2, 900)
        net.kill("superlink")
        assert net.rounds() < 4, "the SuperLink was to die in the middle of the run"
        net.superlink()
        net.supernode(1)
        net.run(config)
        wait("the last round", lambda: net.rounds() == 4, 1800)
        parts = summed(folder)
        assert STRANGER not in parts
        assert min(parts[number] for number in (0, 2, 3)) > 0, parts
        check_is_sum_of(folder, parts, clients_data())


HOSTILE = 2
HOSTILE_APP = f"""
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.clientapp import ClientApp

from protocl.federation.deploy.apps import client_app

from .task import new_task

honest = client_app(new_task)


def evaluated_for_gigabytes():
    header = b"-" * 9000 + b"1"
    data = b"\\x93NUMPY\\x01\\x00" + len(header).to_bytes(2, "little") + header
    return Array("float64", (1,), "numpy.ndarray", data)


class Hostile(ClientApp):
    def __call__(self, message, context):
        reply = honest(message, context)
        if context.node_config["partition-id"] != {HOSTILE}:
            return reply
        attack = int(message.metadata.group_id) % 4
        if attack == 0 and "arrays-0" in reply.content:
            reply.content["arrays-0"]["sum"] = evaluated_for_gigabytes()
        elif attack == 1:
            reply.metadata.__dict__["_group_id"] = "x"
        elif attack == 2:
            reply.content = RecordDict({{"arrays-0": ConfigRecord({{"x": 2**63 - 1}})}})
        elif "header-0" in reply.content:
            reply.content["header-0"] = ConfigRecord({{"epoch": ["x"], "seq": -1}})
        return reply


app = Hostile()
"""


@pytest.mark.slow
def test_a_hostile_node_ends_no_run(tmp_path):
    folder = tmp_path / "app"
    write_deployment(folder, PROTOTYPES)
    (folder / "federated_app/client_app.py").write_text(HOSTILE_APP)
    with network(folder) as net:
        net.begin("rounds=6 quorum=1.0 grace=2.0 evaluate=0.0")
        net.supernode(3)
        wait("the last round", lambda: net.rounds() == 6, 1800)
        memory = PrototypeMemory.load(folder / "output/memory.safetensors")
        assert same_statistics(memory, expected(folder, memory))
        ledger = Ledger.load(folder / "output/ledger.jsonl")
        refused = {entry.client for entry in ledger if entry.outcome == "rejected"}
        assert len(refused) == 1, "by name"
        assert set(ledger.reasons()) >= {"format", "shape"}


@pytest.mark.slow
def test_two_nodes_end_where_the_simulation_of_the_same_settings_does(tmp_path):
    """Nothing is typed twice: what was simulated is deployed by its own ``config.yaml``."""
    words = ["clients=2", "rounds=2", "partition=dirichlet", "partition.alpha=0.5", "seed=3"]
    words += ["partition.growth=samples", "method.head=lda", f"output={tmp_path / 'runs'}"]
    assert main(["federate", *words]) == 0
    (run,) = (tmp_path / "runs").glob("*/*/config.yaml")
    folder = tmp_path / "the app"
    assert main(["federate", "deploy", str(folder), f"federation={run}"]) == 0
    with network(folder) as net:
        net.superlink()
        for number in (0, 1):
            net.register(number)
            net.supernode(number, f"partition-id={number}")
        words = [w for w in command_of(folder, "flwr run") if w != "--stream"]
        net.once(*words, "--run-config", "min-clients=2 deadline=300.0")
        wait("the last round", lambda: net.rounds() == 2, 1200)
        memory = PrototypeMemory.load(folder / "output/memory.safetensors")
        assert same_statistics(
            memory, PrototypeMemory.load(run.parent / "model/memory.safetensors")
        )
        entries = [e for e in Ledger.load(folder / "output/ledger.jsonl") if e.outcome == "merged"]
        assert sum(sum(entry.counts) for entry in entries) == memory.total
