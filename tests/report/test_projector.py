"""Prototypes in TensorBoard's projector."""

from __future__ import annotations

import pytest
import torch

from protocl import PrototypeMemory
from protocl.report.projector import write_projector


def test_the_projector_gets_every_prototype_with_its_name_and_count(tmp_path):
    labels = torch.tensor([2, 0, 2])
    memory = PrototypeMemory(3).update(torch.eye(3), labels)
    write_projector(memory, tmp_path, ["zero", "one", "two"], step=4)
    (folder,) = tmp_path.glob("00004/*")
    lines = (folder / "metadata.tsv").read_text().splitlines()
    assert lines == ["class\tsamples", "zero\t1", "two\t2"]
    points = [[float(v) for v in line.split("\t")]
              for line in (folder / "tensors.tsv").read_text().splitlines()]  # fmt: skip
    assert points == [[0, 1, 0], [0.5, 0, 0.5]]


def test_an_empty_memory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        write_projector(PrototypeMemory(3), tmp_path)
