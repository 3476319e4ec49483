"""Data in a program's memory as the benchmark of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils.data import TensorDataset

import protocl
from protocl.config.compose import load as load_settings
from protocl.data import BenchmarkConfig, load_data
from protocl.errors import ConfigError, DataError, PrecisionWarning
from protocl.python.own_data import with_files

X = np.random.default_rng(0).normal(size=(24, 3)) + 4 * np.eye(3)[np.arange(24) % 3]
Y = np.array(["ant", "bee", "cow"])[np.arange(24) % 3]


class Absent:
    """What pandas has where there is no text: no comparison with it is true or false."""

    def __repr__(self) -> str:
        return "<NA>"

    def __ne__(self, other: object) -> bool:
        raise TypeError("ambiguous")

    __hash__ = None  # type: ignore[assignment]


def content(benchmark: Any, root: Path, **more: Any) -> str:
    """The hash of the data that a benchmark is written to files as."""
    settings = with_files(
        {"benchmark": benchmark, "benchmark.root": str(root), "benchmark.test": 0.25, **more}
    )
    keys = {key.removeprefix("benchmark."): value for key, value in settings.items()}
    return load_data(BenchmarkConfig(**keys)).content_hash


def test_what_holds_the_same_samples_is_the_same_data(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X.astype(np.float32), columns=["a", "b", "c"]).assign(label=Y)
    numbered = torch.arange(24) % 3
    tensors = TensorDataset(torch.tensor(X, dtype=torch.float32), numbered)
    tensors.classes = ["ant", "bee", "cow"]  # type: ignore[attr-defined]
    items = [(x.astype(np.float32), y) for x, y in zip(X, Y, strict=True)]
    forms = [
        (X, Y), (X.tolist(), Y.tolist()), (torch.tensor(X), Y.astype(object)),
        (scipy.sparse.csr_matrix(X), pandas.Series(Y)), frame, tensors, items and Items(items),
    ]  # fmt: skip
    assert len({content(form, tmp_path) for form in forms}) == 1
    assert len(list((tmp_path / "given").glob("*.npz"))) <= 3


class Items:
    """What has a length and is indexed, and no more."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row]


def test_parts_are_kept(tmp_path: Path) -> None:
    parts = (X[:12], Y[:12], X[12:], Y[12:])
    settings = with_files({"benchmark": parts, "benchmark.root": tmp_path})
    data = load_data(BenchmarkConfig("npz", path=settings["benchmark.path"]))
    assert [len(data.y_train), len(data.y_test)] == [12, 12]
    again = with_files({"benchmark": {"name": data, "n_experiences": 3, "root": tmp_path}})
    assert again["benchmark.n_experiences"] == 3
    path = again["benchmark.path"]
    assert load_data(BenchmarkConfig("npz", path=path)).content_hash == data.content_hash
    pair = Items(list(zip(X[:12], Y[:12], strict=True))), Items(list(zip(X[12:], Y[12:],
                                                                         strict=True)))  # fmt: skip
    path = with_files({"benchmark": pair, "benchmark.root": tmp_path})["benchmark.path"]
    assert load_data(BenchmarkConfig("npz", path=path)).content_hash == data.content_hash


def test_a_run_on_them_can_be_run_again_from_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = {"benchmark.test": 0.25, "benchmark.n_experiences": 3, "benchmark.root": "root"}
    (run,) = protocl.run(benchmark=(X, Y), strategy="slda", tracker=[], **more)
    assert run.metrics.stream_accuracy[-1] > 0.6
    (file,) = tmp_path.glob("runs/*/*/config.yaml")
    (config,) = load_settings([f"experiment={file}"])
    assert load_data(config.benchmark).class_names == ["ant", "bee", "cow"]
    assert config.backbone.name == "auto"


def test_a_library_that_saves_itself_is_read_as_it_reads_itself(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {name: X[:, i].astype(np.float32) for i, name in enumerate("abc")}
    table = datasets.Dataset.from_dict({**columns, "label": Y})
    assert content(table, tmp_path) == content((X, Y), tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (object(), "expected a name, a data set of PyTorch, arrays"),
        ((X, Y, X), "a tuple of 3 arrays"),
        ((X, [None, *Y[1:]]), r"^benchmark=\(x, y\): y: row 0 is None"),
        ((X, [*Y[:3], np.nan, *Y[4:]]), r"y: row 3 is nan"),
        ((X, [*Y[:2], Absent(), *Y[3:]]), r"y: row 2 is <NA>"),
        ((X, [None, *range(23)]), r"y: row 0 is None"),
        ((np.where(X > 4, np.nan, X), Y), r"^benchmark=\(x, y\): x: row 0 holds nan"),
        ((X, Y[:-1]), r"24 samples in x, 23 labels in y"),
        ((X, np.eye(3)[np.arange(24) % 3]), r"benchmark=\(x, y\): y has shape .*argmax"),
        (([["a"]], ["b"]), r"x is <U1; expected numbers"),
        (Items([1, 2]), r"item 0 is a int; expected \(x, y\)"),
    ],
)
def test_other_things_are_refused(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        with_files({"benchmark": data, "benchmark.root": str(tmp_path)})
    assert not list(tmp_path.rglob("*.npz"))


def test_features_of_every_type_are_taken(tmp_path: Path) -> None:
    half = torch.tensor(X).bfloat16()
    assert content((half, Y), tmp_path) == content((half.float(), Y), tmp_path)
    whole = X.round().astype(np.int64)
    assert content((whole, Y), tmp_path) == content((whole.astype(np.float32), Y), tmp_path)
    with pytest.warns(PrecisionWarning, match=r"benchmark=\(x, y\): x: column\(s\) 0, 1, 2"):
        content((X + 1.7e9, Y), tmp_path)


def test_names_and_settings_stay_as_they_are() -> None:
    for settings in ({"benchmark": "digits"}, {"benchmark": {"name": "digits"}}, {"seed": 1},
                     {"benchmark": ["digits", "split_mnist"]}):  # fmt: skip
        assert with_files(settings) == settings
    with pytest.raises(ConfigError):
        protocl.run({"benchmark": 3}, strategy="slda")
