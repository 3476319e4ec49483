"""Class-incremental streams: order, cut, completeness, and fitness for Avalanche."""

from collections.abc import Iterator
from importlib.resources import files

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from protocl.data import (
    ArrayData,
    BenchmarkConfig,
    TensorData,
    build_benchmark,
    class_order,
    class_stream,
    experience_sizes,
    hold_out,
    load_data,
)
from protocl.errors import ConfigError, DataError
from protocl.registry import BENCHMARKS


@pytest.fixture(scope="module")
def digits() -> ArrayData:
    return load_data(BenchmarkConfig())


CONFIGS = files("protocl.configs")


def shipped(name: str) -> BenchmarkConfig:
    """A configuration as the command line makes it from a shipped file."""
    values = OmegaConf.create((CONFIGS / "benchmark" / f"{name}.yaml").read_text())
    values.pop("backbone", None)  # picked with the benchmark, and no setting of it
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BenchmarkConfig), values))
    assert isinstance(config, BenchmarkConfig)
    return config


def toy(n_classes: int = 6, each: int = 4) -> ArrayData:
    """Data whose single pixel is its row number."""
    y = torch.arange(n_classes).repeat(each)
    x = torch.arange(len(y), dtype=torch.uint8).view(-1, 1, 1, 1)
    names = [str(label) for label in range(n_classes)]
    return ArrayData(x, y, x[:n_classes], y[:n_classes], names, "toy")


def roots(dataset: object) -> Iterator[TensorData]:
    """The data sets below Avalanche's wrappers."""
    if isinstance(dataset, TensorData):
        yield dataset
        return
    for inner in getattr(dataset, "_datasets", getattr(dataset, "_flat_data", None) or ()):
        yield from roots(inner)


def test_every_sample_is_in_exactly_one_experience(digits: ArrayData) -> None:
    benchmark = build_benchmark(BenchmarkConfig(n_experiences=5), digits, seed=3)
    for stream, y in (
        (benchmark.train_stream, digits.y_train),
        (benchmark.test_stream, digits.y_test),
    ):
        labels = [int(t) for experience in stream for t in experience.dataset.targets]
        assert sorted(labels) == sorted(y.tolist())
        classes = [c for e in stream for c in e.classes_in_this_experience]
        assert sorted(classes) == list(range(10))
        for experience in stream:
            assert set(experience.dataset.targets) == set(experience.classes_in_this_experience)


def test_samples_keep_their_class_id_and_come_as_floats() -> None:
    data = toy()
    benchmark = build_benchmark(BenchmarkConfig(n_experiences=3), data, seed=0)
    for experience in benchmark.train_stream:
        for x, y, t in experience.dataset:
            row = round(float(x) * 255)
            assert x.dtype == torch.float32
            assert y == int(data.y_train[row])
            assert t == 0


def test_loader_gives_batches_of_three_with_the_images_of_tensor_data(digits: ArrayData) -> None:
    benchmark = build_benchmark(BenchmarkConfig(), digits, seed=0)
    dataset = benchmark.train_stream[0].dataset
    x, y, t = next(iter(DataLoader(dataset, batch_size=8, collate_fn=dataset.collate_fn)))
    assert x.shape == (8, 1, 8, 8)
    assert y.shape == t.shape == (8,)
    assert x.max() <= 1


def test_global_random_state_is_untouched(digits: ArrayData) -> None:
    import numpy as np

    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    build_benchmark(BenchmarkConfig(validation=0.2), digits, seed=9)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.random.get_state()[1].tolist() == numpy_before


def test_seed_1993_is_the_order_usual_in_the_literature() -> None:
    labels = torch.arange(100)
    order = class_order(BenchmarkConfig(order_seed=1993), labels, seed=0)
    # First classes of CIFAR-100 as printed by PyCIL and its descendants.
    assert order[:12] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89]


def test_order_follows_its_seed_or_that_of_the_run() -> None:
    labels = torch.arange(20).repeat(2)
    plain = BenchmarkConfig()
    assert class_order(plain, labels, 1) == class_order(plain, labels, 1)
    assert class_order(plain, labels, 1) != class_order(plain, labels, 2)
    fixed = BenchmarkConfig(order_seed=5)
    assert class_order(fixed, labels, 1) == class_order(fixed, labels, 2)
    assert class_order(BenchmarkConfig(shuffle_classes=False), labels, 1) == list(range(20))


def test_given_order_is_kept_and_may_leave_classes_out() -> None:
    config = BenchmarkConfig(class_order=[5, 0, 3, 1], n_experiences=2)
    benchmark = build_benchmark(config, toy(), seed=0)
    classes = [set(e.classes_in_this_experience) for e in benchmark.train_stream]
    assert classes == [{5, 0}, {3, 1}]
    assert sum(len(e.dataset) for e in benchmark.test_stream) == 4


@pytest.mark.parametrize(
    ("order", "message"),
    [([0, 6], "class 6 does not exist"), ([1, 1], "class 1 appears twice"), ([], "is empty")],
)
def test_wrong_order_is_refused(order: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        class_order(BenchmarkConfig(class_order=order), toy().y_train, 0)


@pytest.mark.parametrize(
    ("config", "n_classes", "sizes"),
    [
        (BenchmarkConfig(n_experiences=5), 10, [2] * 5),
        (BenchmarkConfig(n_experiences=1), 10, [10]),
        (BenchmarkConfig(protocol="B50-Inc10"), 100, [50] + [10] * 5),
        (BenchmarkConfig(protocol="B0-Inc10"), 100, [10] * 10),
        (BenchmarkConfig(protocol="b4-inc3"), 10, [4, 3, 3]),
        (BenchmarkConfig(base_classes=40, increment=20), 100, [40, 20, 20, 20]),
        (BenchmarkConfig(increment=20), 600, [20] * 30),
    ],
)
def test_sizes(config: BenchmarkConfig, n_classes: int, sizes: list[int]) -> None:
    assert experience_sizes(config, n_classes) == sizes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BenchmarkConfig(n_experiences=3), r"does not divide 10 classes; valid: 1, 2, 5, 10"),
        (BenchmarkConfig(n_experiences=0), r"n_experiences=0 does not divide"),
        (BenchmarkConfig(n_experiences=20), r"n_experiences=20 does not divide"),
        (BenchmarkConfig(n_experiences=None), r"protocol=B0-Inc10"),
        (BenchmarkConfig(protocol="B4-Inc4"), r"the 6 classes after.*valid: 1, 2, 3, 6"),
        (BenchmarkConfig(protocol="B10-Inc1"), r"base session is too large"),
        (BenchmarkConfig(protocol="B0-Inc0"), r"valid: 1, 2, 5, 10"),
        (BenchmarkConfig(protocol="50/10"), r"expected B<base classes>-Inc<increment>"),
        (BenchmarkConfig(protocol="B0-Inc5", increment=5), r"twice"),
        (BenchmarkConfig(base_classes=5), r"needs benchmark\.increment"),
        (BenchmarkConfig(base_classes=-2, increment=2), r"does not fit 10 classes"),
    ],
)
def test_cut_that_does_not_come_out_even_is_refused(config: BenchmarkConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experience_sizes(config, 10)


@settings(deadline=None)
@given(n=st.integers(1, 60), base=st.integers(0, 60), increment=st.integers(1, 60))
def test_sizes_always_use_every_class(n: int, base: int, increment: int) -> None:
    config = BenchmarkConfig(protocol=f"B{base}-Inc{increment}")
    try:
        sizes = experience_sizes(config, n)
    except ConfigError:
        assert base >= n or (n - base) % increment
    else:
        assert sum(sizes) == n
        assert sizes[1:] == [increment] * (len(sizes) - 1)
        assert sizes[0] == (base or increment)


@pytest.mark.parametrize(
    ("name", "n_classes", "n_experiences"),
    [
        ("digits", 10, 5),
        ("split_mnist", 10, 5),
        ("split_fashion_mnist", 10, 5),
        ("split_cifar10", 10, 5),
        ("split_cifar100", 100, 10),
        ("omniglot", 600, 30),
    ],
)
def test_shipped_benchmarks_cut_their_classes_evenly(
    name: str, n_classes: int, n_experiences: int
) -> None:
    config = shipped(name)
    assert config.name in BENCHMARKS.names()
    assert config.classes in (None, n_classes)
    assert len(experience_sizes(config, n_classes)) == n_experiences


def test_every_shipped_benchmark_fits_the_schema() -> None:
    names = [path.name.removesuffix(".yaml") for path in (CONFIGS / "benchmark").iterdir()]
    assert {shipped(name).name for name in names} <= set(BENCHMARKS.names())


def test_base_session_reaches_the_benchmark(digits: ArrayData) -> None:
    benchmark = build_benchmark(BenchmarkConfig(protocol="B4-Inc2"), digits, seed=1)
    sizes = [len(e.classes_in_this_experience) for e in benchmark.train_stream]
    assert sizes == [4, 2, 2, 2]
    order = class_order(BenchmarkConfig(), digits.y_train, 1)
    assert set(benchmark.train_stream[0].classes_in_this_experience) == set(order[:4])


@pytest.mark.parametrize("task_labels", [False, True])
def test_task_labels(task_labels: bool) -> None:
    config = BenchmarkConfig(n_experiences=3, task_labels=task_labels)
    benchmark = build_benchmark(config, toy(), seed=0)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        expected = [0, 1, 2] if task_labels else [0, 0, 0]
        assert [e.task_label for e in stream] == expected
        assert [e.dataset[0][2] for e in stream] == expected


def test_a_class_without_test_samples_is_named() -> None:
    data = toy()
    data = ArrayData(data.x_train, data.y_train, data.x_test[:5], data.y_test[:5],
                     data.class_names, "toy")  # fmt: skip
    with pytest.raises(DataError, match=r"class 5 \('5'\) has training but no test samples"):
        build_benchmark(BenchmarkConfig(n_experiences=3), data, seed=0)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31 - 1),
)
def test_held_out_samples_are_disjoint_and_stratified(
    sizes: list[int], share: float, seed: int
) -> None:
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = torch.arange(len(y), dtype=torch.float32).view(-1, 1)
    data = ArrayData(x, y, x + 1000, y, [str(c) for c in range(len(sizes))], "toy")
    held = hold_out(data, share, seed)
    rows = torch.cat([held.x_train, held.x_test]).flatten().sort().values
    assert torch.equal(rows, x.flatten())
    assert torch.equal(held.y_test, y[held.x_test.flatten().long()])
    for taken, size in zip(torch.bincount(held.y_test).tolist(), sizes, strict=True):
        assert 1 <= taken <= size - 1
        assert abs(taken - share * size) <= 1
    again = hold_out(data, share, seed)
    assert torch.equal(held.x_test, again.x_test)


def test_validation_takes_the_place_of_the_test_data(digits: ArrayData) -> None:
    benchmark = build_benchmark(BenchmarkConfig(validation=0.2), digits, seed=0)
    n_test = sum(len(e.dataset) for e in benchmark.test_stream)
    n_train = sum(len(e.dataset) for e in benchmark.train_stream)
    assert n_test + n_train == len(digits.x_train)
    assert n_test == pytest.approx(0.2 * len(digits.x_train), abs=10)


def test_wrong_validation_is_refused() -> None:
    for share in (1.0, -0.1):
        with pytest.raises(ConfigError, match="validation"):
            build_benchmark(BenchmarkConfig(n_experiences=3, validation=share), toy(), seed=0)
    with pytest.raises(DataError, match=r"class 0 .* has one training sample"):
        hold_out(toy(each=1), 0.5, 0)


def test_the_root_of_both_streams_is_tensor_data() -> None:
    data = toy()
    benchmark = build_benchmark(BenchmarkConfig(n_experiences=3), data, seed=0)
    found = {id(root.x) for root in roots(benchmark.train_stream[0].dataset._flat_data)}
    assert found == {id(data.x_train)}


@pytest.mark.parametrize(("order", "said"), [([1], True), ([1, 0], False)])
def test_a_stream_of_one_class_is_said_to_prove_nothing(
    order: list[int], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class_stream(BenchmarkConfig(n_experiences=1, class_order=order), toy(), seed=0)
    assert ("one class only: accuracy says nothing" in caplog.text) is said
