"""Archives as users make them: labels, shapes and types of every kind, whole and damaged."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocl.data import BenchmarkConfig, build_benchmark, load_data
from protocl.data.labels import to_class_ids
from protocl.errors import ConfigError, DataError

FLOATS = ("float16", "float32", "float64", ">f4")
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEATURES = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def archive(path: Path, **changes: np.ndarray) -> BenchmarkConfig:
    """Six training and six test vectors of three classes."""
    arrays = {
        "x_train": FEATURES,
        "y_train": np.arange(6) % 3,
        "x_test": FEATURES,
        "y_test": np.arange(6) % 3,
        **changes,
    }
    np.savez(path, **arrays)
    return BenchmarkConfig(name="npz", path=str(path), n_experiences=3)


def both(labels: np.ndarray) -> dict[str, np.ndarray]:
    return {"y_train": labels, "y_test": labels}


NUMBERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
           "float16", "float32", "float64", ">i4", ">f8"]  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_whole_numbers_of_every_type_are_ids(kind: str, tmp_path: Path) -> None:
    data = load_data(archive(tmp_path / "a.npz", **both((np.arange(6) % 3).astype(kind))))
    assert data.y_train.tolist() == data.y_test.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.y_train.dtype == torch.int64
    assert data.class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    "labels",
    [
        np.array([False, True] * 3),
        np.array([[0], [1]] * 3),
        np.array(["ant", "bee"] * 3),
        np.array(["ant", "bee"] * 3).astype("S"),
    ],
    ids=["bool", "column", "text", "bytes"],
)
def test_truth_values_columns_and_texts_are_labels(labels: np.ndarray, tmp_path: Path) -> None:
    data = load_data(archive(tmp_path / "a.npz", **both(labels)))
    assert data.y_train.tolist() == [0, 1] * 3
    assert data.class_names == (["ant", "bee"] if labels.dtype.kind in "US" else ["0", "1"])


def test_texts_take_the_order_of_given_names(tmp_path: Path) -> None:
    labels = both(np.array(["bee", "ant"] * 3))
    config = archive(tmp_path / "a.npz", classes=np.array([b"ant", b"bee", b"cow"]), **labels)
    data = load_data(config)
    assert data.y_train.tolist() == [1, 0] * 3
    assert data.class_names == ["ant", "bee", "cow"]
    config = archive(tmp_path / "a.npz", classes=np.array(["ant"]), **labels)
    with pytest.raises(DataError, match=r"y_train holds the label 'bee', .* among the names: ant"):
        load_data(config)


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(3)[labels]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_hot, r"shape \(6, 3\).*give labels\.argmax\(1\)"),
        (lambda y: y - 1, r"label -1; .*np\.unique\(labels, return_inverse=True\)\[1\]"),
        (lambda y: y + 0.5, r"row 0 is 0\.5; expected whole numbers.*np\.unique"),
        (lambda y: np.where(y == 1, np.nan, y), "row 1 is nan"),
        (lambda y: y + 0j, r"complex128; expected whole numbers or texts.*np\.unique"),
        (lambda y: y.astype(object), r"Object arrays.*np\.array\(labels, dtype=str\)"),
    ],
    ids=["one-hot", "negative", "fraction", "nan", "complex", "object"],
)  # fmt: skip
def test_other_labels_are_refused_with_advice_that_works(
    change: Callable[[np.ndarray], np.ndarray], message: str, tmp_path: Path
) -> None:
    plain = np.arange(6) % 3
    labels = change(plain)
    with pytest.raises(DataError, match=message):
        load_data(archive(tmp_path / "a.npz", **both(labels)))
    advised = (
        labels.argmax(1) if labels.ndim == 2
        else np.array(labels, dtype=str) if labels.dtype == object
        else np.unique(labels, return_inverse=True)[1]
    )  # fmt: skip
    data = load_data(archive(tmp_path / "a.npz", **both(advised)))
    assert len(torch.unique(data.y_train)) == 3


def test_texts_and_numbers_do_not_mix(tmp_path: Path) -> None:
    config = archive(tmp_path / "a.npz", y_test=np.array(["0", "1", "2"] * 2))
    with pytest.raises(DataError, match=r"y_train and .*y_test: one holds texts, another numbers"):
        load_data(config)


@pytest.mark.parametrize("kind", ["int64", "uint64", "float64"])
def test_numbers_far_apart_are_names(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.array([10**6, 7, 10**9] * 2).astype(kind)
    data = load_data(archive(tmp_path / "a.npz", **both(labels)))
    assert data.y_train.tolist() == [1, 0, 2] * 2
    assert data.class_names == ["7", "1000000", "1000000000"]
    assert "labels up to 1000000000 for 3 classes" in caplog.text


def test_ids_with_gaps_stay_what_they_are(tmp_path: Path) -> None:
    data = load_data(archive(tmp_path / "a.npz", **both(np.array([0, 5, 9] * 2))))
    assert data.y_train.tolist() == [0, 5, 9] * 2
    assert data.n_classes == 10


@QUICK
@given(
    names=st.lists(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
        .map(lambda text: text.rstrip("\0") or "_"),  # NumPy drops zeros at the end
        min_size=1, max_size=6, unique=True,
    ),
    places=st.lists(st.integers(0, 5), min_size=1, max_size=12),
)  # fmt: skip
def test_any_texts_come_back_as_the_names_of_their_ids(names: list[str], places: list[int]) -> None:
    texts = [names[place % len(names)] for place in places]
    for array in (np.array(texts), np.array([text.encode() for text in texts])):
        (ids,), found = to_class_ids({"y": array})
        assert [found[i] for i in ids.tolist()] == texts
        assert found == sorted(set(texts))


@QUICK
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=5).map(tuple),
    kind=st.sampled_from([*FLOATS, "uint8", "int32", "bool",
                          "complex64", "U1"]),
)  # fmt: skip
def test_samples_of_any_shape_and_type_are_taken_or_refused(
    shape: tuple[int, ...], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    n = shape[0] if shape else 1
    x, y = np.zeros(shape, kind), np.zeros(n, np.int64)
    path = tmp_path_factory.mktemp("a") / "a.npz"
    config = archive(path, x_train=x, x_test=x, **both(y))
    fits = n > 0 and len(shape) == 2 and kind in (*FLOATS, "uint8", "int32", "bool")
    fits |= n > 0 and len(shape) == 3 and kind in (*FLOATS, "uint8")
    try:
        data = load_data(config)
    except DataError:
        assert not fits
        return
    assert kind in (*FLOATS, "uint8") or (len(shape) == 2 and kind in ("int32", "bool"))
    assert len(data.x_train) == n > 0
    assert data.x_train.numel() == x.size
    assert data.x_train.ndim in (2, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("part", ["x_train", "x_test"])
def test_what_is_no_finite_number_is_refused_with_its_row(
    value: float, part: str, tmp_path: Path
) -> None:
    x = FEATURES.astype(np.float64)
    x[4, 1] = value
    with pytest.raises(DataError, match=rf"{part}: row 4 holds .*1 of 6 rows"):
        load_data(archive(tmp_path / "a.npz", **{part: x}))


def test_damaged_archives_are_refused_as_data(tmp_path: Path) -> None:
    config = archive(tmp_path / "a.npz")
    file, draw = tmp_path / "a.npz", random.Random(0)
    np.savez_compressed(file, **dict(np.load(file)))
    whole, refused = file.read_bytes(), 0
    for _ in range(120):
        content = bytearray(whole)
        content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        try:
            load_data(config)
        except DataError:
            refused += 1
    assert refused > 80


def test_a_class_that_is_only_tested_is_refused_or_left_out(tmp_path: Path) -> None:
    config = archive(tmp_path / "a.npz", y_test=np.array([0, 1, 2, 3, 0, 3]))
    data = load_data(config)
    with pytest.raises(DataError, match=r"class 3 \('3'\) has test but no training samples"):
        build_benchmark(config, data, 0)
    config.class_order, config.n_experiences = [2, 0], 2
    stream = build_benchmark(config, data, 0).test_stream
    assert [sorted(e.dataset.targets) for e in stream] == [[2], [0, 0]]


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    config = archive(tmp_path / "a.npz", x_train=FEATURES[:0], y_train=np.zeros(0, np.int64))
    with pytest.raises(DataError, match="has no training samples"):
        load_data(config)


@pytest.mark.parametrize("setting", ["validation", "train_per_class", "test_per_class"])
def test_classes_that_are_left_out_need_no_samples(setting: str, tmp_path: Path) -> None:
    """Class 2 has a single sample, which matters only where it arrives."""
    labels = np.array([0, 0, 1, 1, 1, 2])
    config = archive(tmp_path / "a.npz", **both(labels))
    setattr(config, setting, 0.5 if setting == "validation" else 2)
    with pytest.raises(DataError, match=r"class 2 \('2'\)"):
        build_benchmark(config, load_data(config), 0)
    config.class_order, config.n_experiences = [1, 0], 2
    stream = build_benchmark(config, load_data(config), 0).train_stream
    assert [set(e.dataset.targets) for e in stream] == [{1}, {0}]
    config.class_order = [1, 7]
    with pytest.raises(ConfigError, match="class 7 does not exist"):
        build_benchmark(config, load_data(config), 0)


def test_splits_of_parts_need_samples_only_of_classes_that_are_used(tmp_path: Path) -> None:
    y = np.repeat([0, 1, 4], [4, 4, 1])
    np.savez(tmp_path / "o.npz", x_evaluation=np.zeros((9, 2), np.float32), y_evaluation=y)
    config = BenchmarkConfig(
        name="omniglot", path=str(tmp_path / "o.npz"), train_per_class=2, test_per_class=2
    )
    with pytest.raises(DataError, match=r"class 4 \('4'\) has 1 samples"):
        load_data(config)
    config.classes = 2
    assert load_data(config).y_train.tolist() == [0, 0, 1, 1]
