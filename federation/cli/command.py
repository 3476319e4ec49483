"""The command ``protocl federate``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from protocl.cli.arguments import Commands, add_settings_command
from protocl.lazy import first_imports

_HELP = """\
Federate: clients exchange statistics of their classes instead of gradients or samples.

Settings are KEY=VALUE. federation=NAME reads a preset; three groups pick parts:
  benchmark=NAME  backbone=NAME
  method=prototypes|robust|protected|fedavg|fedavg_prototypes|fedproto
Clients and rounds:  clients=100 rounds=5 participation=0.5 evaluate=0.1 lost=0.2 late=0.1
Who holds what:      partition=classes|dirichlet|iid|file|flwr  partition.alpha=0.1
                     partition.classes_per_client=2 partition.growth=none|samples|classes|stream
What is exchanged:   method.head=lda  method.precision=float16  method.exact=true
                     method.distribute=true (the backbone too)
What one may send:   limits.max_bytes=1000000  limits.classes=[0,1,2]  limits.max_count=5000
How it is protected: method=protected method.secure=true|pinned|graph method.noise=distributed
Other keys:          seed=1,2,3  name=NAME  output=runs  jobs=2  resume=true  engine=in_process|ray
                     verify=true (compare with all samples in one place)
A comma makes a sweep.
"""

_EXAMPLES = """\
examples:
  protocl federate federation=digits clients=10 rounds=5 participation=0.5
  protocl federate federation=digits method.head=nearest_mean,lda seed=1,2,3
  protocl federate federation=digits --show            all keys with their values
  protocl federate deploy my-federation                files for a SuperLink and SuperNodes
  protocl federate deploy my-federation method=protected method.noise=distributed
  protocl federate deploy my-federation federation=runs/.../config.yaml      what was simulated
  protocl federate identity clients hospital-1         a key for method.secure=pinned
  protocl federate deploy my-tree federation.edges=2   a root, two edges and their nodes
  protocl federate release output client=7 to=edge-1   let a client go to another edge
  protocl federate block output node=7                 ask a node no more, and read nothing of it
  protocl federate forget my-federation/output client=NAME   or class=NAME, also while it runs
  protocl federate audit my-federation/output          recompute the ledger's chain and the sum
  protocl federate audit root/output edge-0/output edge-1/output     and what the edges sum to
  protocl federate certificates edge-0/output          what was forgotten, and what is pending where
  protocl federate backup my-federation/output FILE    while the server runs; restore brings it back

Each run writes OUTPUT/NAME/TIME-SEED/: config.yaml, result.json, TensorBoard events, plots, the
merged memory, the ledger of contributions and the bytes of every message.
"""


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of ``protocl``."""
    add_settings_command(
        commands,
        common,
        "federate",
        federate,
        summary="run a federation of clients, or write files to deploy one",
        description=_HELP,
        examples=_EXAMPLES,
        settings="see above; or: deploy FOLDER [KEY=VALUE ...]; or: identity FOLDER NAME; "
        "or: release FOLDER client=NAME to=EDGE; or: block|unblock FOLDER node=NAME; "
        "or: audit, certificates, backup, restore, forget FOLDER ...",
    )


def federate(args: argparse.Namespace) -> int:
    """Run what ``args.settings`` asks for; the exit code."""
    from protocl.federation.cli import books

    word, *more = args.settings
    command = _COMMANDS.get(word) or books.COMMANDS.get(word)
    if command is not None:
        return command(more)
    with first_imports():
        from protocl.cli.sweep import run_command
        from protocl.federation.runner.run import FEDERATION

    return run_command(FEDERATION, args)


def _identity(words: list[str]) -> int:
    from rich.console import Console

    from protocl.errors import ConfigError
    from protocl.federation.secure.identities import write_identity

    if len(words) != 2 or any("=" in word for word in words):
        raise ConfigError(
            f"protocl federate identity {' '.join(words)}: give the folder of what the node must "
            "not lose (client-state), and the name of the node"
        )
    key = write_identity(Path(words[0]), words[1])
    Console().print(f'for roster.json of all: "{words[1]}": "{key}"', soft_wrap=True)
    return 0


def _release(words: list[str]) -> int:
    from rich.console import Console

    from protocl.errors import ConfigError
    from protocl.federation.cli.forget import let_go

    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if len(words) != 3 or given.keys() != {"client", "to"} or not all(given.values()):
        raise ConfigError(
            f"protocl federate release {' '.join(words)}: give the folder output of the edge, "
            "client=NAME as its ledger.jsonl has it, and to=EDGE"
        )
    for line in let_go(Path(words[0]), given["client"], given["to"]):
        Console().print(line, soft_wrap=True, markup=False)
    return 0


def _block(words: list[str], *, blocked: bool) -> int:
    from rich.console import Console

    from protocl.errors import ConfigError
    from protocl.federation.operations.blocking import BlockList

    if len(words) != 2 or not words[1].startswith("node=") or words[1] == "node=":
        raise ConfigError(
            f"protocl federate {'block' if blocked else 'unblock'} {' '.join(words)}: give the "
            "folder output of the server, and node=NAME as traffic.csv has it"
        )
    names = BlockList(Path(words[0])).change(words[1].partition("=")[2], blocked=blocked)
    text = f"blocked now: {', '.join(sorted(names)) or 'none'}"
    Console().print(text, soft_wrap=True, markup=False)
    return 0


def _deploy(words: list[str]) -> int:
    from rich.console import Console

    from protocl.errors import ConfigError
    from protocl.federation.config.compose import settle_short
    from protocl.federation.deploy.scaffold import write_deployment

    if not words or "=" in words[0]:
        raise ConfigError("protocl federate deploy FOLDER: give a folder, which must not exist")
    folder, runs = Path(words[0]), settle_short(words[1:])
    if len(runs) > 1:
        raise ConfigError(f"{' '.join(words[1:])}: a deployment is one run, not a sweep")
    files = write_deployment(folder, runs[0])
    console = Console()
    for file in files:
        console.print(f"wrote {file}")
    console.print(f"continue with {folder / 'README.md'}")
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "deploy": _deploy,
    "identity": _identity,
    "release": _release,
    "block": partial(_block, blocked=True),
    "unblock": partial(_block, blocked=False),
}
"""What ``protocl federate`` does besides running; :mod:`.books` has the rest."""
