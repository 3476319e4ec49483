"""The files of a server's folder say after each round what its books say."""

from __future__ import annotations

import json

import pytest

from protocl import PrototypeMemory
from protocl.federation import FederatedPrototypes
from protocl.federation.deploy.outputs import Outputs
from protocl.federation.server.state import same_statistics
from protocl.federation.wire.messages import Contribution
from protocl.federation.wire.traffic import Ledger
from tests.federation.books.test_books import empty, play


@pytest.mark.parametrize("begun", [0, 2])
def test_rounds_are_appended_and_the_last_is_as_written_anew(tmp_path, begun):
    strategy = FederatedPrototypes(empty(), checkpoints=tmp_path / "checkpoint")
    for number in range(1, begun + 1):
        play(strategy, number)
    outputs, file = Outputs(tmp_path, strategy), tmp_path / "rounds.json"
    outputs.write_all()
    assert len(json.loads(file.read_text())) == begun
    for number in range(begun + 1, begun + 4):
        play(strategy, number)
        outputs.write_round()
        assert [row["round"] for row in json.loads(file.read_text())] == list(range(1, number + 1))
        assert same_statistics(
            PrototypeMemory.load(tmp_path / "memory.safetensors"), strategy.memory
        )
    appended = json.loads(file.read_text())
    outputs.write_all()
    anew = json.loads(file.read_text())
    assert len(anew) == len(appended)
    assert anew[-1] == appended[-1]  # of earlier rounds some was replaced since
    assert anew[-1]["merged"] == 3


def test_what_is_forgotten_leaves_the_files_with_the_round(tmp_path):
    from protocl.federation.books.requests import Wanted

    strategy = FederatedPrototypes(empty(), checkpoints=tmp_path / "checkpoint")
    play(strategy, 1)
    outputs = Outputs(tmp_path, strategy)
    outputs.write_all()
    strategy.forget(Wanted("client", "Ä 1"))
    outputs.write_round()
    entries = [entry for entry in Ledger.load(tmp_path / "ledger.jsonl") if entry.client == "Ä 1"]
    assert [(entry.outcome, entry.counts) for entry in entries] == [("forgotten", ())]
    assert same_statistics(PrototypeMemory.load(tmp_path / "memory.safetensors"), strategy.memory)


def test_what_a_client_withdraws_leaves_the_files_with_the_round(tmp_path):
    strategy = FederatedPrototypes(empty(), checkpoints=tmp_path / "checkpoint")
    play(strategy, 1)
    outputs = Outputs(tmp_path, strategy)
    outputs.write_all()
    left = Contribution(empty(), "another", 1, "full", withdraws=True)
    strategy.merged.accept(left, client="Ä 1", round_number=1)
    outputs.write_round()
    entries = [entry for entry in Ledger.load(tmp_path / "ledger.jsonl") if entry.client == "Ä 1"]
    assert next((entry.outcome, entry.counts) for entry in entries) == ("forgotten", ())
