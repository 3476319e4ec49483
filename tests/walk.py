"""Which files of the project a run enters, and how often it goes from one into another.

``python -m tests.walk round`` counts for one round of two clients in one process,
``python -m tests.walk slda`` for ``protocl run strategy=slda`` on digits. Imports do not count.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from protocl import PrototypeMemory
from protocl.cli.main import main
from protocl.federation import ClientData, FederatedPrototypes, PrototypeClient, simulate

ROOT = Path(__file__).parents[1]
_INSIDE = tuple(f"{ROOT / name}/" for name in ("protocl", "strategies", "federation"))
_FUNCTION = 1  # CO_OPTIMIZED: not the body of a module or a class


def walk(action: Callable[[], object]) -> tuple[set[str], Counter[tuple[str, str]]]:
    """Files whose functions ran in ``action``, and calls from one of them into another."""
    action()  # what is imported late is imported now
    files: set[str] = set()
    hops: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        callee = frame.f_code
        if event != "call" or not callee.co_flags & _FUNCTION or not is_ours(callee.co_filename):
            return
        files.add(short(callee.co_filename))
        caller = frame.f_back.f_code.co_filename if frame.f_back else ""
        if is_ours(caller) and caller != callee.co_filename:
            hops[short(caller), short(callee.co_filename)] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return files, hops


def is_ours(path: str) -> bool:
    return path.startswith(_INSIDE)


def short(path: str) -> str:
    return str(Path(path).resolve().relative_to(ROOT))


def one_round() -> None:
    """One round of two clients with 20 samples of three classes each."""
    generator = torch.Generator().manual_seed(0)
    chunks = [
        (torch.randn(20, 4, generator=generator), torch.randint(3, (20,), generator=generator))
        for _ in range(2)
    ]
    like = PrototypeMemory(4, exact=True)
    client = PrototypeClient(
        lambda context: ClientData([chunks[int(context.node_config["partition-id"])]]), like
    )
    simulate(FederatedPrototypes(like), client.app(), clients=2, rounds=1)


def slda_on_digits() -> None:
    """The command as a user types it, with its results in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        main(["run", "strategy=slda", f"output={folder}/runs", f"cache={folder}/cache"])


if __name__ == "__main__":
    found, between = walk({"round": one_round, "slda": slda_on_digits}[sys.argv[1]])
    print(f"{len(found)} files, {sum(between.values())} calls from one into another")  # noqa: T201
    print("\n".join(sorted(found)))  # noqa: T201
