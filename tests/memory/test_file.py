"""Files of every version: what they hold, what they weigh, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.errors import DataError
from protocl.federation.client.state import StatesOnDisk
from protocl.memory.batch import LEVELS
from protocl.memory.file import checksum
from protocl.memory.symmetric import pack_triangles

VERSION_1 = Path(__file__).parents[1] / "golden" / "memory_v1"
"""Written by the code of format version 1: matrices and halves whole, as buffers have them."""

FILES = sorted(VERSION_1.glob("[!c]*.safetensors"))


def filled(level: str, *, exact: bool = False, updates: int = 3, width: int = 4) -> PrototypeMemory:
    generator = torch.Generator().manual_seed(0)
    memory = PrototypeMemory(width, level, exact=exact, fingerprint="a")
    for _ in range(updates):
        # In float32 the sums of so few samples are exact, and have no other half.
        features = torch.rand(30, width, generator=generator, dtype=torch.float64)
        memory.update(features, torch.arange(30) % 3)
    return memory


def test_there_is_a_file_of_every_level_and_arithmetic():
    assert {f"{level}{way}" for level in LEVELS for way in ("", "_exact")} < {f.stem for f in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_version_1_load_to_the_same_bits_and_survive_another_round(path, tmp_path):
    arrays, memory = load_file(path), PrototypeMemory.load(path)
    memory.save(tmp_path / "again.safetensors")
    again = PrototypeMemory.load(tmp_path / "again.safetensors")
    for found in (memory, again):
        parts, forms = found.parts(), found.forms
        assert parts.keys() | arrays.keys() == arrays.keys()
        for name, array in arrays.items():
            form = forms.get(name.removesuffix("_low"))
            stored = pack_triangles(array) if form is not None and form.symmetric else array
            kept = parts.get(name, torch.zeros_like(stored))
            assert torch.equal(kept.view(torch.int64), stored.view(torch.int64)), name


def test_the_state_of_a_client_of_version_1_goes_on(tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes((VERSION_1 / "client_state.safetensors").read_bytes())
    empty, arrays = PrototypeMemory(3, "full", exact=True), load_file(path)
    for _ in range(2):  # once as it was, once as this version wrote it
        with StatesOnDisk(tmp_path).open("c", empty) as state:
            assert (state.counted, state.life.seq, [c.seq for c in state.pending]) == (2, 2, [1, 2])
            assert torch.equal(state.memory.second, pack_triangles(arrays["memory/second"]))
            assert torch.equal(state.pending[1].memory.sum, arrays["2/sum"])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("level", LEVELS)
def test_a_file_holds_triangles_and_no_half_that_is_zero(level, exact, tmp_path):
    for updates in (1, 3):
        memory = filled(level, exact=exact, updates=updates)
        memory.save(tmp_path / "m.safetensors")
        arrays = load_file(tmp_path / "m.safetensors")
        assert_same(PrototypeMemory.load(tmp_path / "m.safetensors"), memory, "loaded", bits=True)
        assert any(name.endswith("_low") for name in arrays) == (updates > 1 and not exact)
        if level in ("shared", "full"):
            assert arrays["second"].shape[-1] == 10


@pytest.mark.parametrize("level", ["shared", "full"])
def test_of_a_matrix_unlike_its_transpose_by_rounding_the_upper_triangle_counts(level):
    memory = filled(level)
    parts = memory.parts() | {"second": memory.second_moment.clone()}
    parts["second"][..., 2, 0] *= 1 + 2.0**-50
    kept = PrototypeMemory.from_parts(memory, parts)
    assert torch.equal(kept.second, memory.second + memory.second_low)
    parts["second"][..., 2, 0] *= 1.01
    with pytest.raises(DataError, match="'second' is not symmetric: entries differ by"):
        PrototypeMemory.from_parts(memory, parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "4"}, "version 4, this protocl reads 1, 2, 3; upgrade protocl"),
        ({"checksum": None}, "no checksum"),
        ({"format": "else"}, "not a protocl memory"),
    ],
)
def test_other_versions_and_kinds_are_refused(change, message, tmp_path):
    path = tmp_path / "m.safetensors"
    filled("full").save(path)
    with safe_open(path, framework="pt") as file:
        header = {**file.metadata(), **change}
    header = {key: value for key, value in header.items() if value is not None}
    save_file(load_file(path), path, metadata=header)
    with pytest.raises(DataError, match=message):
        PrototypeMemory.load(path)


def test_a_triangle_of_another_width_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    filled("full", exact=True).save(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    arrays = load_file(path)
    arrays["second"] = arrays["second"][:, :6].contiguous()
    del header["checksum"]
    save_file(arrays, path, metadata={**header, "checksum": checksum(header, arrays)})
    with pytest.raises(DataError, match=r"'second' is \(3, 6\).*expected \(3, 10\)"):
        PrototypeMemory.load(path)
