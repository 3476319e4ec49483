"""What a message says, what it costs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.federation.wire.codec import ERROR_BOUNDS
from protocl.federation.wire.messages import (
    Contribution,
    Limits,
    MessageReader,
    RejectedError,
    decode,
    encode,
)
from protocl.heads import LinearDiscriminant, Mahalanobis, NearestMean, Ridge
from protocl.memory.rows import class_id_of

DIM = 5
LEVELS = ("mean", "diagonal", "shared", "full")


def filled(level="mean", *, exact=True, seed=0, **options) -> PrototypeMemory:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(40, DIM, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, 4, (40,), generator=generator) * 1000 + 3
    memory = PrototypeMemory(DIM, level, exact=exact, fingerprint="b", **options)
    # Two updates, so that in floating point the low halves are not zero.
    return memory.update(features[:25], labels[:25]).update(features[25:], labels[25:])


def sent(memory, precision="exact", **fields):
    arrays, header = encode(Contribution(memory, "e", 1, **fields), precision)
    return decode(arrays, header, memory.empty_like())


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("raw_means", [True, False])
def test_exact_messages_arrive_bit_for_bit(level, exact, raw_means):
    memory = filled(level, exact=exact, raw_means=raw_means)
    arrived = sent(memory).memory
    for name, buffer in memory.named_buffers(recurse=False):
        assert torch.equal(arrived.get_buffer(name), buffer), name
    assert arrived.describe() == memory.describe()
    assert arrived.fingerprint == memory.fingerprint


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("precision", ERROR_BOUNDS)
@pytest.mark.parametrize("level", LEVELS)
def test_memories_without_samples_arrive_at_any_precision(level, precision, exact):
    # What a client sends that took everything back, and a server before anybody answered.
    empty = PrototypeMemory(DIM, level, exact=exact, raw_means=True, fingerprint="b")
    arrived = sent(empty, precision).memory
    assert len(arrived) == arrived.total == 0
    assert arrived.describe() == empty.describe()


@pytest.mark.parametrize("level", LEVELS)
def test_at_most_five_arrays_whatever_the_number_of_classes(level):
    memory = PrototypeMemory(DIM, level, raw_means=True)
    memory.update(torch.randn(500, DIM), torch.arange(500))
    for precision in ERROR_BOUNDS:
        arrays, _ = encode(Contribution(memory, "e", 1), precision)
        assert len(arrays) <= 5


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), size=st.sampled_from([1e-5, 1.0, 1e4]))
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("level", LEVELS)
def test_error_of_rounded_messages_stays_within_the_stated_bound(precision, level, seed, size):
    memory = PrototypeMemory(DIM, level)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(30, DIM, generator=generator, dtype=torch.float64) * size
    memory.update(features, torch.arange(30) % 3)
    arrived = sent(memory, precision).memory
    assert torch.equal(arrived.counts, memory.counts)
    allowed = ERROR_BOUNDS[precision] * memory.means.abs().amax(1, keepdim=True) * (1 + 1e-12)
    assert bool(((arrived.means - memory.means).abs() <= allowed).all())
    if level != "mean":
        true, got = memory.second_moment, arrived.second_moment
        rows = 1 if level == "shared" else len(memory)
        largest = true.reshape(rows, -1).abs().amax(1)[:, None]
        errors = (got - true).reshape(rows, -1).abs()
        assert bool((errors <= ERROR_BOUNDS[precision] * largest * (1 + 1e-9)).all())


def test_rounded_message_of_a_fixed_point_memory_is_a_fixed_point_memory():
    memory = filled("shared", exact=True)
    arrived = sent(memory, "float16").memory
    assert arrived.exact
    assert arrived.get_buffer("sum").dtype == torch.int64
    error = (arrived.means - memory.means).abs().max()
    assert 0 < error < memory.means.abs().max() * 2**-11 + memory.step


def test_smaller_precisions_make_smaller_messages():
    memory = PrototypeMemory(512).update(torch.randn(1000, 512), torch.arange(1000) % 100)

    def size(precision):
        arrays, _ = encode(Contribution(memory, "e", 1), precision)
        return sum(len(array.data) for array in arrays.values())

    assert size("exact") > 1.9 * size("float32") > 3.7 * size("float16") > 6.5 * size("int8")


@pytest.mark.parametrize("make", [NearestMean, LinearDiscriminant, Ridge, Mahalanobis])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_heads_of_rounded_statistics_classify(make, precision):
    """Ten clients of two classes; a ridge that trusts a rounded Gram matrix guesses (12 %)."""
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    head = make()
    exact, rounded = (head.new_memory(64, exact=True) for _ in range(2))
    for client in range(10):
        mine = ((y - client) % 10 < 2) & (torch.arange(len(y)) % 2 == client % 2)
        memory = exact.empty_like().update(x[mine], y[mine])
        exact.merge(memory)
        rounded.merge(sent(memory, precision).memory)

    def accuracy(memory):
        return float((make().fit(memory).predict(x) == y).double().mean())

    assert accuracy(rounded) > accuracy(exact) - (0.06 if precision == "int8" else 0.001)


def test_memories_of_names_share_ids_without_agreement():
    ids = {class_id_of(name): name for name in ("cat", "dog", "Größe")}
    memory = PrototypeMemory(2).update(torch.ones(3, 2), torch.tensor(list(ids)))
    assert dict(sent(memory, names=ids).names) == ids
    assert all(0 <= class_id < 2**62 for class_id in ids)


# -- what is refused ----------------------------------------------------------------------------


def refusal(memory, *, arrays=None, header=None, like=None, limits=None) -> str:
    packed, described = encode(Contribution(memory, "e", 1))
    for name, array in (arrays or {}).items():
        packed[name] = Array(array)
    for key, value in (header or {}).items():
        described[key] = value
    with pytest.raises(RejectedError) as caught:
        decode(packed, described, like or memory.empty_like(), limits)
    return caught.value.reason


def test_other_versions_and_formats_are_refused():
    assert refusal(filled(), header={"version": 2}) == "format"
    assert refusal(filled(), header={"format": "x"}) == "format"
    assert refusal(filled(), header={"precision": "float8"}) == "format"
    assert refusal(filled(), header={"precision": ["exact"]}) == "format"
    assert refusal(filled(), header={"kind": "steal"}) == "format"
    assert refusal(filled(), header={"seq": "1"}) == "format"


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", 2), ("precision", "float8"), ("fingerprint", "other"), ("statistics", "none"),
     ("kind", "steal"), ("epoch", 1), ("seq", "1")],
)  # fmt: skip
def test_each_header_is_checked_whatever_came_before(key, value):
    memory = filled()
    reader = MessageReader(memory.empty_like())
    packed, header = encode(Contribution(memory, "e", 1))
    damaged = header.copy()
    damaged[key] = value
    for _ in range(2):
        assert reader.read(packed, header).epoch == "e"
        with pytest.raises(RejectedError):
            reader.read(packed, damaged)


def test_empty_header_is_refused():
    packed, _ = encode(Contribution(filled(), "e", 1))
    with pytest.raises(RejectedError):
        decode(packed, ConfigRecord(), filled().empty_like())


def test_another_backbone_is_refused():
    like = PrototypeMemory(DIM, exact=True, fingerprint="other")
    assert refusal(filled(), like=like) == "fingerprint"
    assert refusal(filled(), header={"fingerprint": ""}) == "fingerprint"


@pytest.mark.parametrize(
    "like",
    [
        PrototypeMemory(DIM + 1, exact=True),
        PrototypeMemory(DIM, "shared", exact=True),
        PrototypeMemory(DIM, exact=False),
        PrototypeMemory(DIM, exact=True, step=2.0**-8),
        PrototypeMemory(DIM, exact=True, raw_means=True),
    ],
)
def test_other_statistics_are_refused(like):
    assert refusal(filled(), like=like) == "mismatch"


def test_wrong_shapes_and_types_are_refused():
    memory = filled()
    sums = memory.get_buffer("sum").numpy()
    assert refusal(memory, arrays={"sum": sums[:, :-1]}) == "shape"
    assert refusal(memory, arrays={"sum": sums[:-1]}) == "shape"
    assert refusal(memory, arrays={"sum": sums.astype(np.float64)}) == "shape"
    assert refusal(memory, arrays={"sum": np.array(1.0)}) == "shape"
    assert refusal(memory, arrays={"extra": sums}) == "shape"
    assert refusal(memory, arrays={"classes": np.zeros((3, 4), np.int64)}) == "shape"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("half", [0, 1])
def test_values_that_would_poison_a_sum_are_refused(value, half):
    memory = filled(exact=False)
    pair = np.stack([memory.get_buffer("sum").numpy(), memory.get_buffer("sum_low").numpy()])
    pair[half, 1, 2] = value
    assert refusal(memory, arrays={"sum": pair}) == "values"


@pytest.mark.parametrize("exact", [True, False])
def test_sums_without_samples_are_refused(exact):
    nothing = filled("shared", exact=exact).empty_like()
    arrays, _ = encode(Contribution(nothing, "e", 1))
    second = arrays["second"].numpy()
    assert sent(nothing).memory.total == 0
    assert refusal(nothing, arrays={"second": second + 1}) == "values"


def test_huge_fixed_point_values_are_refused():
    memory = filled()
    sums = memory.get_buffer("sum").numpy().copy()
    sums[0, 0] = np.iinfo(np.int64).min  # whose absolute value overflows
    assert refusal(memory, arrays={"sum": sums}) == "values"


def test_impossible_classes_and_counts_are_refused():
    memory = filled()
    classes = np.stack([memory.classes.numpy(), memory.counts.numpy()])

    def changed(row, column, value):
        twin = classes.copy()
        twin[row, column] = value
        return {"classes": twin}

    assert refusal(memory, arrays=changed(1, 0, 0)) == "bounds"
    assert refusal(memory, arrays=changed(1, 0, -4)) == "bounds"
    assert refusal(memory, arrays=changed(1, 0, 10**12)) == "bounds"
    assert refusal(memory, arrays=changed(0, 0, -1)) == "values"
    assert refusal(memory, arrays=changed(0, 0, classes[0, 1])) == "values"
    assert refusal(memory, arrays={"classes": classes[:, ::-1].copy()}) == "values"


def test_limits_are_kept():
    memory = filled()
    assert refusal(memory, limits=Limits(max_count=3)) == "bounds"
    assert refusal(memory, limits=Limits(max_classes=3)) == "bounds"
    assert refusal(memory, limits=Limits(max_bytes=100)) == "size"
    assert refusal(memory, limits=Limits(max_feature=0.01)) == "values"


@pytest.mark.parametrize("level", ["diagonal", "shared", "full"])
@pytest.mark.parametrize("exact", [True, False])
def test_negative_variance_is_refused(level, exact):
    memory = filled(level, exact=exact)
    arrays, _ = encode(Contribution(memory, "e", 1))
    second = arrays["second"].numpy()
    assert refusal(memory, arrays={"second": -second}) == "values"


def test_names_that_do_not_belong_to_the_ids_are_refused():
    memory = filled()
    assert refusal(memory, header={"class-names": ["a", "b", "c", "d"]}) == "names"
    assert refusal(memory, header={"class-names": ["a"]}) == "names"
    assert refusal(memory, header={"class-names": [1, 2, 3, 4]}) == "names"


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(position, value):
    """Whatever one byte becomes, decoding rejects it or gives a memory that can be merged."""
    memory = filled("diagonal", exact=False)
    arrays, header = encode(Contribution(memory, "e", 1))
    names = sorted(arrays)
    name = names[position % len(names)]
    data = bytearray(arrays[name].data)
    data[position % len(data)] = value
    old = arrays[name]
    damaged = ArrayRecord(dict(arrays.items()))
    damaged[name] = Array(old.dtype, old.shape, old.stype, bytes(data))
    try:
        arrived = decode(damaged, header, memory.empty_like()).memory
    except RejectedError:
        return
    merged = arrived + memory
    assert bool(torch.isfinite(merged.sums).all())


def test_decoding_leaves_the_template_alone():
    like = filled()
    before = like.copy()
    sent_memory = filled(seed=1)
    arrays, header = encode(Contribution(sent_memory, "e", 1))
    decode(arrays, header, like)
    assert_same(like, before, "the template of decode")
