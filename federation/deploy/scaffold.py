"""The files of a federation over a network: an app for ``flwr run``, keys and instructions."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from protocl.config.arguments import Settings
from protocl.errors import ConfigError
from protocl.federation.config import FederateConfig
from protocl.federation.config.compose import compose, require_deployable
from protocl.federation.deploy.places import HOME
from protocl.federation.deploy.server_loop import RUN_CONFIG
from protocl.federation.deploy.settings import ROUNDS, stated, to_toml
from protocl.federation.edges.limits import share_of
from protocl.federation.edges.root import require_addable
from protocl.federation.wire.compat import ENVIRONMENT
from protocl.io.atomic import atomic_write

PORT = 8000
_PACKAGE = "federated_app"

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "federated-app"
version = "1.0.0"
description = "Federated prototypes"
license = "MIT"
dependencies = ["flwr>=1.41,<2"]  # protocl is installed on every node beforehand

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "me"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

# Overridden by: flwr run . NAME --run-config "rounds=10 method.head.name='lda'"
[tool.flwr.app.config]
{config}
# Below the folder of each machine (environment.sh), or absolute. On the server: memory, ledger and
# checkpoints of all runs. On every node, unless its --node-config has state="/a/folder": what it
# must not lose.
output = "output"
client-state = "clients"

# Keys of `protocl federate`: those of the method, and of the rest what was chosen. Lists, null and
# the like are texts, as they would be typed.
{tables}
"""

_CONNECTIONS = """\
[superlink]
default = "insecure"

[superlink.insecure]
address = "127.0.0.1:{port}"
insecure = true

[superlink.tls]
address = "127.0.0.1:{port}"
root-certificates = {certificate}

[superlink.simulation]
address = ":local:"
"""

_ENVIRONMENT = """\
# Source this in every shell, in this folder: . ./environment.sh
[ -f ./environment.sh ] || echo "environment.sh: source it in its own folder" >&2
# Where this machine keeps its files of the federation.
export {home}="$PWD"
export FLWR_HOME="${home}/flower"
# No telemetry, no update checks, no packages installed behind your back.
{exports}
"""

_KEYS = """\
#!/bin/bash
# Certificates and node keys FOR TESTS, in ./keys: throw-away, unencrypted, valid for 30 days.
# Usage: ./make_test_keys.sh [number of nodes] [host name or IP of the SuperLink]
set -euo pipefail
cd "$(dirname "$0")"
nodes=${1:-3} host=${2:-127.0.0.1}
mkdir -p keys && chmod 700 keys && cd keys
case $host in *[!0-9.]*) name=DNS:$host ;; *) name=IP:$host ;; esac
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -keyout ca.key -out ca.crt \\
  -subj "/CN=federation test CA" 2>/dev/null
openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj "/CN=$host" 2>/dev/null
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \\
  -out server.pem -extfile <(echo "subjectAltName=DNS:localhost,IP:127.0.0.1,$name") 2>/dev/null
for ((i = 0; i < nodes; i++)); do  # Flower takes NIST curves only
  rm -f "node$i" "node$i.pub"
  ssh-keygen -q -t ecdsa -b 384 -N "" -C "node$i" -f "node$i"
done
echo "wrote certificates and $nodes node keys to $PWD"
"""

_README = """\
# A federation of prototype memories

Every node runs `{package}/client_app.py` on its own data; the server adds up what they send.
The settings in `pyproject.toml` are those of the simulation: each node takes its part of the
benchmark. For data of your own edit `{package}/task.py`. protocl must be installed on all machines;
the app itself is sent to them by `flwr run`.

In every shell, in this folder:

    . ./environment.sh

A machine that only runs a node needs a folder of its own with a copy of `environment.sh` in it, and
of the certificate. No path of another machine is in what it is sent: `output`, `client-state` and
relative paths of settings lie below this folder (`{home}`). A node's own data can be elsewhere:
`--node-config "partition-id=0 benchmark-path='/data/mine.npz'"`.

The benchmark is dealt out to {clients} clients: start nodes with `partition-id` 0 to {clients} - 1,
or give `num-partitions` beside it.

Each of the three ways below goes on from what the folders `output` and `clients` hold. To begin
anew, remove both; to go on, raise `rounds` in `pyproject.toml`.

## On one machine, simulated (needs `pip install 'flwr[simulation]'`)

    flwr run . simulation --stream \\
      --federation-config "num-supernodes=3 client-resources-num-cpus=1" \\
      --run-config "min-clients=3"

Nodes come up one after another; a round begins with `min-clients` of them. This command starts a
SuperLink on port 39091, which stays up. Flower gives it 15 seconds; on a slow machine start it
before, in a shell of its own:

    flower-superlink --insecure --simulation --host 127.0.0.1 --port 39091

## On one machine, as real processes

    flower-superlink --insecure --host 127.0.0.1 --port {port} --database superlink.db
    flower-supernode --insecure --superlink 127.0.0.1:{port} --port 9094 \\
      --node-config "partition-id=0"
    flower-supernode --insecure --superlink 127.0.0.1:{port} --port 9095 \\
      --node-config "partition-id=1"
    flwr run . insecure --stream

`--port` of a SuperNode is its own and must differ between nodes of one machine.

## Over a network: TLS, and nodes with keys

    ./make_test_keys.sh 2 127.0.0.1     # or your own CA; give the SuperLink's name or address
    flower-superlink --ssl-ca-certfile keys/ca.crt --ssl-certfile keys/server.pem \\
      --ssl-keyfile keys/server.key --enable-supernode-auth --port {port} --database superlink.db
    flwr supernode register keys/node0.pub tls
    flwr supernode register keys/node1.pub tls
    flower-supernode --superlink 127.0.0.1:{port} --root-certificates keys/ca.crt \\
      --auth-supernode-private-key keys/node0 --port 9094 \\
      --node-config "partition-id=0"
    flower-supernode --superlink 127.0.0.1:{port} --root-certificates keys/ca.crt \\
      --auth-supernode-private-key keys/node1 --port 9095 \\
      --node-config "partition-id=1"
    flwr run . tls --stream

A node whose key is not registered is refused. The address is in `flower/config.toml`.

## When something fails

- `Runtime task-token authentication failed` on a node: its ClientApp needed longer to start than
  Flower waits, about a minute; the machine is too busy.
- A node that dies is left out after a minute; with `quorum=0.5` a round does not wait for it. Start
  it again with the same `client-state` folder: it goes on, nothing is counted twice. Before that
  minute is over Flower says `Failed to activate SuperNode`: try again.
- If the SuperLink is restarted, Flower marks the run in progress as failed. Start `flwr run` again:
  it continues after the last round saved in `output`, once the ServerApp of that run has ended,
  which may live on for some seconds.
- `output` holds `memory.safetensors`, `rounds.json`, `traffic.csv`, and with methods that know
  what each client sent `ledger.jsonl` (this and `traffic.csv` when a run begins and ends). What the
  server must not lose is in `output/checkpoint`: `protocl federate backup`, `restore`, `audit` and
  `forget` take `output`. Keep its `keys.sqlite` apart from backups.
"""

_TREE = """\
# A tree of servers

`root` adds up what the edges ({edges}) send; each edge adds up what its nodes send. Each folder is
a deployment of its own, with its own SuperLink, as its README.md says; copy it to the machine that
it is for. Ports differ, so that all can run on one machine.

1. In `root`: start the SuperLink. Its nodes are the edges: make a key for each, register it, and
   carry it to the machine of the edge with `keys/ca.crt`.
2. In each edge: start its SuperLink and its nodes, and `flwr run . tls`. Beside them, in the same
   folder, the node by which the edge speaks to the root:

       flower-supernode --superlink ROOT:{port} --root-certificates ROOT-ca.crt \\
         --auth-supernode-private-key ROOT-node0 --port 9194 \\
         --node-config "edge-output='output'"

3. In `root`: `flwr run . tls`. A round asks the edges what they have; what an edge has not sent
   since is asked for in the next one. Give the root as many `rounds` as the edges need time for.

The benchmark is dealt out over all edges: {shares}. Give the nodes of an edge these numbers as
`partition-id`, and `num-partitions={clients}`.

## A client that moves to another edge

Each edge signs releases with `output/edge.key`. Write the public keys of all (`output/edge.pub`)
into one file `edges.json`, {{"edge-0": "KEY", ...}}, and put it into the `output` of each edge.
Then, on the old edge, with the client's name in `ledger.jsonl`:

    protocl federate release output client=NAME to=edge-1

Once the root is without it, `output/releases/NAME.release.json` is there. Stop the node, put that
file beside its state as `client-state/partition-0.release.json` (the name of the state), and start
it at the SuperLink of the new edge. Without the file it is told where it is counted, and sends
nothing.

## When something fails

- An edge that dies is left out; what it sent stays in the root's sum. It goes on with its folder.
- An edge that is restored from a backup leaves out who was forgotten or left since, as long as it
  has its `output/checkpoint/forgotten.jsonl`.
- Without `output/above.json` an edge is known to the root by its node's key.
"""

_PROTECTED = """
## Protected sums

- A secure sum needs three nodes or more: start a third one in the ways above. As many as may
  collude (`method.colluders`), and two more, must have something new; else the round waits.
- All nodes must have the same `method` settings. `epsilon` and `delta` hold for a sample over all
  rounds and runs, as a node repeats what it has offered before it offers anything else. What it
  offered is in `client-state`. A node that loses it releases its samples once more.
- Keep the server's `output`. Without it nodes give nothing that was in a secure sum into another,
  since two sums tell by their difference what single nodes sent; a new server learns what is new.
- If the shares of a sum do not come, the next ten rounds ask for them again, then what is in it is
  lost: `lost` in `rounds.json`. `client-state` holds the secrets that a node needs for it.
- The secure sum hides what a node sends from a server that keeps to the protocol. But the app that
  does it comes from whoever starts `flwr run`: a node that does not trust them must read it before.
- `method.secure=pinned` is for a server that may lie. On each node, before the first run:
  `protocl federate identity CLIENT-STATE NAME`, where NAME is the node's `name` in its
  `--node-config`, or `partition-0` and so on. It prints a public key. Write those of all nodes, at
  most 128, into one file `roster.json` (`{"NAME": "KEY", ...}`), carry it to every node by another
  way than through the server, and put it into each node's `client-state` and the server's `output`.
  Of `n` nodes `floor(2 n / 3) + 1` must be there and stay: of three all, of six five. A node with a
  roster refuses to run with another `method.secure`.
- Nodes do not evaluate. Give them `output/memory.safetensors` to classify with.
"""


def write_deployment(folder: Path, settings: Settings) -> list[Path]:
    """Write a ready-to-edit deployment of a simulation to ``folder``.

    Args:
        folder: made here.
        settings: of the simulation, as :func:`protocl.federation.config.compose.settle_short` gives
            them. Of how rounds are conducted only what they say is taken, for nodes come and go.

    Returns:
        The files written.

    Raises:
        ConfigError: the folder exists and is not empty, the method cannot be deployed, or a setting
            is a path of this machine.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; give a folder that does not exist")
    config = compose(settings)
    require_deployable(config.method)
    if config.federation.edges:
        return _write_tree(folder, config, settings)
    return _write_app(folder, config, _run_config(config, settings), PORT)


def _write_tree(folder: Path, config: FederateConfig, settings: Settings) -> list[Path]:
    """A folder for the root, one for each edge, and how they belong together."""
    edges, clients = config.federation.edges, config.federation.clients
    require_addable(config.method, edges)
    usual = _run_config(config, settings)
    above = {"edges": edges, "evaluate": 0.0, "min-clients": edges}
    written = _write_app(folder / "root", config, usual | above, PORT)
    for number in range(edges):
        name, port = f"edge-{number}", PORT + 10 * (number + 1)
        written += _write_app(folder / name, config, usual | {"edge": name}, port)
    shares = (share_of(number, edges, clients) for number in range(edges))
    text = _TREE.format(
        edges=", ".join(f"`edge-{number}`" for number in range(edges)), port=PORT, clients=clients,
        shares=", ".join(f"{share.start} to {share.stop - 1}" for share in shares),
    )  # fmt: skip
    atomic_write(folder / "README.md", text)
    return [*written, folder / "README.md"]


def _write_app(
    folder: Path, config: FederateConfig, run_config: dict[str, Any], port: int
) -> list[Path]:
    """A SuperLink's app with its keys and instructions."""
    contents = {
        "pyproject.toml": _project(config, run_config),
        "flower/config.toml": _CONNECTIONS.format(
            port=port, certificate=json.dumps(str(folder / "keys" / "ca.crt"))
        ),
        "environment.sh": _environment(),
        "make_test_keys.sh": _KEYS,
        "README.md": _README.format(
            port=port, package=_PACKAGE, home=HOME, clients=config.federation.clients
        )
        + (_PROTECTED if config.method.name == "protected" else ""),
        ".gitignore": "keys/\noutput/\nclients/\nflower/\n*.db*\n",
    }
    for name in ("__init__.py", "task.py", "client_app.py", "server_app.py"):
        source = files("protocl.federation.deploy.template") / name
        contents[f"{_PACKAGE}/{name}"] = source.read_text(encoding="utf-8")
    for name, text in contents.items():
        atomic_write(folder / name, text)
    (folder / "make_test_keys.sh").chmod(0o755)
    return [folder / name for name in contents]


def _project(config: FederateConfig, run_config: dict[str, Any]) -> str:
    tables = "\n\n".join(
        f"[tool.flwr.app.config.{section}]\n{to_toml(values)}"
        for section, values in stated(config).items()
        if values
    )
    return _PROJECT.format(package=_PACKAGE, config=to_toml(run_config), tables=tables)


def _run_config(config: FederateConfig, settings: Settings) -> dict[str, Any]:
    """How rounds are conducted: as the settings say, else as suits nodes that come and go."""
    federation = asdict(config.federation)
    asked = {
        key: federation[name.removeprefix("federation.")]
        for key, name in ROUNDS.items()
        if name in settings or key == "rounds"
    }
    dealt = {"clients": federation["clients"], "parts": federation["rounds"], "seed": config.seed}
    return {**RUN_CONFIG, **asked, **dealt}


def _environment() -> str:
    exports = "\n".join(f"export {name}={value}" for name, value in ENVIRONMENT.items())
    return _ENVIRONMENT.format(exports=exports, home=HOME)
