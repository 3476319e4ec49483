"""What was forgotten is known by its name, also to whoever asks again or restores a backup."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from protocl import PrototypeMemory
from protocl.cli.main import main
from protocl.errors import ConfigError
from protocl.federation import FederatedPrototypes
from protocl.federation.books.audit import audit
from protocl.federation.books.backup import back_up
from protocl.federation.books.writing import BEGINNING
from protocl.federation.cli.forget import bring_back, forget
from protocl.federation.edges.certificates import certificates
from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.messages import Contribution
from protocl.memory.rows import class_id_of

FOX, THREE = class_id_of("red fox"), class_id_of("3")
NAMES = {FOX: "red fox", THREE: "3"}


def contribution(labels: list[int], life: str = "a", **more: Any) -> Contribution:
    memory = PrototypeMemory(4, exact=True)
    memory.update(torch.eye(4)[: len(labels)], torch.tensor(labels))
    return Contribution(memory, 32 * life, 1, "full", **more)


def server_in(folder: Any) -> FederatedPrototypes:
    """Of one client with two named classes, and of another one that names none."""
    strategy = FederatedPrototypes(PrototypeMemory(4, exact=True), checkpoints=folder)
    strategy.resume()
    strategy.merged.accept(contribution([FOX, THREE], names=NAMES), client="Ada")
    strategy.merged.accept(contribution([3, 5], "b"), client="Bob")
    strategy._save(1)
    return strategy


@pytest.mark.parametrize("name", ["red fox", "3"])
def test_a_class_is_forgotten_by_its_name_however_often(tmp_path, name):
    server_in(tmp_path)
    assert "1 samples less, 3 remain" in forget(tmp_path, f"class={name}")[0]
    assert "0 samples less, 3 remain" in forget(tmp_path, f"class={name}")[0]
    assert not audit(tmp_path).faults


def test_classes_are_listed_once():
    merged = MergedMemory(PrototypeMemory(4, exact=True))
    with pytest.raises(KeyError, match="classes are none"):
        merged.class_of("cat")
    merged.accept(contribution([FOX, 7], names={FOX: "red fox"}), client="Ada")
    with pytest.raises(KeyError, match=r"classes are red fox, 7.$"):
        merged.class_of("cat")


def test_what_was_forgotten_after_a_backup_has_a_certificate(tmp_path):
    place, backup = tmp_path / "books", tmp_path / "backup"
    server_in(place)
    back_up(place, backup)
    forget(place, "class=red fox")
    bring_back(place, backup)
    assert [found.what for found in certificates(place)] == ["classes red fox"]
    assert not audit(place).faults


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        bring_back(tmp_path / "nowhere", tmp_path / "backup")


def test_a_model_of_what_remains_is_not_to_be_removed(tmp_path, capsys):
    words = ["federation=digits", "clients=3", "rounds=1", "partition=iid"]
    assert main(["federate", *words, f"output={tmp_path / 'runs'}"]) == 0
    (run,) = [path.parent for path in tmp_path.rglob("config.yaml")]
    backup = tmp_path / "backup"
    back_up(run, backup)
    assert f"{run / 'model'} is of what remains already" in bring_back(run, backup)
    forget(run, "client=1001")
    assert f"{run / 'model'} is of what remains already" in bring_back(run, backup)
    assert f"{run / 'model'} is of what remains already" in forget(run, "client=1001")
    back_up(run, again := tmp_path / "again")
    forget(run, "class=4")
    (said,) = bring_back(run, again)
    assert "a backup was restored" in said
    capsys.readouterr()


def test_a_head_is_that_of_an_audit(tmp_path, capsys):
    server_in(tmp_path)
    head = audit(tmp_path).head
    assert not audit(tmp_path, head).faults
    assert not audit(tmp_path, BEGINNING.hex()).faults  # of before anything was in the books
    for unfit in ("", "abc", head[:8], head.upper()):
        with pytest.raises(ConfigError, match="expected all 64 digits"):
            audit(tmp_path, unfit)
    assert main(["federate", "audit", str(tmp_path), "head="]) == 2
    assert "head=: expected all 64 digits" in " ".join(capsys.readouterr().err.split())


def test_who_asks_while_somebody_else_forgets_is_served_when_that_one_ends(tmp_path):
    """Two commands at once: the other one is no server, which would do it after a round."""
    other, said = server_in(tmp_path), []
    with other.writing():
        asking = threading.Thread(target=lambda: said.extend(forget(tmp_path, "class=5")))
        asking.start()
        while not list((tmp_path / "requests").glob("*.json")):
            pass
    asking.join()
    assert said == ["forgot class 5: 1 samples less, 3 remain"]
    assert not list((tmp_path / "requests").iterdir())
    assert not audit(tmp_path).faults
