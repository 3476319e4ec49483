"""What an operator meets: backups that come back, keys of another day, whoever was stopped."""

from __future__ import annotations

import shutil

import pytest
from flwr.app import ArrayRecord

from protocl.cli.main import main
from protocl.errors import DataError
from protocl.federation import FederatedPrototypes
from protocl.federation.books.audit import audit
from protocl.federation.books.backup import back_up
from protocl.federation.cli.forget import forget
from protocl.federation.robust.rules import RobustMerge
from protocl.federation.server.sampling import Options
from protocl.federation.server.state import same_statistics
from tests.federation.books.test_forgetting import (
    Federation,
    empty,
    found_in,
    memory_of,
    sums_of,
)


def test_a_backup_is_restored_without_what_was_forgotten_and_no_round_is_needed(tmp_path):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    back_up(federation.server, tmp_path / "b")
    forget(federation.server, "client=1001")
    forget(federation.server, "class=0")
    assert main(["federate", "restore", str(federation.server), str(tmp_path / "b")]) == 0
    found = audit(federation.server)
    assert (found.faults, found.samples) == ([], federation.strategy().memory.total)


@pytest.mark.parametrize("what", ["client=1001", "class=1"])
def test_who_was_stopped_after_the_list_and_before_the_books_is_ended_by_the_next(
    tmp_path, monkeypatch, what
):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    monkeypatch.setattr(FederatedPrototypes, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forget(federation.server, what)
    monkeypatch.undo()
    secrets = federation.server / "keys.sqlite"
    before = secrets.read_bytes()
    federation.strategy()
    assert audit(federation.server).certificates == 1
    assert not audit(federation.server).faults
    assert secrets.read_bytes() != before


def test_keys_of_another_day_are_refused_and_nothing_is_lost(tmp_path):
    federation = Federation(tmp_path, empty())
    federation.rounds(1)
    keys, old = federation.server / "keys.sqlite", tmp_path / "old"
    shutil.copy(keys, old)
    expected = federation.rounds(1)
    newest = shutil.copy(keys, tmp_path / "newest")
    shutil.copy(old, keys)
    with pytest.raises(DataError, match=r"does not hold 3 keys .*put the newest of both files"):
        federation.strategy()
    shutil.copy(newest, keys)
    assert same_statistics(federation.strategy().memory, expected)
    Federation(tmp_path / "other", empty()).rounds(1)
    back_up(tmp_path / "other" / "s", tmp_path / "of another federation")
    words = ["federate", "restore", str(federation.server), str(tmp_path / "of another federation")]
    assert main(words) == 3


def test_a_client_of_a_robust_federation_is_forgotten(tmp_path):
    federation = Federation(tmp_path, empty())
    rule = RobustMerge("geometric_median")
    strategy = FederatedPrototypes(
        federation.like, Options(evaluate=0.0), checkpoints=federation.server, merge=rule
    )
    strategy.start(federation.grid, ArrayRecord(), num_rounds=1)
    said = forget(federation.server, "client=1001")
    assert said[0] == "forgot client 1001: 6 samples less, 12 remain"
    assert found_in(federation.server, sums_of(memory_of(federation.like, (1, 0)))) == []
    assert not audit(federation.server).faults
