"""Checkpoints in proportion to what changed: pieces are shared, verified, and removed in time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from protocl import PrototypeMemory
from protocl.errors import DataError
from protocl.heads import Mahalanobis
from protocl.io import checkpoint, pickling, pieces
from protocl.io.checkpoint import CheckpointFolder

ROW = 96 * 97 // 2 * 8
"""Bytes of a triangle."""


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickling, "LARGE", 1 << 14)
    monkeypatch.setattr(pieces, "PIECE", 3 * ROW)


def samples(classes: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.tensor(classes).repeat(5)
    return torch.rand(len(labels), 96, generator=torch.Generator().manual_seed(seed)), labels


def full(classes: list[int]) -> PrototypeMemory:
    return PrototypeMemory(96, "full").update(*samples(classes))


def files(folder: CheckpointFolder) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in (folder.path / "arrays").iterdir()}


def same(a: PrototypeMemory, b: PrototypeMemory) -> bool:
    assert a.revision == b.revision
    assert a.class_revisions() == b.class_revisions()
    return all(torch.equal(x, b.get_buffer(name)) for name, x in a.named_buffers())


class TestWhatIsWritten:
    def test_only_the_classes_that_changed(self, tmp_path: Path):
        folder, memory = CheckpointFolder(tmp_path), full(list(range(12)))
        folder.save(0, memory, {})
        before = files(folder)
        memory.update(*samples([3], seed=1))
        folder.save(1, memory, {})
        new = {name: size for name, size in files(folder).items() if name not in before}
        assert 0 < sum(new.values()) <= 2 * ROW  # both halves of one class
        assert same(folder.load_newest({}), memory)

    def test_new_classes_between_the_others_leave_those_where_they_are(self, tmp_path: Path):
        folder, memory = CheckpointFolder(tmp_path), full(list(range(0, 12, 2)))
        folder.save(0, memory, {})
        before = files(folder)
        folder.save(1, memory.merge(full([5])), {})
        assert before.items() <= files(folder).items()
        assert same(folder.load_newest({}), memory)

    def test_nothing_where_nothing_changed_in_another_process_either(self, tmp_path: Path):
        memory, frozen = full([0, 1, 2]), nn.Linear(128, 128)
        CheckpointFolder(tmp_path).save(0, [memory, frozen], {})
        before = files(CheckpointFolder(tmp_path))
        again = CheckpointFolder(tmp_path)
        loaded = again.load_newest({})
        again.save(1, loaded, {})
        assert files(again) == before
        assert torch.equal(again.load_newest({})[1].weight, frozen.weight)

    def test_what_two_objects_hold_alike_once(self, tmp_path: Path):
        memory = full([0, 1, 2])
        CheckpointFolder(tmp_path / "one").save(0, [memory], {})
        CheckpointFolder(tmp_path / "two").save(0, [memory, memory, memory.copy()], {})
        assert files(CheckpointFolder(tmp_path / "two")) == files(
            CheckpointFolder(tmp_path / "one")
        )

    def test_factors_of_a_head_with_the_classes_that_they_belong_to(self, tmp_path: Path):
        folder, head = CheckpointFolder(tmp_path), Mahalanobis()
        memory = head.new_memory(96).update(*samples([0, 1, 2, 3, 4, 5]))
        folder.save(0, [memory, head.fit(memory)], {})
        before = files(folder)
        memory.update(*samples([1], seed=1))
        folder.save(1, [memory, head.fit(memory)], {})
        new = {name: size for name, size in files(folder).items() if name not in before}
        assert sum(new.values()) <= 3 * ROW  # and a factor, of as many bytes, in float32
        resumed_memory, resumed = folder.load_newest({})
        assert torch.equal(resumed._factors, head._factors)
        for one, other in ((memory, head), (resumed_memory, resumed)):
            other.fit(one.update(*samples([2, 7], seed=2)))
        assert torch.equal(resumed._factors, head._factors)
        assert torch.equal(resumed(samples([0])[0]), head(samples([0])[0]))

    @pytest.mark.parametrize("level", ["mean", "diagonal", "shared", "full"])
    @pytest.mark.parametrize("exact", [False, True])
    def test_every_kind_of_memory_comes_back(self, tmp_path: Path, level: Any, exact: bool):
        memory = PrototypeMemory(96, level, exact=exact).update(*samples(list(range(40))))
        folder = CheckpointFolder(tmp_path / "with a space, and ü")
        folder.save(0, memory, {})
        folder.save(1, memory.update(*samples([39, 41], seed=1)), {})
        assert same(CheckpointFolder(folder.path).load_newest({}), memory)

    def test_zeros_take_no_room_and_keep_their_sign(self, tmp_path: Path):
        memory = full(list(range(6)))
        memory.second_low = torch.zeros_like(memory.second)
        memory.second_low[4] = -0.0
        folder = CheckpointFolder(tmp_path)
        folder.save(0, memory, {})
        assert sum(files(folder).values()) == (6 + 1) * ROW
        signs = torch.signbit(folder.load_newest({}).second_low[:, 0])
        assert signs.tolist() == [0, 0, 0, 0, 1, 0]

    def test_what_somebody_removed_is_written_again(self, tmp_path: Path):
        folder, memory = CheckpointFolder(tmp_path), full([0, 1, 2])
        frozen = nn.Linear(128, 128)
        folder.save(0, [memory, frozen], {})
        for file in (tmp_path / "arrays").iterdir():
            file.unlink()
        folder.save(1, [memory, frozen], {})
        assert same(CheckpointFolder(tmp_path).load_newest({})[0], memory)


class TestDisk:
    @given(changes=st.lists(st.sets(st.integers(0, 11), max_size=4), min_size=1, max_size=8))
    @settings(max_examples=10, deadline=None)
    def test_holds_at_most_twice_what_two_checkpoints_refer_to(
        self, changes: list[set[int]], tmp_path_factory: pytest.TempPathFactory
    ):
        folder = CheckpointFolder(tmp_path_factory.mktemp("run"))
        memory = full(list(range(12)))
        for t, changed in enumerate(changes):
            if changed:
                memory.update(*samples(sorted(changed), seed=t))
            folder.save(t, memory, {})
            held = 2 * 12 * ROW
            # Of a class that changed, the checkpoint before this one holds the former state.
            assert sum(files(folder).values()) <= 2 * held + 2 * len(changed) * ROW
        assert same(folder.load_newest({}), memory)

    def test_is_given_back_by_classes_that_are_forgotten(self, tmp_path: Path):
        folder, memory = CheckpointFolder(tmp_path), full(list(range(12)))
        for t in range(3):
            folder.save(t, memory.forget(range(3 * t, 3 * t + 3)), {})
        for t in (3, 4):
            folder.save(t, memory, {})
        assert sum(files(folder).values()) <= 2 * (2 * 3 * ROW)


class TestDamage:
    def broken(self, folder: CheckpointFolder, change: Callable[[Path], None]) -> Path:
        """The largest file that only the newest checkpoint refers to, after ``change``."""
        newest, before = (set(checkpoint._pieces_of(file)) for file in folder.files())
        paths = [folder.path / "arrays" / f"{name}.piece" for name in newest - before]
        worst = max(paths, key=lambda path: path.stat().st_size)
        change(worst)
        return worst

    @pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
    def test_names_the_file_and_costs_one_checkpoint(
        self, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
    ):
        def change(path: Path) -> None:
            content = bytearray(path.read_bytes())
            content[100] ^= 4
            path.write_bytes(content[:-8] if how == "cut" else content)
            if how == "missing":
                path.unlink()

        folder, memory = CheckpointFolder(tmp_path), full([0, 1, 2])
        folder.save(0, memory, {})
        first = memory.copy()
        folder.save(1, memory.update(*samples([1], seed=1)), {})
        broken = self.broken(folder, change)
        again = CheckpointFolder(tmp_path)
        assert same(again.load_newest({}), first)
        state = "missing" if how == "missing" else "damaged: its checksum is not its name"
        assert f"{broken}, to which the checkpoint refers, is {state}" in caplog.text
        again.save(1, memory, {})  # what is damaged is written anew
        assert same(CheckpointFolder(tmp_path).load_newest({}), memory)

    def test_a_checkpoint_with_pieces_is_not_read_alone(self, tmp_path: Path):
        CheckpointFolder(tmp_path).save(0, full([0, 1]), {})
        with pytest.raises(DataError, match="read it as a checkpoint of its folder"):
            checkpoint.load(tmp_path / "experience-00000.ckpt")


def dying_after(changes: int, path: Path, memory: PrototypeMemory, moves: Any) -> None:
    """Save a second checkpoint, in a process that dies before its ``changes + 1``st change."""
    done = 0

    def counted(function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == changes:
                os._exit(9)
            done += 1
            return function(*args, **kwargs)

        return wrapper

    for name in ("replace", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))
    folder = CheckpointFolder(path)
    folder.load_newest({})
    folder.save(2, memory, {})
    moves.value = done


def test_a_process_killed_between_any_two_changes_of_files_leaves_a_whole_state(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    moves = context.Value("i", -1)
    kills = 0
    while moves.value < 0:
        folder, memory = CheckpointFolder(tmp_path / str(kills)), full(list(range(6)))
        states = [memory.copy()]
        for t, changed in enumerate(([4], [1, 3]), start=1):
            folder.save(t - 1, memory, {})
            states.append(memory.update(*samples(changed, seed=t)).copy())
        process = context.Process(target=dying_after, args=(kills, folder.path, memory, moves))
        process.start()
        process.join()
        assert process.exitcode == (9 if moves.value < 0 else 0)
        found = CheckpointFolder(folder.path)
        loaded = found.load_newest({})
        assert same(loaded, states[2 if found.files()[0].stem.endswith("2") else 1])
        found.save(3, memory, {})
        referred = {name for file in found.files() for name in checkpoint._pieces_of(file)}
        assert {name.removesuffix(".piece") for name in files(found)} == referred
        kills += 1
    assert kills > 6


def tensors_of_all_sorts() -> dict[str, torch.Tensor]:
    large = torch.arange(8192, dtype=torch.float32)
    return {
        "base": large,
        "view": large[4096:].view(64, 64).T,
        "bits": large.view(torch.int32)[7:],
        "half": torch.randn(100, 100).to(torch.bfloat16),
        "bytes": torch.arange(40_000).to(torch.uint8),
        "complex": torch.randn(64, 64, dtype=torch.complex128).conj(),
        "sparse": torch.eye(300).to_sparse(),
        "empty": torch.empty(0, 7),
        "number": torch.tensor(3.5),
        "broadcast": torch.ones(1, 3).expand(9_000, 3),
        "inference": torch.inference_mode()(torch.zeros)(5000),
    }


def test_tensors_of_all_sorts_come_back_and_go_on_sharing_memory(tmp_path: Path):
    state = tensors_of_all_sorts()
    parameter = nn.Parameter(torch.randn(80, 80))
    folder = CheckpointFolder(tmp_path)
    folder.save(0, {**state, "parameter": parameter, "tied": [parameter, parameter]}, {})
    loaded = folder.load_newest({})
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].layout == tensor.layout
        dense = (
            x.to_dense() if x.layout is torch.sparse_coo else x for x in (loaded[name], tensor)
        )
        assert torch.equal(*dense), name
    loaded["base"][4096] = -1.0
    assert loaded["view"][0, 0] == -1.0
    assert loaded["broadcast"].untyped_storage().nbytes() == 12
    assert loaded["tied"][0] is loaded["tied"][1] is loaded["parameter"]
    assert loaded["parameter"].requires_grad
