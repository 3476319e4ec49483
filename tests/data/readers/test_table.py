"""Tables as people and programs write them: what is read of them, and what is refused."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocl.data import ArrayData, class_stream
from protocl.data.config import BenchmarkConfig, ColumnsConfig
from protocl.errors import ConfigError, DataError, PrecisionWarning
from tests.data.readers.pictures import folder, pictures, read, table, write

HEADER = ("a", "b", "label")
ROWS = [(i, i / 2, ("ant", "bee")[i % 2]) for i in range(8)]


def text(path: Path, content: str | bytes, **columns: object) -> ArrayData:
    """What is read of a file of this content, a quarter of each class being for the test."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read("table", path, test=0.25, columns=ColumnsConfig(**columns))  # type: ignore[arg-type]


def lines(*rows: str, header: str = "a,b,label") -> str:
    return "\n".join([header, *rows]) + "\n"


GOOD = lines(*(f"{a},{b},{c}" for a, b, c in ROWS))


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace(",", "\t"),
        GOOD.replace(",", "|"),
        GOOD.replace(",", ";").replace(".", ","),
        GOOD.replace("ant", '"ant"').replace("a,b", '"a","b"'),
        GOOD.replace(",", " , "),
        GOOD + "\n\n",
        GOOD.replace("label", "Class"),
    ],
    ids=["plain", "crlf", "bom", "tab", "bar", "semicolon", "quotes", "spaces", "blank", "class"],
)
def test_dialects_give_the_same_data(content: str | bytes, tmp_path: Path) -> None:
    expected = text(tmp_path / "a.csv", GOOD)
    assert expected.class_names == ["ant", "bee"]
    assert expected.input_shape == (2,)
    assert text(tmp_path / "b.csv", content).content_hash == expected.content_hash


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0", "1"], ["0", "1"]),
        (["1", "2"], ["0", "1", "2"]),
        (["1.0", "2.0"], ["0", "1", "2"]),
        (["-1", "1"], ["-1", "1"]),
        (["007", "7"], ["007", "7"]),
        (["True", "False"], ["False", "True"]),
        (["none", "one, two"], ["none", "one, two"]),
        (["ä\nb", '"quoted"'], ['"quoted"', "ä\nb"]),
        (["1", "x"], ["1", "x"]),
    ],
)
def test_labels_keep_what_they_say(labels: list[str], names: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [HEADER, *((i, 0, labels[i % 2]) for i in range(8))])
    data = read("table", path, test=0.25)
    assert data.class_names == names
    assert sorted({data.class_names[c] for c in data.y_train.tolist()}) == sorted(
        {label.removesuffix(".0") for label in labels}
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a\.csv holds no samples"),
        ("a,b,label\n", "holds no samples"),
        (lines("1,2,x", header="a,a,label"), "has two columns 'a'"),
        (lines("1,2"), "row 1 after the header has 2 values, the header 3"),
        (lines("1,2,x", "1,,x"), r"column 'b': row 2 has no value \(1 of 2 rows have none\)"),
        (lines("1,NA,x", "1,2,x"), r"column 'b': row 1 has no value"),
        (lines("1,2,", "1,2,x"), r"column 'label': row 1 has no value"),
        (lines("1,2,x", "Oslo,2,x"), r"column 'a': row 2 holds 'Oslo', which is no number"),
        ("a;b;label\n1,5;2;x\n1.138;2;x\n", r"'a': row 2 holds '1\.138': thousands separators"),
        ("a;b;label\n1,5;2;x\n1.138,5;2;x\n", r"row 2 holds '1\.138,5': thousands separators"),
        ("a;b;label\n951;2;x\n1,138;2;x\n", r"row 2 holds '1,138': thousands separators"),
        ("a;b;label\n1,5;2;x\n1,5,2;2;x\n", r"row 2 holds '1,5,2', which is no number"),
        (lines("1_951,2,x", "1,2,x"), r"row 1 holds '1_951': write numbers without '_'"),
        (lines("1,2,1.5", "1,2,2"), r"column 'label': row 1 holds 1\.5; classes are"),
        (lines("1,inf,x", "1,2,x"), r"features: row 0 holds \[?.*inf"),
        (b"a,b,label\n1,2,\xff\n", r"is not UTF-8"),
        (b'a,b,label\n1,2,"x\n', r"cannot be read as CSV"),
        (lines("1,2,x", header="a,b,c"), r"no column is called label or .*out of 'a', 'b', 'c'"),
        (lines(",".join("1" * 14), header="a,b,c,d,e,f,g,h,i,j,k,l,m,kind"),
         r"out of 'a', .*'f', 2 more, 'i', .*'m', 'kind'$"),
        (lines("1,2,x", header="class,b,label"), r"'class' and 'label' may both be the label"),
        (lines("x", header="label"), "no column is left for the features"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        text(tmp_path / "a.csv", content)


@pytest.mark.parametrize(
    ("rows", "first"),
    [(("951;0,5", "1,138;2"), [951.0, 1.138]), (("1;2", "1,138;2"), [1.0, 1.138]),
     (("0.5;2", "951;2"), [0.5, 951.0])],
)  # fmt: skip
def test_commas_are_decimal_where_the_file_says_so(
    rows: tuple[str, ...], first: list[float], tmp_path: Path
) -> None:
    data = text(tmp_path / "a.csv", "\n".join(["a;b;label", *(f"{r};x" for r in rows)]) + "\n")
    found = torch.cat([data.x_train, data.x_test])[:, 0].sort().values
    assert found.tolist() == pytest.approx(sorted(first))


def test_named_columns_and_columns_that_count_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(i, *row, "city") for i, row in enumerate(ROWS)]
    path = write(tmp_path / "a.csv", [("", *HEADER, "place"), *rows])
    named = read("table", path, test=0.25, columns=ColumnsConfig(features=["b"]))
    assert named.input_shape == (1,)
    with pytest.raises(DataError, match="'city', which is no number; name the columns"):
        read("table", path, test=0.25)
    write(path, [("id", *HEADER), *((i, *row) for i, row in enumerate(ROWS))])
    with caplog.at_level(logging.WARNING):
        assert read("table", path, test=0.25).input_shape == (2,)
    assert "column 'id' counts the rows" in caplog.text
    with pytest.raises(ConfigError, match=r"columns\.label: unknown column 'lable'.*'label'"):
        read("table", path, test=0.25, columns=ColumnsConfig(label="lable"))
    both = ColumnsConfig(image="a", features=["b"])
    with pytest.raises(ConfigError, match="a sample is a picture or numbers"):
        read("table", path, test=0.25, columns=both)
    with pytest.raises(ConfigError, match=r"image_size=8: the samples .* are numbers"):
        read("table", path, test=0.25, image_size=8)


def test_a_split_column_says_what_is_for_the_test(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = ["train", "Train", "test", "TEST", "val", "val", "training", "train"]
    rows = [(*row, part) for row, part in zip(ROWS, parts, strict=True)]
    path = write(tmp_path / "a.csv", [(*HEADER, "split"), *rows])
    data = read("table", path)
    assert data.x_train[:, 0].tolist() == [0, 1, 6, 7]
    assert data.x_test[:, 0].tolist() == [2, 3]
    assert "2 rows for validation are left aside" in caplog.text
    with pytest.raises(ConfigError, match=r"test=0\.2: .* says itself"):
        read("table", path, test=0.2)
    write(path, [(*HEADER, "split"), *((*row, "train") for row in ROWS)])
    with pytest.raises(DataError, match="names no row for the test"):
        read("table", path)
    write(path, [(*HEADER, "split"), *((*row, "fold 1") for row in ROWS)])
    with pytest.raises(DataError, match="row 1 holds 'fold 1'; expected train, test"):
        read("table", path)
    write(path, [(*HEADER, "split"), *((*r, ("train", "val")[i > 3]) for i, r in enumerate(ROWS))])
    assert len(read("table", path).y_test) == 4


@pytest.mark.parametrize(
    "times",
    [
        ["9", "9", "10", "10", "1", "1"],
        ["2026-01-09", "2026-01-09", "2026-01-10", "2026-01-10", "2025-12-31", "2025-12-31"],
        ["2026-01-09T10:00:00+02:00", "2026-01-09T10:00:00+02:00", "2026-01-09T09:00:00Z",
         "2026-01-09T09:00:00Z", "2026-01-09T09:00:00+09:00", "2026-01-09T09:00:00+09:00"],
    ],
    ids=["numbers", "dates", "zones"],
)  # fmt: skip
def test_classes_arrive_in_the_order_of_time(times: list[str], tmp_path: Path) -> None:
    rows = [(i, 0, "abc"[i // 2], t) for i, t in enumerate(times)]
    path = write(tmp_path / "a.csv", [(*HEADER, "time"), *rows])
    config = BenchmarkConfig("table", path=str(path), test=0.5, n_experiences=3)
    for seed in (0, 1):
        stream = class_stream(config, read("table", path, test=0.5), seed)
        assert stream.classes == [[2], [0], [1]]
    config.class_order = [1, 0, 2]
    assert class_stream(config, read("table", path, test=0.5), 0).classes == [[1], [0], [2]]
    for wrong in ("soon", ""):
        write(path, [(*HEADER, "time"), *rows[1:], (0, 0, "a", wrong)])
        with pytest.raises(DataError, match="column 'time'"):
            read("table", path, test=0.5)


def test_clients_are_kept_with_the_samples_for_training(tmp_path: Path) -> None:
    rows = [(*row, ("Oslo", "Bern", "Łódź")[i % 3]) for i, row in enumerate(ROWS)]
    path = write(tmp_path / "a.csv", [(*HEADER, "client"), *rows])
    data = read("table", path, test=0.25)
    assert data.client_names == ("Bern", "Oslo", "Łódź")
    assert data.clients is not None
    held = [data.client_names[c] for c in data.clients.tolist()]
    assert held == [("Oslo", "Bern", "Łódź")[int(a) % 3] for a in data.x_train[:, 0]]
    few = read("table", path, test=0.25, train_per_class=2)
    assert few.clients is not None
    assert len(few.clients) == 4
    other = write(tmp_path / "b.csv", [(*HEADER, "client"), *((*row, "Oslo") for row in ROWS)])
    assert read("table", other, test=0.25).content_hash != data.content_hash


def test_paths_of_pictures_are_relative_to_the_table(tmp_path: Path) -> None:
    path = table(tmp_path / "some place")
    expected = read("image_folder", folder(tmp_path / "folder"))
    assert read("table", path).content_hash == expected.content_hash
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace("files/", str(path.parent) + "/files/"), encoding="utf-8")
    assert read("table", path).content_hash == expected.content_hash
    path.write_text(content.replace("/0.png", "\\0.png"), encoding="utf-8")
    assert read("table", path).content_hash == expected.content_hash
    path.write_text(content.replace("/0.png", "/9.png"), encoding="utf-8")
    with pytest.raises(DataError, match=r"9\.png, which does not exist \(3 of 12 do not\)"):
        read("table", path)


def test_parquet_gives_the_same_data_and_lists_are_features(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    expected = text(tmp_path / "a.csv", GOOD)
    columns = dict(zip(HEADER, map(list, zip(*ROWS, strict=True)), strict=True))
    made = pyarrow.table(columns)
    parquet.write_table(made, tmp_path / "a.parquet")
    assert read("table", tmp_path / "a.parquet", test=0.25).content_hash == expected.content_hash
    coded = made.set_column(2, "label", made["label"].dictionary_encode())
    parquet.write_table(coded, tmp_path / "a.parquet")
    assert read("table", tmp_path / "a.parquet", test=0.25).content_hash == expected.content_hash
    listed = {"embedding": [[float(a), float(b)] for a, b, _ in ROWS], "label": columns["label"]}
    parquet.write_table(pyarrow.table(listed), tmp_path / "b.parquet")
    assert read("table", tmp_path / "b.parquet", test=0.25).content_hash == expected.content_hash
    listed["embedding"][3] = [1.0]
    parquet.write_table(pyarrow.table(listed), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="the lists of its rows differ in length"):
        read("table", tmp_path / "b.parquet", test=0.25)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as Parquet"):
        read("table", tmp_path / "b.parquet", test=0.25)
    write(tmp_path / "a.xlsx", [HEADER])
    with pytest.raises(DataError, match=r"neither \.csv nor \.parquet"):
        read("table", tmp_path / "a.xlsx", test=0.25)


def test_pictures_may_lie_in_the_table_itself(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    expected = read("image_folder", folder(tmp_path / "folder"))
    files = [tmp_path / "folder" / part / name / f"{k}.png" for part, name, k, _ in pictures()]
    contents = [file.read_bytes() for file in files]
    said = {"label": [name for _, name, _, _ in pictures()],
            "split": [part for part, _, _, _ in pictures()]}  # fmt: skip
    for images in (contents, [{"bytes": content, "path": None} for content in contents]):
        parquet.write_table(pyarrow.table({"image": images, **said}), tmp_path / "a.parquet")
        assert read("table", tmp_path / "a.parquet").content_hash == expected.content_hash
    damaged = {"image": [content[:60] for content in contents], **said}
    parquet.write_table(pyarrow.table(damaged), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds bytes that cannot be read as an image"):
        read("table", tmp_path / "a.parquet")


CELLS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(CELLS.map(lambda t: f"n{t.strip()}"), min_size=2, max_size=4, unique=True),
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2),
    delimiter=st.sampled_from(",;\t|"),
)
def test_what_csv_writes_is_read_back(
    names: list[str], values: list[float], delimiter: str, tmp_path: Path
) -> None:
    rows = [(*values, name, part) for name in names for part in ("train", "test")]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([(*HEADER, "split"), *rows])
    (tmp_path / "a.csv").write_bytes(buffer.getvalue().encode())
    data = read("table", tmp_path / "a.csv")
    assert data.class_names == sorted(names)
    assert torch.equal(data.x_train, torch.tensor([values] * len(names), dtype=torch.float32))
    assert np.array_equal(data.y_train, [sorted(names).index(name) for name in names])


def test_columns_that_float32_cuts_away_are_named(tmp_path: Path) -> None:
    rows = [f"{i},{1.7e9 + i},x" for i in range(8)]
    with pytest.warns(PrecisionWarning, match=r"column\(s\) 'b' vary .* subtract an offset"):
        text(tmp_path / "a.csv", lines(*rows))
