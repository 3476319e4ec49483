"""Killed at any moment, a server loses nothing that it has acknowledged."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore

import numpy as np
import pytest

from protocl import PrototypeClassifier, load_model
from protocl.model.changes.ledger import Ledger
from protocl.serve.server import Settings
from tests.model.changes.test_ledger import made
from tests.serve.process import Server, served

CALLERS = 4


def features(label: str) -> np.ndarray:
    """What a class is taught, which follows from its name."""
    return np.random.default_rng(list(label.encode())).uniform(0, 1, (3, 6))


def busy(server: Server, name: str, done: Semaphore) -> tuple[set[str], set[str], set[str]]:
    """Teach and forget until the server is gone: what it knows for sure, what not, and maybe."""
    known: set[str] = set()
    gone: set[str] = set()
    caller = server.caller()
    for n in range(1000):
        label = f"{name}-{n}"
        content = {"class": label, "features": features(label).tolist()}
        if server.post("/teach", content, caller) != 200:
            return known, gone, {label}
        known.add(label)
        done.release()
        if n % 3 == 2:
            forgotten = min(known)
            content = {"class": forgotten, "now": n % 6 == 2}
            if server.post("/forget", content, caller) != 200:
                return known - {forgotten}, gone, {forgotten}
            known.remove(forgotten)
            gone.add(forgotten)
    raise AssertionError("the server was never killed")


def round_of(folder: Path, number: int) -> tuple[set[str], set[str], set[str]]:
    """Let four callers change a model, and kill its server while they do."""
    with served(folder, Settings(port=0)) as server, ThreadPoolExecutor(CALLERS) as pool:
        done, draw = Semaphore(0), random.Random(number)
        found = [pool.submit(busy, server, f"{number}-{n}", done) for n in range(CALLERS)]
        for _ in range(draw.randint(2, 10)):
            done.acquire()
        time.sleep(draw.uniform(0, 0.03))
        server.kill()
        parts = [each.result(timeout=90) for each in found]
    known, gone, maybe = (set().union(*sets) for sets in zip(*parts, strict=True))
    return known, gone, maybe


@pytest.mark.parametrize(
    "rounds", [pytest.param(3, id="3"), pytest.param(50, id="50", marks=pytest.mark.slow)]
)
def test_nothing_acknowledged_is_lost(rounds: int, tmp_path: Path) -> None:
    folder = made(tmp_path / "killed")
    expected, forgotten, in_doubt = set("abc"), set(), set()
    for number in range(rounds):
        known, gone, maybe = round_of(folder, number)
        expected |= known
        forgotten |= gone
        in_doubt |= maybe
        found = set(load_model(folder).classes_.tolist())
        assert expected <= found
        assert not forgotten & found
        assert found <= expected | in_doubt
        expected |= found  # what was in doubt is known now
    assert len(expected) + len(forgotten) > 3 * rounds
    Ledger.open(folder).fold(all_of_them=True)
    whole = PrototypeClassifier.load(made(tmp_path / "whole"))
    for label in sorted(expected - set("abc")):
        whole.partial_fit(features(label), [label] * 3)
    whole.save(tmp_path / "whole")
    names = {file.name for file in folder.iterdir()}
    assert names == {"model.json", "memory.safetensors"}
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
