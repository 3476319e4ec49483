"""Tables that do not agree, labels of every type, and names that are easily taken for another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocl import PrototypeMemory, load_model
from protocl.data.readers.values import labels
from protocl.data.shards.sources import Fields
from protocl.errors import ConfigError, DataError
from protocl.streaming import StreamConfig, stream
from tests.data.shards.written import npy, write_parquet, write_tar

SMALL = StreamConfig(head="nearest_mean")


def columns(**changes: Any) -> dict[str, Any]:
    """Two columns of numbers that no one takes for each other, and classes."""
    x = np.arange(8.0)
    return {"a": x, "b": x + 100, "label": [0, 1] * 4} | changes


def means(model: Path) -> list[list[float]]:
    memory = PrototypeMemory.load(model / "memory.safetensors")
    found: list[list[float]] = memory.means.tolist()
    return found


class TestColumnsOfSeveralTables:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_told_apart_by_name(self, tmp_path: Path, workers: int) -> None:
        first = columns()
        write_parquet(tmp_path / "1.parquet", first)
        write_parquet(tmp_path / "2.parquet", dict(reversed(first.items())))
        config = StreamConfig(head="nearest_mean", workers=workers)
        stream([str(tmp_path)], tmp_path / "model", config)
        assert means(tmp_path / "model") == [[3.0, 103.0], [4.0, 104.0]]

    def test_of_other_names_are_refused(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "1.parquet", columns())
        other = columns()
        other["c"] = other.pop("b")
        write_parquet(tmp_path / "2.parquet", other)
        with pytest.raises(DataError, match=r"2\.parquet: column 'b' is .*--features A,B"):
            stream([str(tmp_path)], tmp_path / "model", SMALL)
        fields = Fields(features=("a",))
        stream([str(tmp_path)], tmp_path / "one", StreamConfig(head="nearest_mean", fields=fields))
        assert means(tmp_path / "one") == [[3.0], [4.0]]

    def test_are_told_of_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for shard in range(3):
            table = columns(split=["train", "test"] * 4, id=np.arange(8))
            write_parquet(tmp_path / f"{shard}.parquet", table)
        with caplog.at_level(logging.WARNING):
            stream([str(tmp_path)], tmp_path / "model", SMALL)
        told = [record.getMessage() for record in caplog.records]
        assert [("'split' is not looked at" in line, "'id' counts" in line) for line in told] == [
            (False, True), (True, False)
        ]  # fmt: skip

    def test_one_name_twice(self, tmp_path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.Table.from_arrays([pa.array([1.0])] * 3, names=["label", "x", "x"])
        parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match="two columns 'x'"):
            stream([str(tmp_path)], tmp_path / "model", SMALL)

    @pytest.mark.parametrize(
        ("features", "said"), [(("a", "label"), "column of the classes"), (("a", "a"), "twice")]
    )
    def test_that_are_no_features(
        self, tmp_path: Path, features: tuple[str, ...], said: str
    ) -> None:
        write_parquet(tmp_path / "a.parquet", columns())
        config = StreamConfig(head="nearest_mean", fields=Fields(features=features))
        with pytest.raises(DataError, match=said):
            stream([str(tmp_path)], tmp_path / "model", config)


class TestLabels:
    @pytest.mark.parametrize("label", [[1], {"a": 1}, 2**63])
    def test_that_are_none(self, tmp_path: Path, label: Any) -> None:
        table = columns(label=np.array([label] * 8, np.uint64) if label == 2**63 else [label] * 8)
        write_parquet(tmp_path / "a.parquet", table)
        with pytest.raises(DataError, match="row 1' has the label"):
            stream([str(tmp_path)], tmp_path / "model", SMALL)

    def test_large_numbers_stay_apart(self, tmp_path: Path) -> None:
        large = [2**53 + row % 2 for row in range(8)]
        write_tar(
            tmp_path / "a.tar",
            [(f"{row}.{kind}", content) for row in range(8) for kind, content in
             (("npy", npy(np.ones(2))), ("cls", str(large[row]).encode()))],
        )  # fmt: skip
        stream([str(tmp_path)], tmp_path / "model", SMALL)
        known: Any = load_model(tmp_path / "model")
        assert sorted(known.classes_) == [2**53, 2**53 + 1]

    @pytest.mark.parametrize("kind", [int, str])
    def test_large_numbers_of_a_table_stay_apart(self, kind: type) -> None:
        large = [2**53, 2**53 + 1]
        assert labels([kind(number) for number in large], "y")[0].tolist() == large
        with pytest.raises(DataError, match="below 2\\^63"):
            labels([kind(2**63)], "y")

    def test_names_that_differ_in_case_are_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        table = columns(label=["Cat", "cat", "e\u0301", "\xe9", "dog", "dog ", "a", "b"])
        write_parquet(tmp_path / "a.parquet", table)
        done = stream([str(tmp_path)], tmp_path / "model", SMALL)
        assert len(done.labels) == 8
        assert sum("are two classes" in record.getMessage() for record in caplog.records) == 3

    def test_a_name_that_is_the_number_of_another(self) -> None:
        with pytest.raises(ConfigError, match="'1' names the class 0"):
            StreamConfig(classes=("1", "2"))
        assert StreamConfig(classes=("0", "1", "007")).classes == ("0", "1", "007")


@pytest.mark.parametrize("label", ["Species", ".species", "species"])
def test_endings_as_users_write_them(tmp_path: Path, label: str) -> None:
    write_tar(tmp_path / "a.tar", [("1.npy", npy(np.ones(2))), ("1.Species", b"otter")])
    config = StreamConfig(head="nearest_mean", fields=Fields(label=label))
    assert list(stream([str(tmp_path)], tmp_path / "m", config).labels.values()) == ["otter"]


def test_seconds_between_saves() -> None:
    with pytest.raises(ConfigError, match="save_every=-1"):
        StreamConfig(save_every=-1)
