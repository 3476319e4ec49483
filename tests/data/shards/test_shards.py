"""Shards give each entry once, in one order, and say which shard and entry is wrong."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protocl.data.config import ColumnsConfig
from protocl.data.readers.columns import read_table
from protocl.data.shards.decoding import Wanted, read_label
from protocl.data.shards.parquet import ParquetShard
from protocl.data.shards.shard import Portion, Shard
from protocl.data.shards.sources import Fields, shards_of
from protocl.data.shards.tar import TarShard
from protocl.errors import ConfigError, DataError
from tests.data.shards.written import (
    digits,
    feature_columns,
    npy,
    pictures,
    png,
    vectors,
    write_parquet,
    write_tar,
)

VECTOR, IMAGE = Wanted((64,)), Wanted((3, 8, 8))
GOOD = [("g.npy", npy(np.zeros(64))), ("g.cls", b"1")]


def read(shard: Shard, wanted: Wanted = VECTOR, start: int = 0, size: int = 16) -> list[Portion]:
    return list(shard.portions(5, start, size, wanted))


def samples(portions: list[Portion]) -> tuple[torch.Tensor, list[Any]]:
    x = torch.cat([portion.x for portion in portions if portion.x is not None])
    labels = [portion.distinct[code] for portion in portions for code in portion.codes]
    return x, labels


def faults(shard: Shard, wanted: Wanted = VECTOR) -> list[tuple[str, str]]:
    return [(f.kind, f.message) for portion in read(shard, wanted) for f in portion.faults]


@pytest.fixture(params=["tar", "compressed", "parquet"])
def hundred(request: pytest.FixtureRequest, tmp_path: Path) -> Shard:
    """The first hundred digits as vectors."""
    if request.param == "parquet":
        file = write_parquet(tmp_path / "a.parquet", feature_columns(range(100)), row_group_size=23)
        return ParquetShard(file, ColumnsConfig())
    mode = "w" if request.param == "tar" else "w:xz"
    return TarShard(write_tar(tmp_path / "a.tar", vectors(range(100)), mode))


@pytest.mark.parametrize("size", [1, 50, 4096])
def test_portions_begin_where_they_are_asked_to(hundred: Shard, size: int) -> None:
    portions = read(hundred, size=size)
    x, y = digits()
    flat = torch.from_numpy(x[:100].reshape(100, 64)).float()
    assert torch.equal(samples(portions)[0], flat)
    assert samples(portions)[1] == y[:100].tolist()
    assert [portion.last for portion in portions] == [False] * (len(portions) - 1) + [True]
    assert portions[-1].stop == 100
    assert {portion.shard for portion in portions} == {5}
    for portion in portions[:-1][-3:]:
        rest = read(hundred, start=portion.stop, size=size)
        left = [part.x for part in rest if part.x is not None]
        assert torch.equal(torch.cat(left) if left else flat[100:], flat[portion.stop :])
        assert rest[-1].stop == 100


@pytest.mark.parametrize("label", ["cls", "json"])
def test_pictures_are_resized_to_what_is_wanted(tmp_path: Path, label: str) -> None:
    shard = TarShard(write_tar(tmp_path / "a.tar", pictures(range(10), label)))
    x, labels = samples(read(shard, Wanted((1, 16, 16))))
    assert x.shape == (10, 1, 16, 16)
    assert x.dtype == torch.uint8
    assert labels == digits()[1][:10].tolist()


class TestTarFiles:
    @pytest.mark.parametrize(
        ("files", "kind", "message"),
        [
            ([("a.npy", npy(np.zeros(64)))], "no label", "sample 'a' has no label"),
            ([("a.npy", npy(np.zeros(64))), ("a.cls", b"2.5")], "no label", "a whole number"),
            ([("a.npy", npy(np.zeros(64))), ("a.cls", b"-1")], "no label", "at least 0"),
            ([("a.npy", npy(np.zeros(64))), ("a.cls", b"\xff")], "no label", "UTF-8"),
            ([("a.npy", npy(np.zeros(64))), ("a.json", b"{")], "no label", "cannot be read"),
            ([("a.npy", npy(np.zeros(64))), ("a.json", b"[" * 99_999)], "no label", "cannot be"),
            ([("a.npy", npy(np.zeros(64))), ("a.cls", b"a\0")], "no label", "zero characters"),
            ([("a.npy", npy(np.zeros(64))), ("a.cls", b"9" * 30)], "no label", "below 2^63"),
            ([("a.npy", npy(np.zeros(64))), ("a.cls", b"9" * 5000)], "no label", "whole number"),
            ([("a.npy", npy(np.zeros(0))), ("a.cls", b"1")], "damaged sample", "no numbers"),
            ([("a.0.npy", b""), ("a.0.cls", b"1")], "damaged sample", "has .0.cls, .0.npy; exp"),
            ([("a.cls", b"1")], "damaged sample", "has .cls; expected one of .png"),
            ([("a.npy", b"\x93NUMPY"), ("a.cls", b"1")], "damaged sample", "as an array"),
            ([("a.png", b"no image"), ("a.cls", b"1")], "damaged sample", "as an image"),
            ([("a.png", png(digits()[0][0])), ("a.cls", b"1")], "damaged sample", "a picture"),
            ([("a.npy", npy(np.zeros(63))), ("a.cls", b"1")], "damaged sample", r"(63,)"),
            ([("a.npy", npy(np.array("text"))), ("a.cls", b"1")], "damaged sample", "numbers"),
            ([("a.npy", npy(np.full(64, np.nan))), ("a.cls", b"1")], "damaged sample", "nan"),
            ([("a.npy", npy(np.zeros(64, complex))), ("a.cls", b"1")], "damaged sample", "complex"),
            ([("g.npy", npy(np.zeros(64))), ("g.cls", b"1")], "duplicate name", "'g' has the name"),
            ([("a.cls", b"1"), ("a.cls", b"1")], "duplicate name", "its file .cls twice"),
            ([("a.npy", b""), ("a.png", b""), ("a.cls", b"")], "damaged sample", "--sample"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named_and_the_rest_read(
        self, tmp_path: Path, files: list[tuple[str, bytes]], kind: str, message: str
    ) -> None:
        between = [("f.npy", npy(np.zeros(64))), ("f.cls", b"3")]
        shard = TarShard(write_tar(tmp_path / "a b.tar", [*GOOD, *between, *files]))
        ((found, said),) = faults(shard)
        assert found == kind
        assert str(shard.file) in said
        assert message in said
        assert samples(read(shard))[1] == [1, 3]

    def test_what_is_no_sample_is_passed_over(self, tmp_path: Path) -> None:
        other = [("._g.npy", b"x"), ("dir/__meta__.cls", b"x"), ("README", b"x")]
        shard = TarShard(write_tar(tmp_path / "a.tar", [other[0], *GOOD, *other[1:]]))
        assert samples(read(shard))[1] == [1]
        assert faults(shard) == []

    @pytest.mark.parametrize("cut", [100, 700, 1024, 2048, 5000, 10240])
    def test_a_file_cut_short_is_no_shorter_file(self, tmp_path: Path, cut: int) -> None:
        shard = TarShard(write_tar(tmp_path / "a.tar", vectors(range(20))))
        content = shard.file.read_bytes().rstrip(b"\0")
        shard.file.write_bytes(content[:-cut])
        assert [kind for kind, _ in faults(shard)][-1] == "damaged shard"

    @pytest.mark.parametrize("suffix", ["w", "w:gz"])
    def test_a_damaged_header_is_no_end(self, tmp_path: Path, suffix: str) -> None:
        shard = TarShard(write_tar(tmp_path / "a.tar", vectors(range(20)), suffix))
        content = bytearray(shard.file.read_bytes())
        place = len(content) // 2 // 512 * 512
        content[place : place + 2048] = b"\xaa" * 2048
        shard.file.write_bytes(content)
        assert "damaged shard" in [kind for kind, _ in faults(shard)]

    @pytest.mark.parametrize("content", [b"", b"no tar file", b"\0" * 10240])
    def test_files_without_samples(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.tar").write_bytes(content)
        ((kind, message),) = faults(TarShard(tmp_path / "a.tar"))
        assert kind == ("empty shard" if content.startswith(b"\0") else "damaged shard")
        assert "a.tar" in message

    def test_fields_by_name_and_no_links(self, tmp_path: Path) -> None:
        files = [
            ("a.seg.png", b"x"),
            ("a.v.npy", npy(np.ones(64))),
            ("a.json", b'{"k": "\xc3\xbc"}'),
        ]
        file = write_tar(tmp_path / "a.tar", files)
        shard = TarShard(file, sample="v.npy", label="json.k")
        assert samples(read(shard))[1] == ["ü"]
        with tarfile.open(file, "w") as archive:
            link = tarfile.TarInfo("a.npy")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            info = tarfile.TarInfo("a.cls")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"1"))
        assert [kind for kind, _ in faults(TarShard(file))] == ["damaged sample"]


class TestParquetFiles:
    @pytest.mark.parametrize(
        ("columns", "kind", "message"),
        [
            ({"x": [[1.0, 2.0], [1.0]], "label": [0, 1]}, "damaged sample", "(1,)"),
            ({"x": [[1.0, 2.0], None], "label": [0, 1]}, "damaged sample", "'x' has no value"),
            ({"x": [[1.0, 2.0], [1.0, None]], "label": [0, 1]}, "damaged sample", "no value"),
            ({"x": [[1.0, 2.0], [1.0, np.inf]], "label": [0, 1]}, "damaged sample", "inf"),
            ({"x": [[1.0, 2.0], [1.0, 2.0]], "label": [0, None]}, "no label", "'row 2' has no"),
            ({"x": [[1.0, 2.0], [1.0, 2.0]], "label": [0, -1]}, "no label", "-1"),
            ({"x": [[1.0, 2.0], [1.0, 2.0]], "label": [0.0, 0.5]}, "no label", "0.5"),
            ({"image": [png(digits()[0][0]), b"no"], "label": [0, 1]}, "damaged sample", "image"),
            ({"image": [png(digits()[0][0]), None], "label": [0, 1]}, "damaged sample", "missing"),
            ({"file": ["a.png", "none.png"], "label": [0, 1]}, "damaged sample", "none.png"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named_and_the_rest_read(
        self, tmp_path: Path, columns: dict[str, Any], kind: str, message: str
    ) -> None:
        (tmp_path / "a.png").write_bytes(png(digits()[0][0]))
        file = write_parquet(tmp_path / "a.parquet", columns)
        wanted = Wanted((2,)) if "x" in columns else IMAGE
        shard = ParquetShard(file, ColumnsConfig())
        ((found, said),) = faults(shard, wanted)
        assert found == kind
        assert str(file) in said
        assert "row 2" in said
        assert message in said
        assert samples(read(shard, wanted))[1] == [0]

    @pytest.mark.parametrize(
        "columns",
        [{"a": [1, 2], "b": [True, False], "label": ["x", "y"]},
         {"a": np.array([1, 2], np.float16), "b": [1.5, 0], "class": ["x", "y"]}],
    )  # fmt: skip
    def test_columns_of_numbers(self, tmp_path: Path, columns: dict[str, Any]) -> None:
        shard = ParquetShard(write_parquet(tmp_path / "a.pq", columns), ColumnsConfig())
        x, labels = samples(read(shard, Wanted((2,))))
        assert x.dtype == torch.float32
        assert x[:, 0].tolist() == [1, 2]
        assert labels == ["x", "y"]

    def test_texts_are_no_numbers(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", {"a": ["1", "2"], "label": [0, 1]})
        found = faults(ParquetShard(file, ColumnsConfig()), Wanted((1,)))
        assert [kind for kind, _ in found] == ["damaged sample"] * 2
        assert "column 'a' is string" in found[0][1]

    @pytest.mark.parametrize("content", [b"", b"PAR1no table", None])
    def test_damaged_and_empty_files(self, tmp_path: Path, content: bytes | None) -> None:
        file = write_parquet(tmp_path / "a.parquet", feature_columns(range(0)))
        if content is not None:
            file.write_bytes(content)
        ((kind, message),) = faults(ParquetShard(file, ColumnsConfig()))
        assert kind == ("empty shard" if content is None else "damaged shard")
        assert "a.parquet" in message

    def test_numbers_that_changed_since_they_were_written(self, tmp_path: Path) -> None:
        file = write_parquet(
            tmp_path / "a.parquet", {"x": np.arange(1000.0), "label": [0] * 1000},
            write_page_checksum=True, use_dictionary=False, compression="none",
        )  # fmt: skip
        content = bytearray(file.read_bytes())
        content[content.index(np.float64(700).tobytes())] ^= 1
        file.write_bytes(content)
        ((kind, message),) = faults(ParquetShard(file, ColumnsConfig()), Wanted((1,)))
        assert kind == "damaged shard"
        assert "checksum" in message
        with pytest.raises(DataError, match="checksum"):
            read_table(file)

    def test_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", feature_columns(range(2)))
        ((_, message),) = faults(ParquetShard(file, ColumnsConfig(label="lable")))
        assert "--label: unknown column 'lable'" in message


class TestDataSetsOfHuggingFace:
    def test_saved_on_disk_and_files(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        x, y = digits()
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefghij"))}
        )
        rows = {"image": [{"bytes": png(x[row])} for row in range(40)], "label": y[:40].tolist()}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
        (shard,) = shards_of([f"hf:{tmp_path / 'saved'}"], Fields())
        pixels, labels = samples(read(shard, IMAGE))
        assert torch.equal(pixels[:, 0], torch.from_numpy(x[:40]))
        assert labels == ["abcdefghij"[label] for label in y[:40]]
        assert torch.equal(samples(read(shard, IMAGE, start=16))[0], pixels[16:])

    def test_files_are_streamed_part_by_part(self, tmp_path: Path) -> None:
        pytest.importorskip("datasets")
        for part in range(2):
            rows = range(30 * part, 30 * part + 30)
            write_parquet(tmp_path / f"{part}.parquet", feature_columns(rows))
        shards = shards_of([f"hf:{tmp_path}"], Fields())
        read_all = [portion for shard in shards for portion in read(shard)]
        assert len(shards) == 2
        assert samples(read_all)[1] == digits()[1][:60].tolist()

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        pytest.importorskip("datasets")
        with pytest.raises(DataError, match="cannot be opened by datasets"):
            shards_of([f"hf:{tmp_path}"], Fields())
        with pytest.raises(DataError, match="has no name"):
            shards_of(["hf:@train"], Fields())

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        part = datasets.Dataset.from_dict({"x": [1.0], "label": [0]})
        datasets.DatasetDict(train=part, valid=part).save_to_disk(str(tmp_path / "saved"))
        with pytest.raises(DataError, match="no split 'test': name one of train, valid after @"):
            shards_of([f"hf:{tmp_path / 'saved'}@test"], Fields())


class TestSources:
    def test_one_file_by_two_names_is_refused(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "a.tar", GOOD)
        (tmp_path / "b.tar").symlink_to(tmp_path / "a.tar")
        with pytest.raises(ConfigError, match="are one shard"):
            shards_of([str(tmp_path)], Fields())

    @pytest.mark.parametrize("source", ["none.tar", "text.txt", "empty"])
    def test_what_is_no_source(self, tmp_path: Path, source: str) -> None:
        (tmp_path / "text.txt").touch()
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=source):
            shards_of([str(tmp_path / source)], Fields())


@pytest.mark.parametrize(
    ("value", "label"),
    [("otter", "otter"), ("7", 7), ("007", "007"), (b" 3\n", 3), (2.0, 2), (np.int64(4), 4),
     (True, "True"), ("Übung", "Übung")],
)  # fmt: skip
def test_labels(value: Any, label: Any) -> None:
    found = read_label(value, "x", Wanted())
    assert found == label
    assert type(found) is type(label)
