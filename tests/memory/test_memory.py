"""The memory's arithmetic against plain sums, its laws as properties, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.errors import ConfigError, DataError, FingerprintError
from protocl.heads import NearestMean
from protocl.memory.feature_maps import ReluProjection, Tukey

LEVELS = ("mean", "diagonal", "shared", "full")
DIM = 3


@st.composite
def batches(draw, most: int = 40):
    """Features of wildly different sizes with labels that have gaps."""
    samples = draw(st.integers(1, most))
    features = draw(
        arrays.arrays(np.float64, (samples, DIM), elements=st.floats(-1e3, 1e3, width=32))
    )
    labels = draw(
        arrays.arrays(np.int64, (samples,), elements=st.sampled_from([0, 2, 5, 9, 10**12]))
    )
    return torch.from_numpy(features), torch.from_numpy(labels)


def memory_of(batch, level="shared", exact=False) -> PrototypeMemory:
    return PrototypeMemory(DIM, level, exact=exact).update(*batch)


def same(a: PrototypeMemory, b: PrototypeMemory) -> None:
    assert_same(a, b, "law")


# -- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@given(batch=batches())
@settings(max_examples=40, deadline=None)
def test_statistics_are_the_plain_sums(batch, exact):
    features, labels = batch
    # Multiples of the step, so that fixed point rounds nothing.
    features = (features * 2**16).round() / 2**16
    memory = memory_of((features, labels), "full", exact)
    for row, class_id in enumerate(memory.classes):
        mine = features[labels == class_id]
        assert memory.counts[row] == len(mine)
        torch.testing.assert_close(memory.means[row], mine.mean(0), rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(memory.second_moment[row], mine.T @ mine)
        centred = mine - mine.mean(0)
        torch.testing.assert_close(memory.scatter()[row], centred.T @ centred, rtol=1e-6, atol=1e-7)


@given(batch=batches())
@settings(max_examples=30, deadline=None)
def test_lower_levels_follow_from_full(batch):
    full = memory_of(batch, "full")
    for level in LEVELS:
        same(full.at_level(level), memory_of(batch, level))


def test_scatter_by_level():
    batch = torch.randn(60, DIM, dtype=torch.float64), torch.arange(60) % 4
    full = memory_of(batch, "full").scatter()
    torch.testing.assert_close(memory_of(batch, "shared").scatter(), full.sum(0))
    torch.testing.assert_close(
        memory_of(batch, "diagonal").scatter(), full.diagonal(dim1=1, dim2=2)
    )


# -- laws -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", LEVELS)
@given(a=batches(), b=batches(), c=batches())
@settings(max_examples=15, deadline=None)
def test_memories_are_a_commutative_monoid_with_inverses(level, exact, a, b, c):
    a, b, c = (memory_of(batch, level, exact) for batch in (a, b, c))
    same((a + b) + c, a + (b + c))
    same(a + b, b + a)
    same(sum([a, b, c]), a + b + c)
    same(a + a.empty_like(), a)
    same((a + b) - b, a)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("level", LEVELS)
@given(batch=batches(), shards=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_any_sharding_in_any_order_equals_centralised(level, exact, batch, shards, seed):
    features, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    merged = PrototypeMemory(DIM, level, exact=exact)
    for shard in order.tensor_split(shards):
        merged += memory_of((features[shard], labels[shard]), level, exact)
    same(merged, memory_of(batch, level, exact))


@given(batch=batches())
@settings(max_examples=25, deadline=None)
def test_forgetting_a_class_equals_never_having_seen_it(batch):
    features, labels = batch
    memory = memory_of(batch, "full", exact=True)
    forgotten = int(labels[0])
    memory.forget([forgotten])
    kept = labels != forgotten
    same(memory, memory_of((features[kept], labels[kept]), "full", exact=True))


@pytest.mark.parametrize("exact", [False, True])
@given(batch=batches())
@settings(max_examples=15, deadline=None, suppress_health_check=[])
def test_file_round_trip(batch, exact, tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "m.safetensors"
    memory = memory_of(batch, "full", exact)
    memory.fingerprint = "backbone"
    memory.save(path)
    loaded = PrototypeMemory.load(path, fingerprint="backbone")
    assert_same(loaded, memory, "file", bits=True)
    assert (loaded.fingerprint, loaded.level) == ("backbone", "full")


def test_error_does_not_grow_with_the_number_of_batches():
    """20,000 batches of a number that float64 cannot hold exactly, in a naive sum and in ours."""
    batch = torch.full((1, 1), 0.1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    memory, naive = PrototypeMemory(1), torch.zeros(1, dtype=torch.float64)
    for _ in range(20_000):
        memory.update(*batch)
        naive += batch[0][0]
    exact = 20_000 * 0.1
    assert abs(float(memory.sums) - exact) <= np.spacing(exact)
    assert abs(float(naive) - exact) > 100 * np.spacing(exact)


def test_large_means_do_not_spoil_the_scatter():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5000, DIM, generator=generator, dtype=torch.float64)
    labels = torch.arange(5000) % 5
    near, far = memory_of((noise, labels)), memory_of((noise + 100, labels))
    torch.testing.assert_close(far.scatter(), near.scatter(), rtol=0, atol=5000 * 1e-10)


def test_unbalanced_classes_at_level_full_are_summed_in_pieces():
    """More samples of one class than one padded piece holds, next to classes of one sample."""
    labels = torch.cat([torch.zeros(5000, dtype=torch.int64), torch.arange(1, 40)])
    features = torch.randn(len(labels), 300, generator=torch.Generator().manual_seed(2))
    memory = PrototypeMemory(300, "full").update(features, labels)
    for class_id in (0, 7):
        mine = features[labels == class_id].double()
        torch.testing.assert_close(memory.second_moment[class_id], mine.T @ mine)


@pytest.mark.parametrize("exact", [False, True])
def test_products_of_more_features_than_a_piece_has_rows_for(exact):
    labels = torch.arange(80) % 2
    features = torch.randn(80, 2100, generator=torch.Generator().manual_seed(3))
    features = (features * 2**10).round() / 2**10
    memory = PrototypeMemory(2100, "shared", exact=exact).update(features, labels)
    torch.testing.assert_close(memory.second_moment, features.double().T @ features.double())
    again = memory.empty_like()
    for rows in torch.arange(80).split(53):
        again.update(features[rows], labels[rows])
    assert not exact or torch.equal(again.second_moment, memory.second_moment)
    torch.testing.assert_close(again.second_moment, memory.second_moment, rtol=1e-14, atol=1e-12)


# -- fixed point ----------------------------------------------------------------------------


def test_fixed_point_moves_a_feature_by_at_most_half_a_step():
    features = torch.randn(500, DIM, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(500)
    for step in (2.0**-16, 2.0**-4):
        memory = PrototypeMemory(DIM, exact=True, step=step).update(features, labels)
        assert float((memory.means - features).abs().max()) <= step / 2


@pytest.mark.parametrize("level", LEVELS)
def test_fixed_point_overflow_raises_and_changes_nothing(level):
    memory = PrototypeMemory(1, level, exact=True, step=2.0**-30)
    memory.update(torch.ones(1, 1) * 0.05, torch.zeros(1, dtype=torch.int64))
    before = memory.copy()
    with pytest.raises(OverflowError, match="larger step"):
        memory.update(torch.full((1, 1), 2.0**40), torch.tensor([5]))
    assert_same(memory, before, "after an overflow")


def test_a_batch_of_more_than_a_word_is_added_in_smaller_ones():
    features, labels = torch.full((2048, 1), 2.0**26), torch.zeros(2048, dtype=torch.int64)
    memory = PrototypeMemory(1, "diagonal", exact=True, step=1.0)
    with pytest.raises(OverflowError, match=r"2048 features .* in smaller batches, or .* larger"):
        memory.update(features, labels)
    for part in features.split(512):
        memory.update(part, labels[: len(part)])
    assert float(memory.squares) == 2048 * 2.0**52


@pytest.mark.parametrize("level", LEVELS)
def test_fixed_point_sums_that_pass_64_bits_raise(level):
    largest = 2.0**52 if level == "mean" else 2.0**26
    memory = PrototypeMemory(1, level, exact=True, step=1.0, moments="single")
    batch = torch.full((1000, 1), largest), torch.zeros(1000, dtype=torch.int64)
    memory.update(*batch)
    twin = memory.copy()

    def doubled_for_ever():
        while True:
            memory.merge(memory.copy())

    def updated_for_ever():
        while True:
            twin.update(*batch)

    for without_end in (doubled_for_ever, updated_for_ever):
        with pytest.raises(OverflowError, match="64"):
            without_end()


def test_fixed_point_holds_whole_numbers_up_to_2_to_the_53():
    batch = torch.tensor([[2.0**53]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    memory = PrototypeMemory(1, exact=True, step=1.0).update(*batch)
    assert memory.sum.tolist() == [[2**53]]
    with pytest.raises(OverflowError, match="does not fit fixed point with step 1"):
        memory.update(batch[0] * 1.5, batch[1])


def test_fixed_point_features_must_have_exact_squares():
    memory = PrototypeMemory(1, "shared", exact=True, step=1.0)
    with pytest.raises(OverflowError, match="square"):
        memory.update(torch.full((1, 1), 2.0**27), torch.zeros(1, dtype=torch.int64))


# -- what is refused ------------------------------------------------------------------------

X, Y = torch.zeros(4, DIM), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (torch.zeros(4, 5), Y, ValueError, r"\(4, 5\).*expected \(N, 3\)"),
        (torch.zeros(3), Y, ValueError, r"expected \(N, 3\)"),
        (X, Y[:2], ValueError, r"expected \(4,\)"),
        (X, Y[:, None], ValueError, r"expected \(4,\)"),
        (X.long(), Y, TypeError, "int64.*floating point"),
        (X, Y.float(), TypeError, "float32.*integers"),
        (X, Y.bool(), TypeError, "bool.*integers"),
        (X, Y - 1, ValueError, "label -1"),
        (X + float("nan"), Y, ValueError, "sample 0 are NaN"),
        (
            X.index_fill(0, torch.tensor([2]), float("inf")),
            Y,
            ValueError,
            "sample 2 are NaN or inf",
        ),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_bad_batches(features, labels, error, message, exact):
    with pytest.raises(error, match=message):
        PrototypeMemory(DIM, exact=exact).update(features, labels)


def test_an_empty_batch_changes_nothing():
    memory = PrototypeMemory(DIM, "full")
    revision = memory.revision
    memory.update(X[:0], Y[:0])
    assert (len(memory), memory.total, memory.revision) == (0, 0, revision)


def test_bad_arguments():
    for arguments, message in (
        ({"feature_dim": 0}, "positive"),
        ({"feature_dim": 2, "level": "median"}, "one of mean, diagonal"),
        ({"feature_dim": 2, "step": 0.0}, "positive quantisation"),
    ):
        with pytest.raises(ValueError, match=message):
            PrototypeMemory(**arguments)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (PrototypeMemory(4), "feature_dim is 3 here, 4"),
        (PrototypeMemory(3, "full"), "level is mean here, full"),
        (PrototypeMemory(3, exact=True), "exact is False here, True"),
        (PrototypeMemory(3, feature_map=Tukey()), "feature_map is identity here, tukey:0.5"),
    ],
)
def test_memories_that_do_not_fit_do_not_merge(other, message):
    with pytest.raises(ValueError, match=message):
        PrototypeMemory(3) + other


def test_another_backbone_is_refused_and_an_unnamed_one_adopts_the_name(tmp_path):
    mine, theirs = (PrototypeMemory(3, fingerprint=name).update(X, Y) for name in ("a", "b"))
    with pytest.raises(FingerprintError, match="a here, b in the other"):
        mine + theirs
    assert (PrototypeMemory(3) + theirs).fingerprint == "b"
    mine.save(tmp_path / "a.safetensors")
    with pytest.raises(FingerprintError, match="built from backbone a, not from b"):
        PrototypeMemory.load(tmp_path / "a.safetensors", fingerprint="b")


def test_what_was_never_added_cannot_be_subtracted():
    memory = PrototypeMemory(3).update(X, Y)
    for batch, message in (
        ((X, Y + 1), r"classes \[1\]: they are not"),
        ((X.repeat(2, 1), Y.repeat(2)), "8 samples of class 0: this memory has 4"),
        ((X + 1, Y), "never added"),
    ):
        with pytest.raises(ValueError, match=message):
            memory - PrototypeMemory(3).update(*batch)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda memory: memory + None, TypeError, "is a NoneType: expected a PrototypeMemory"),
        (lambda memory: 1 + memory, TypeError, "unsupported operand"),
        (lambda memory: memory.subtract(torch.ones(2)), TypeError, "is a Tensor: expected"),
        (lambda memory: NearestMean().fit(X), TypeError, r"takes a PrototypeMemory, got a Tensor"),
        (lambda memory: PrototypeMemory(3.0), ValueError, "feature_dim=3.0: expected a positive"),
        (lambda memory: PrototypeMemory(3, feature_map="unit"), TypeError, "feature_map='unit'"),
    ],
)
def test_what_is_no_memory_is_named(action, error, message):
    memory = PrototypeMemory(3).update(X, Y)
    with pytest.raises(error, match=message):
        action(memory)
    assert "a" not in memory


def test_splitting_a_shared_moment_is_refused():
    memory = PrototypeMemory(3, "shared").update(X, Y)
    with pytest.raises(ValueError, match="cannot be split"):
        memory.subset([0])
    with pytest.raises(ValueError, match="build the memory with level='full'"):
        memory.at_level("full")
    assert memory.at_level("mean").subset([0]).total == 4
    with pytest.raises(KeyError, match=r"\[3\]"):
        memory.at_level("mean").subset([0, 3])


def test_reading_what_is_not_kept_is_refused():
    with pytest.raises(ValueError, match="keeps no second moment"):
        PrototypeMemory(3).update(X, Y).second_moment  # noqa: B018
    with pytest.raises(ValueError, match="raw_means=True"):
        PrototypeMemory(3, feature_map=Tukey()).update(X, Y).unmapped_means  # noqa: B018


# -- files ----------------------------------------------------------------------------------


def test_unusable_files_are_named(tmp_path):
    path = tmp_path / "memory.safetensors"
    with pytest.raises(DataError, match="does not exist"):
        PrototypeMemory.load(path)
    PrototypeMemory(3).update(X, Y).save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="not a readable memory file"):
        PrototypeMemory.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "memory.safetensors"
    PrototypeMemory(3).update(X, Y).save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        PrototypeMemory(3).update(X + 1, Y).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_projection_is_drawn_again_from_its_seed(tmp_path):
    path = tmp_path / "memory.safetensors"
    memory = PrototypeMemory(3, "shared", feature_map=ReluProjection(3, 8, seed=5)).update(X + 1, Y)
    memory.save(path)
    loaded = PrototypeMemory.load(path)
    assert torch.equal(loaded.feature_map.weight, memory.feature_map.weight)
    given_weights = ReluProjection(3, 8, weight=torch.ones(3, 8))
    PrototypeMemory(3, feature_map=given_weights).update(X, Y).save(path)
    with pytest.raises(ConfigError, match="pass feature_map="):
        PrototypeMemory.load(path)
    assert PrototypeMemory.load(path, feature_map=given_weights).total == 4


def test_state_of_another_kind_is_refused():
    state = PrototypeMemory(3, "full").update(X, Y).state_dict()
    with pytest.raises(ValueError, match="level is mean in this memory, full in the saved one"):
        PrototypeMemory(3).load_state_dict(state)


def test_a_memory_inside_a_model_is_part_of_its_state(tmp_path):
    model = torch.nn.ModuleDict({"memory": PrototypeMemory(3).update(X + 2, Y)})
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = torch.nn.ModuleDict({"memory": PrototypeMemory(3)})
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert_same(fresh["memory"], model["memory"], "nested state")


def test_importing_protocl_draws_and_prints_nothing():
    script = (
        "import torch; state = torch.get_rng_state(); import protocl; "
        "assert torch.equal(state, torch.get_rng_state())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_ids": torch.tensor([3, 1])}, "out of order"),
        ({"class_ids": torch.tensor([-1, 1])}, "negative"),
        ({"count": torch.tensor([4, 0])}, "without samples"),
        ({"sum": torch.zeros(2, 4, dtype=torch.float64)}, r"\(2, 4\).*expected \(2, 3\)"),
        ({"sum": torch.zeros(2, 3)}, "float32.*float64"),
        ({"sum": torch.full((2, 3), float("nan"), dtype=torch.float64)}, "NaN"),
    ],
)
def test_statistics_that_cannot_be_are_refused(change, message):
    memory = PrototypeMemory(3).update(X, torch.tensor([0, 0, 1, 1]))
    tensors = {**dict(memory.named_buffers(recurse=False)), **change}
    with pytest.raises(DataError, match=message):
        PrototypeMemory.from_parts(memory, tensors)
    del tensors["sum"]
    with pytest.raises(DataError, match="lack the array 'sum'"):
        PrototypeMemory.from_parts(memory, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("exact", [False, True])
def test_half_precision_features_are_summed_without_further_rounding(dtype, level, exact):
    features = torch.rand(600, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(600) % 3
    half = PrototypeMemory(5, level, exact=exact, step=2.0**-20).update(features, labels)
    wide = PrototypeMemory(5, level, exact=exact, step=2.0**-20)
    wide.update(features.to(torch.float64), labels)
    for (name, one), other in zip(half.named_buffers(), wide.buffers(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("exact", [False, True])
def test_means_come_block_by_block(exact, monkeypatch):
    monkeypatch.setattr("protocl.memory.derived._PIECE", 10)
    memory = PrototypeMemory(4, exact=exact).update(torch.rand(30, 4), torch.arange(30) % 7)
    blocks = list(memory.mean_blocks())
    assert [rows.stop - rows.start for rows, _ in blocks] == [2, 2, 2, 1]
    assert torch.equal(torch.cat([block for _, block in blocks]), memory.means)


@pytest.mark.parametrize("level", LEVELS)
def test_a_memory_shares_nothing_with_the_batch_it_began_with(level):
    features, labels = torch.rand(10, 3), torch.arange(10) % 2
    memory = PrototypeMemory(3, level).update(features, labels)
    twin = memory.copy()
    features.zero_()
    labels.zero_()
    same(memory, twin)


def test_the_revision_of_a_class_changes_with_its_statistics():
    memory = PrototypeMemory(2, "full").update(torch.rand(4, 2), torch.tensor([1, 1, 5, 7]))
    first = memory.class_revisions()
    assert list(first) == [1, 5, 7]
    other = PrototypeMemory(2, "full").update(torch.rand(2, 2), torch.tensor([5, 9]))
    second = memory.merge(other).class_revisions()
    assert {c for c in first if second[c] == first[c]} == {1, 7}
    assert memory.copy().class_revisions() == second
    third = memory.subtract(other).class_revisions()
    assert list(third) == [1, 5, 7]
    assert {c for c in third if third[c] == second[c]} == {1, 7}
    memory.load_state_dict(memory.state_dict())
    assert not set(memory.class_revisions().values()) & set(third.values())


def test_a_copy_that_changes_leaves_the_revisions_of_its_original():
    features, labels = torch.rand(12, 3), torch.arange(12) % 3
    memory = PrototypeMemory(3, "full").update(features, labels).update(features[:2], labels[:2])
    before, twin = memory.class_revisions(), memory.copy()
    assert twin.class_revisions() == before
    twin.update(features[labels == 2], labels[labels == 2])
    assert memory.class_revisions() == before
    assert {c for c, r in twin.class_revisions().items() if r != before[c]} == {2}
