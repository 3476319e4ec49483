"""Every door by which tensors come into a memory: layout, ownership, mode, type and soundness."""

from __future__ import annotations

import copy
import io
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.checks import assert_same
from protocl.errors import DataError, PrecisionWarning
from protocl.heads import LinearDiscriminant, NearestMean, Ridge
from protocl.heads.bayesian.posterior import ConjugatePosterior
from protocl.heads.bayesian.priors import SharedPrior
from protocl.memory.batch import LEVELS
from protocl.memory.feature_maps import ReluProjection
from protocl.memory.summation import add_compensated_

every_level = pytest.mark.parametrize("level", LEVELS)


def batch(samples: int = 30, dim: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, dim, generator=generator)
    return features, torch.arange(samples) % 3 * 5


def buffers(memory: PrototypeMemory) -> dict[str, torch.Tensor]:
    return dict(memory.named_buffers(recurse=False))


def fortran(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers with strides in the other order."""
    turned = tensor.permute(*range(tensor.ndim)[::-1]).contiguous()
    return turned.permute(*range(tensor.ndim)[::-1])


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers as every other element of a larger tensor."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


# -- contiguous and owned -----------------------------------------------------------------------


def from_parts(memory, change):
    changed = {name: change(tensor) for name, tensor in memory.parts().items()}
    return PrototypeMemory.from_parts(memory, changed)


def from_buffers(memory, change):
    changed = {name: change(tensor) for name, tensor in buffers(memory).items()}
    return PrototypeMemory.from_parts(memory, changed)


def from_state(memory, change, **options):
    state = {
        name: change(value) if isinstance(value, torch.Tensor) else value
        for name, value in memory.state_dict().items()
    }
    fresh = memory.empty_like()
    fresh.load_state_dict(state, **options)
    return fresh


def from_changed_buffers(memory, change, door):
    for name, buffer in buffers(memory).items():
        setattr(memory, name, change(buffer))
    return door(memory)


DOORS = {
    "from_parts": from_parts,
    "from_buffers": from_buffers,
    "state_dict": from_state,
    "state_dict assigned": lambda m, change: from_state(m, change, assign=True),
    "copy": lambda m, change: from_changed_buffers(m, change, PrototypeMemory.copy),
    "deepcopy": lambda m, change: from_changed_buffers(m, change, copy.deepcopy),
    "pickle": lambda m, change: from_changed_buffers(
        m, change, lambda x: pickle.loads(pickle.dumps(x))
    ),
    "merge": lambda m, change: m.empty_like().merge(from_changed_buffers(m, change, lambda x: x)),
    "subset": lambda m, change: from_changed_buffers(
        m, change, lambda x: x.subset(x.classes) if x.level != "shared" else x.copy()
    ),
    "to": lambda m, change: from_changed_buffers(m, change, PrototypeMemory.copy).to("cpu"),
}


@every_level
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("change", [fortran, expanded])
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_sums_grow_whatever_the_layout_of_what_came_in(level, exact, change, door):
    memory = PrototypeMemory(4, level, exact=exact).update(*batch())
    expected = memory.copy().update(*batch(seed=1))
    found = door(memory, change)
    assert all(buffer.is_contiguous() for buffer in found.buffers())
    assert_same(found.update(*batch(seed=1)), expected, "after an update")


@every_level
@pytest.mark.parametrize(
    "door", [from_parts, from_buffers, from_state, DOORS["state_dict assigned"]]
)
def test_two_memories_from_one_dictionary_do_not_change_together(level, door):
    source = PrototypeMemory(4, level).update(*batch())
    one, other = (door(source, lambda tensor: tensor) for _ in range(2))
    before = source.copy()
    one.update(*batch())
    assert_same(other, before, "the other memory", bits=True)
    assert_same(source, before, "the source", bits=True)


def test_a_sum_that_would_go_to_a_copy_is_an_error():
    high = torch.zeros(4, 3, dtype=torch.float64).T
    with pytest.raises(RuntimeError, match="view"):
        add_compensated_(high, torch.zeros_like(high), torch.ones(3, 4, dtype=torch.float64))


# -- inference mode and autocast ------------------------------------------------------------------


@every_level
@pytest.mark.parametrize("exact", [False, True])
def test_a_memory_used_in_inference_mode_can_be_used_outside(level, exact):
    expected = PrototypeMemory(4, level, exact=exact).update(*batch()).update(*batch(seed=1))
    with torch.inference_mode():
        inside = tuple(tensor * 1 for tensor in batch())
        made = PrototypeMemory(4, level, exact=exact).update(*inside)
        others = [made.copy(), copy.deepcopy(made), made.empty_like().merge(made)]
        others += [made.copy().to("cpu")]
        others += [from_parts(made, lambda tensor: tensor * 1), from_state(made, torch.clone)]
    later = PrototypeMemory(4, level, exact=exact)
    later.update(*inside)
    for memory in (made, later, *others):
        assert_same(memory.update(*batch(seed=1)), expected, "updated outside")


def test_a_posterior_and_running_statistics_survive_inference_mode():
    features, labels = batch()
    with torch.inference_mode():
        posterior = ConjugatePosterior(4, SharedPrior()).add_classes(labels)
        posterior.update(features, labels)
        running = LinearDiscriminant(streaming=True).new_memory(4).update(features, labels)
    posterior.update(features, labels)
    assert float(posterior.counts.sum()) == running.update(features, labels).total == 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", [lambda: Ridge(64), lambda: NearestMean(normalize_input=True)])
def test_statistics_made_under_autocast_are_those_made_outside(head, dtype):
    features, labels = batch(300, 16)
    memory = head().new_memory(16).update(features, labels)
    expected = head().fit(memory)(features)
    with torch.autocast("cpu", dtype=dtype):
        inside = head().new_memory(16).update(features, labels)
        found = head().fit(inside)(features)
        if memory.width == 64:
            projected = memory.feature_map(features)
    assert_same(inside, memory, "under autocast", bits=True)
    assert torch.equal(found, expected)
    if memory.width == 64:
        assert torch.equal(projected, memory.feature_map(features))


def test_a_map_of_another_package_leaves_autocast_too():
    class Rotation(ReluProjection):
        def forward(self, features):
            return features @ self.weight

    turn = Rotation(4, 4, seed=1)
    expected = PrototypeMemory(4, "shared", feature_map=turn).update(*batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = PrototypeMemory(4, "shared", feature_map=turn).update(*batch())
    assert_same(found, expected, "under autocast", bits=True)


# -- types, strides, kinds ------------------------------------------------------------------------


@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    labels_dtype=st.sampled_from([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]),
    layout=st.sampled_from([torch.clone, fortran, expanded]),
    level=st.sampled_from(tuple(LEVELS)),
    mode=st.sampled_from(["plain", "inference", "autocast", "gradient"]),
)
@settings(max_examples=40, deadline=None)
def test_a_batch_of_any_type_layout_and_mode(dtype, labels_dtype, layout, level, mode):
    features, labels = batch()
    features = features.to(dtype)
    expected = PrototypeMemory(4, level).update(features.double(), labels)
    given_features = layout(features).requires_grad_(mode == "gradient")
    given_labels = layout(labels.to(labels_dtype))
    with (
        torch.inference_mode(mode == "inference"),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"),
    ):
        found = PrototypeMemory(4, level).update(given_features, given_labels)
        head = NearestMean().fit(found)
        logits = head(given_features)
    assert_same(found, expected, "statistics")
    assert not any(buffer.requires_grad for buffer in found.buffers())
    assert torch.equal(logits, NearestMean().fit(found)(features.detach()))
    assert torch.equal(head.predict(given_features), found.classes[logits.argmax(1)])


def test_a_head_takes_whole_numbers_as_they_are():
    features = torch.tensor([[2**24 + 1, 0], [2**24 + 3, 0]])
    memory = NearestMean().new_memory(2).update(features.double(), torch.tensor([0, 1]))
    assert NearestMean().fit(memory).predict(features).tolist() == [0, 1]


class Table:
    """As pandas', which is no dependency."""

    columns = ("a",)

    def to_numpy(self):
        return np.zeros((2, 4))

    def __iter__(self):
        return iter(self.columns)


def test_sparse_features_tables_and_names_are_refused_with_advice_that_works():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    features, labels = batch(2)
    memory, names = PrototypeMemory(4), np.array(["cat", "dog"])
    for bad, advice in (
        (features.to_sparse(), r"layout torch.sparse_coo: .*features.to_dense\(\)"),
        (features.to_sparse_csr(), r"features.to_dense\(\)"),
        (scipy_sparse.csr_matrix(features.numpy()), r"torch.as_tensor\(features.toarray\(\)\)"),
        (Table(), r"torch.as_tensor\(features.to_numpy\(\)\)"),
        (features.numpy(), r"torch.as_tensor\(features\)"),
    ):
        with pytest.raises(TypeError, match=advice):
            memory.update(bad, labels)
    for bad in (names, names.tolist(), tuple(names)):
        with pytest.raises(TypeError, match=r"numpy.unique\(labels, return_inverse=True\)"):
            memory.update(features, bad)
    head = NearestMean().fit(memory.update(features, labels))
    with pytest.raises(TypeError, match="to_dense"):
        head(features.to_sparse())


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (torch.tensor([True, False, True]), r"boolean mask.*memory.classes\[mask\]"),
        ([True, False], "boolean mask"),
        (np.array([True, False]), "boolean mask"),
        (torch.tensor([0.0]), "dtype torch.float32: expected integer"),
        ([0.5], "expected integer"),
        (["cat"], "expected integer class ids"),
    ],
)
def test_what_is_no_class_id_removes_nothing(classes, message):
    memory = PrototypeMemory(4).update(*batch())
    before = memory.copy()
    for door in (memory.forget, memory.subset):
        with pytest.raises(TypeError, match=message):
            door(classes)
    assert_same(memory, before, "after a refusal", bits=True)
    memory.forget(memory.classes[memory.classes > 0])
    assert memory.classes.tolist() == [0]
    assert memory.forget([]).total == 10
    assert memory.subset(np.array([0], dtype=np.int32)).total == 10


# -- state that no samples could have given -------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_ids": torch.tensor([3, 1, 7])}, "out of order"),
        ({"class_ids": torch.tensor([1, 1, 7])}, "out of order"),
        ({"class_ids": torch.tensor([-1, 1, 7])}, "negative"),
        ({"class_ids": torch.tensor(3)}, r"'class_ids' is \(\)"),
        ({"count": torch.tensor([4, 0, 1])}, "without samples"),
        ({"count": torch.ones(3)}, "float32.*expected.*int64"),
        ({"sum": torch.zeros(3, 5, dtype=torch.float64)}, r"\(3, 5\).*expected \(3, 4\)"),
        ({"sum": torch.zeros(2, 4, dtype=torch.float64)}, r"\(2, 4\).*expected \(3, 4\)"),
        ({"sum": torch.zeros(3, 4)}, "float32.*float64"),
        ({"sum_low": torch.full((3, 4), torch.nan, dtype=torch.float64)}, "NaN"),
        ({"second": torch.zeros(4, 3, dtype=torch.float64)}, r"expected \(10,\)"),
    ],
)
def test_impossible_states_are_refused_and_change_nothing(change, message):
    memory = PrototypeMemory(4, "shared").update(*batch())
    before = memory.copy()
    with pytest.raises(DataError, match=message):
        memory.load_state_dict({**memory.state_dict(), **change})
    with pytest.raises(DataError, match=message):
        PrototypeMemory.from_parts(memory, {**buffers(memory), **change})
    assert_same(memory, before, "after a refusal", bits=True)


def test_part_of_a_state_is_refused_and_none_of_it_changes_nothing():
    memory = PrototypeMemory(4).update(*batch())
    before = memory.copy()
    with pytest.raises(DataError, match="lack the array 'sum'"):
        memory.load_state_dict({"class_ids": memory.class_ids, "count": memory.count}, strict=False)
    memory.load_state_dict({}, strict=False)
    assert_same(memory, before, "after a refusal", bits=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("level", None, "damaged: 'level'"),
        ("feature_map", None, "damaged: 'feature_map'"),
        ("feature_dim", "4O", "damaged: invalid literal"),
        ("feature_dim", "-4", "damaged: feature_dim=-4"),
        ("level", "mode", "damaged: level='mode'"),
        ("step", "nan", "damaged: step=nan"),
    ],
)
def test_a_damaged_description_is_a_data_error(name, value, message):
    memory = PrototypeMemory(4).update(*batch())
    description = {**memory.describe(), name: value}
    if value is None:
        del description[name]
    with pytest.raises(DataError, match=message):
        PrototypeMemory.described(description)


# -- files ----------------------------------------------------------------------------------------


@every_level
def test_a_flipped_bit_anywhere_in_a_file_is_named(level, tmp_path):
    path = tmp_path / "memory.safetensors"
    features, labels = batch(9, 3)
    memory = PrototypeMemory(3, level, fingerprint="a backbone").update(features, labels)
    memory.save(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    places = [*range(0, header, 2), *(chance.randrange(header, len(whole)) for _ in range(40))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"memory\.safetensors"):
            PrototypeMemory.load(path, fingerprint="a backbone")
    path.write_bytes(whole)
    assert_same(PrototypeMemory.load(path), memory, "the file itself", bits=True)


def test_a_file_without_a_checksum_is_read_as_before(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "memory.safetensors"
    memory = PrototypeMemory(4, "shared").update(*batch())
    header = {"format": "protocl-memory", "format_version": "1", **memory.describe()}
    save_file(buffers(memory), path, metadata=header)
    assert_same(PrototypeMemory.load(path), memory, "an older file", bits=True)
    save_file(buffers(memory), path, metadata={**header, "checksam": "0"})
    with pytest.raises(DataError, match="unknown key 'checksam'"):
        PrototypeMemory.load(path)
    del header["level"]
    save_file(buffers(memory), path, metadata=header)
    with pytest.raises(DataError, match=r"memory.safetensors cannot be loaded.*'level'"):
        PrototypeMemory.load(path)


# -- subtraction ----------------------------------------------------------------------------------


@every_level
@pytest.mark.parametrize("exact", [False, True])
def test_samples_that_were_never_added_are_refused_where_sums_tell(level, exact):
    features, labels = batch()
    memory = PrototypeMemory(4, level, exact=exact).update(features, labels)
    before = memory.copy()
    never = {
        "all of them, moved": (features + 1, labels, "but not its sum"),
        "all of them, hardly moved": (features + 1e-3, labels, "but not its sum"),
        "one far away": (features[:1] + 50, labels[:1], "variances below zero"),
        "half of them, turned": (features[:15].flip(1) * 3, labels[:15], "variances below zero"),
    }
    if level == "mean":
        del never["one far away"], never["half of them, turned"]
    for what, (wrong, classes, message) in never.items():
        other = PrototypeMemory(4, level, exact=exact).update(wrong, classes)
        with pytest.raises(ValueError, match=message):
            memory.subtract(other)
        assert_same(memory, before, what, bits=True)
    part = PrototypeMemory(4, level, exact=exact).update(features[:7], labels[:7])
    rest = PrototypeMemory(4, level, exact=exact).update(features[7:], labels[7:])
    assert_same(memory - part, rest, "what was added")


def test_raw_sums_left_without_samples_are_refused():
    from protocl.memory.feature_maps import Tukey

    features, labels = torch.rand(6, 4), torch.zeros(6, dtype=torch.int64)
    memory = PrototypeMemory(4, feature_map=Tukey(), raw_means=True).update(features, labels)
    wrong = memory.copy()
    wrong.raw += 1
    with pytest.raises(ValueError, match="but not its sum"):
        memory.subtract(wrong)


def test_noisy_statistics_can_still_be_taken_out():
    """Noise, as of differential privacy, leaves squares that no samples have."""
    a, b = (PrototypeMemory(4, "diagonal").update(*batch(seed=seed)) for seed in (0, 1))
    a.second -= 100
    assert_same((a + b) - b, a, "a noisy memory")


# -- fixed point ----------------------------------------------------------------------------------


def test_fixed_point_too_coarse_for_the_features_says_so_and_names_the_step():
    features, labels = batch()

    def judged(features, labels=labels, level="mean", **options):
        memory = PrototypeMemory(4, level, **options).update(features, labels)
        for each in (memory, memory + memory, memory.copy(), pickle.loads(pickle.dumps(memory))):
            NearestMean().fit(each)

    for level in LEVELS:
        with pytest.warns(PrecisionWarning, match=r"step=1.52588e-05.*use a step of [0-9]e-1[0-2]"):
            judged(features * 6e-8, level=level, exact=True)
        with pytest.warns(PrecisionWarning, match="steps of fixed point"):
            judged(features * 6e-5 + 30, level=level, exact=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            judged(features * 1e-2, level=level, exact=True)
            judged(features.round(), level=level, exact=True, step=1.0)
            judged(torch.full((3, 4), 0.3), labels[:1].repeat(3), level=level, exact=True)
            judged(features * 6e-8, level=level)


@given(seed=st.integers(0, 50), level=st.sampled_from(tuple(LEVELS)))
@settings(max_examples=15, deadline=None)
def test_batches_that_happen_to_be_alike_draw_no_warning_of_the_step(seed, level):
    """Frames of a film: each batch shows one class, all but still."""
    generator = torch.Generator().manual_seed(seed)
    memory = PrototypeMemory(4, level, exact=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for label in range(5):
            still = torch.randn(1, 4, generator=generator)
            frames = still + 1e-4 * torch.randn(6, 4, generator=generator)
            memory.update(frames, torch.full((6,), label))
        NearestMean().fit(memory)


def test_a_memory_from_elsewhere_is_judged_by_its_sums(tmp_path):
    coarse = PrototypeMemory(4, exact=True).update(batch()[0] * 6e-8, batch()[1])
    coarse.save(tmp_path / "a.safetensors")
    loaded = PrototypeMemory.load(tmp_path / "a.safetensors")
    restored = PrototypeMemory(4, exact=True)
    restored.load_state_dict(coarse.state_dict())
    for memory in (loaded, restored, coarse.at_level("mean"), coarse.subset(coarse.classes)):
        with pytest.warns(PrecisionWarning, match="steps of fixed point"):
            NearestMean().fit(memory)


# -- values that would overflow -------------------------------------------------------------------


@every_level
def test_squares_beyond_float64_are_refused_and_change_nothing(level):
    features, labels = batch()
    memory = PrototypeMemory(4, level).update(features, labels)
    before, huge = memory.copy(), features.double()
    huge[4, 2] = -1e155
    with pytest.raises(OverflowError, match=r"feature 2 has magnitude 1e\+155.*up to 1e\+150"):
        memory.update(huge, labels)
    running = LinearDiscriminant(streaming=True).new_memory(4)
    with pytest.raises(OverflowError, match="feature 2"):
        running.update(huge, labels)
    huge[4, 2] = torch.inf
    with pytest.raises(ValueError, match="sample 4 are NaN or infinite"):
        memory.update(huge, labels)
    assert_same(memory, before, "after a refusal", bits=True)
    assert torch.load(io.BytesIO(_saved(memory)), weights_only=True)


def _saved(memory: PrototypeMemory) -> bytes:
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    return file.getvalue()


# -- one class ------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [2, np.int64(2), torch.tensor(2), [2], {2}, (2,), range(2, 3)])
def test_a_single_class_is_its_id(one):
    features, labels = batch()[0], torch.arange(30) % 3
    memory = PrototypeMemory(4, "diagonal").update(features, labels)
    expected = PrototypeMemory(4, "diagonal").update(features[labels == 2], labels[labels == 2])
    assert_same(memory.subset(one), expected, "the statistics of one class")
    assert memory.forget(one).classes.tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [None, 2.0, True, "2", [2.5], ["2"]])
def test_what_is_no_class_is_refused_by_name(wrong):
    memory = PrototypeMemory(4, "diagonal").update(*batch())
    for door in (memory.subset, memory.forget):
        with pytest.raises(TypeError, match="expected integer class ids"):
            door(wrong)
