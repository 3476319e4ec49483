"""Second moments that samples could have, and those that none could."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from protocl import PrototypeMemory
from protocl.federation.wire.codec import ERROR_BOUNDS
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.messages import Contribution, MessageReader, RejectedError, encode
from protocl.federation.wire.npy import array_of
from protocl.memory.feature_maps import feature_map
from protocl.memory.symmetric import pack_triangles, unpack_triangles

KINDS = ("normal", "constant", "offset", "sparse", "collinear", "equal", "integers", "zero")


def features_of(kind: str, n: int, width: int, random: np.random.Generator) -> np.ndarray:
    normal = random.standard_normal((n, width))
    return {
        "normal": normal,
        "constant": np.repeat(normal[:1], n, axis=0),
        "offset": normal * 1e-3 + 100 * random.standard_normal(width),
        "sparse": normal.clip(min=0) * (random.random((n, width)) < 0.2),
        "collinear": normal[:, :1] * random.standard_normal(width),
        "equal": np.repeat(normal[:, :1], width, axis=1),
        "integers": np.rint(3 * normal),
        "zero": np.zeros((n, width)),
    }[kind]


def honest(seed: int) -> None:
    """One honest client of a kind drawn from ``seed``; its message is taken as it is."""
    random = np.random.default_rng(seed)
    level, exact = random.choice(["diagonal", "shared", "full"]), bool(random.integers(2))
    dim, kind = int(random.integers(1, 33)), str(random.choice(KINDS))
    mapped = feature_map("tukey:0.5") if kind == "sparse" and random.integers(2) else None
    memory = PrototypeMemory(
        dim, str(level), exact=exact, raw_means=bool(random.integers(2)), feature_map=mapped
    )  # type: ignore[arg-type]
    size = float(10.0 ** random.integers(-4, 1 if exact else 6))
    dtype = torch.float32 if random.integers(2) else torch.float64
    for _ in range(random.integers(1, 4)):
        n = int(random.choice([1, 1, 2, dim, 3 * dim]))
        x = torch.from_numpy(size * features_of(kind, n, dim, random)).to(dtype)
        memory.update(x, torch.from_numpy(random.integers(0, random.integers(1, 4), n)))
    precision = str(random.choice(list(ERROR_BOUNDS)))
    limits = Limits(max_width=int(random.choice([1, 1024])), max_feature=None if exact else 1e9)
    arrays, header = encode(Contribution(memory, "e", 1, "full"), precision)  # type: ignore[arg-type]
    try:
        MessageReader(memory.empty_like(), limits).read(arrays, header)
    except RejectedError as error:
        raise AssertionError(
            f"case {seed}: {level} {exact=} {kind} {precision}: {error}"
        ) from error


def test_honest_clients_are_never_refused():
    for seed in range(200):
        honest(seed)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", ERROR_BOUNDS)
@pytest.mark.parametrize("level", ["diagonal", "shared", "full"])
@pytest.mark.parametrize("size", [1e-152, 1e-160, 1e-161, 1e-162])
def test_features_whose_squares_lose_their_bits_are_not_refused(size, level, precision):
    for seed in range(3):
        random = np.random.default_rng(seed)
        memory = PrototypeMemory(2, level)  # type: ignore[arg-type]
        memory.update(torch.from_numpy(size * random.standard_normal((3, 2))), torch.zeros(3).int())
        arrays, header = encode(Contribution(memory, "e", 1, "full"), precision)  # type: ignore[arg-type]
        MessageReader(memory.empty_like()).read(arrays, header)


@pytest.mark.slow
def test_none_of_many_honest_clients_is_refused():
    for seed in range(10_000):
        honest(seed)


# -- impossible ones ----------------------------------------------------------------------------

DIM = 12


def filled(level: str, exact: bool, n: int = 60) -> PrototypeMemory:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, DIM, generator=generator, dtype=torch.float64) + 1
    memory = PrototypeMemory(DIM, level, exact=exact)  # type: ignore[arg-type]
    return memory.update(x, torch.arange(n) % 3)


def correlated(moment: Tensor) -> Tensor:
    """Two features that go together more than each with itself."""
    moment[..., 0, 1] = moment[..., 1, 0] = 1.5 * moment[..., 0, 0]
    return moment


def one_negative_direction(moment: Tensor) -> Tensor:
    """No variance and no pair is impossible, only three features together."""
    for i, j in ((0, 1), (1, 2), (0, 2)):
        root = (moment[..., i, i] * moment[..., j, j]).sqrt()
        moment[..., i, j] = moment[..., j, i] = -0.9 * root
    return moment


def less_than_the_means(moment: Tensor) -> Tensor:
    return moment * 0.3


def read(memory: PrototypeMemory, precision: str, change, limits: Limits | None = None) -> None:
    arrays, header = encode(Contribution(memory, "e", 1, "full"), precision)  # type: ignore[arg-type]
    sent = arrays["second"].numpy()
    whole = unpack_triangles(torch.from_numpy(sent.astype(np.float64)), DIM)
    changed = pack_triangles(change(whole)).numpy()
    if sent.dtype.kind == "i":
        info = np.iinfo(sent.dtype)
        changed = np.rint(changed).clip(info.min, info.max)
    arrays["second"] = array_of(changed.astype(sent.dtype))
    MessageReader(memory.empty_like(), limits).read(arrays, header)


@pytest.mark.parametrize("level", ["shared", "full"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("precision", ["exact", "float32", "float16"])
@pytest.mark.parametrize("change", [correlated, one_negative_direction, less_than_the_means])
def test_moments_that_no_samples_have_are_refused(level, exact, precision, change):
    memory = filled(level, exact)
    read(memory, precision, lambda moment: moment)
    with pytest.raises(RejectedError, match="second moment") as caught:
        read(memory, precision, change)
    assert caught.value.reason == "values"


@pytest.mark.parametrize("level", ["shared", "full"])
def test_wide_ones_are_judged_pair_by_pair(level):
    memory, wide = filled(level, True, n=3000), Limits(max_width=DIM - 1)
    with pytest.raises(RejectedError, match="no samples could have"):
        read(memory, "exact", correlated, wide)
    read(memory, "exact", one_negative_direction_in_scatter, wide)
    with pytest.raises(RejectedError, match="no samples could have"):
        read(memory, "exact", one_negative_direction_in_scatter)
    with pytest.raises(RejectedError, match="no samples could have"):
        read(memory, "exact", one_negative_direction_in_scatter, Limits(max_width=DIM))
    read(memory, "exact", correlated, Limits(max_width=0))


def one_negative_direction_in_scatter(moment: Tensor) -> Tensor:
    """Adds to the correlation of three features what no pair of them forbids."""
    for i, j in ((0, 1), (1, 2), (0, 2)):
        scale = (moment[..., i, i] * moment[..., j, j]).sqrt()
        moment[..., i, j] = moment[..., j, i] = moment[..., i, j] - 0.3 * scale
    return moment


def test_a_single_sample_leaves_no_room():
    """Its scatter is zero: anything added to an entry beside the diagonal is seen."""
    memory = PrototypeMemory(DIM, "full", exact=True).update(
        torch.ones(1, DIM, dtype=torch.float64), torch.tensor([0])
    )

    def moved(moment: Tensor) -> Tensor:
        moment[..., 0, 1] += 2**-20 * 2**32
        moment[..., 1, 0] = moment[..., 0, 1]
        return moment

    with pytest.raises(RejectedError, match="no samples could have"):
        read(memory, "exact", moved)


# -- many matrices, wide ones, numbers that are none ---------------------------------------------


def wide_memory(level: str, width: int, classes: int, exact: bool) -> PrototypeMemory:
    x = torch.randn(2 * classes, width, generator=torch.Generator().manual_seed(1))
    memory = PrototypeMemory(width, level, exact=exact)  # type: ignore[arg-type]
    return memory.update(x, torch.arange(2 * classes) % classes)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("class_row", [0, 15, 16, 39])
def test_one_bad_matrix_among_several_blocks_is_found(exact, class_row):
    memory = wide_memory("full", 64, 40, exact)
    arrays, header = encode(Contribution(memory, "e", 1, "full"))
    reader = MessageReader(memory.empty_like())
    reader.read(arrays, header)
    sent = arrays["second"].numpy().copy()
    of_class = sent[class_row] if exact else sent[0, class_row]
    of_class[1] += 2 * int(of_class[0]) if exact else 2 * of_class[0]
    arrays["second"] = array_of(sent)
    with pytest.raises(RejectedError, match="no samples could have"):
        reader.read(arrays, header)


@pytest.mark.parametrize("width", [1, 127, 128, 129, 200])
@pytest.mark.parametrize("exact", [True, False])
def test_matrices_of_any_width_are_judged_whole_and_left_as_they_are(width, exact):
    memory = wide_memory("shared", width, 3, exact)
    arrays, header = encode(Contribution(memory, "e", 1, "full"))
    before = {name: array.data for name, array in arrays.items()}
    reader = MessageReader(memory.empty_like())
    first, again = reader.read(arrays, header), reader.read(arrays, header)
    assert {name: array.data for name, array in arrays.items()} == before
    assert (first.statistics.sums["second"] == again.statistics.sums["second"]).all()
    # A correlation above one between the first feature and the last.
    sent = arrays["second"].numpy().copy()
    sent[..., width - 1] = sent.max()
    sent[..., width - 1] *= 2
    if width > 1:
        arrays["second"] = array_of(sent)
        with pytest.raises(RejectedError, match="no samples could have"):
            reader.read(arrays, header)


@pytest.mark.parametrize("level", ["shared", "full"])
@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_numbers_that_are_none_pass_under_no_limit(level, place, value):
    memory = filled(level, False)
    arrays, header = encode(Contribution(memory, "e", 1, "full"))
    sent = arrays["second"].numpy().copy()
    sent[..., place] = value
    arrays["second"] = array_of(sent)
    with pytest.raises(RejectedError, match="NaN, infinite"):
        MessageReader(memory.empty_like(), Limits(max_feature=1e150)).read(arrays, header)


def test_means_whose_squares_overflow_together_are_refused():
    """What they explain is infinite, so the scatter is NaN, at which no factor stops by itself."""
    classes, count = 40, 10_000_000
    memory = PrototypeMemory(2, "shared").update(torch.ones(classes, 2), torch.arange(classes))
    arrays, header = encode(Contribution(memory, "e", 1, "full"))
    ids = arrays["classes"].numpy()[0]
    arrays["classes"] = array_of(np.stack([ids, np.full(classes, count)]))
    arrays["sum"] = array_of(np.full((1, classes, 2), 1e157))
    arrays["second"] = array_of(np.full((1, 3), 1e308))
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(RejectedError):
        MessageReader(memory.empty_like(), Limits(max_feature=1e150)).read(arrays, header)
