"""Heads on mapped features, from samples to weights and to answers, against the bare products.

A tenth of the samples, and random features of once or twice the width. The other side has nothing
but the products and the solution that the method is defined by, in the precisions that ours has.
Time is that of the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from protocl.backbones.build import BackboneConfig, build_backbone
from protocl.backbones.layers.choice import read_layers
from protocl.bench.comparison import Size, SpeedComparison, require_equal
from protocl.bench.synthetic import features, images
from protocl.bench.timing import interleaved
from protocl.heads import AnaCP, GaussianCalibrated, KLDAEnsemble, Ridge
from protocl.heads.base import Head
from protocl.heads.joint.anacp import lifted_targets, projected, ridge, solved
from protocl.memory import PrototypeMemory
from protocl.memory.estimates.gaussians import ClassGaussians
from protocl.memory.estimates.group_moments import GroupMoments
from protocl.memory.estimates.shrinkage import shrink_towards_identity
from protocl.memory.feature_maps import FeatureMap, UnitNorm
from protocl.memory.maps.gelu_projection import GeluProjection
from protocl.memory.maps.joint import Joint

TARGET, LAYERS_TARGET = 1.5, 1.15
_STRENGTH = 1e3
_CLIENTS = 20
_ALIKE = 1e-2
"""Share of the largest logit: ours moves features to the middle of the classes before it rounds."""

_in_turns = partial(interleaved, clock=time.process_time)

Weights = tuple[Tensor, Tensor]
"""Of one linear layer: ``(M, C)`` and biases ``(C,)``."""


def measure(size: Size) -> Iterator[SpeedComparison]:
    """What is learned from samples and answered, of each head; several layers of a backbone."""
    x, y = features(size)
    few = max(len(x) // 10, 10 * size.classes)
    x, y = x[:few] - 0.5, y[:few]
    plain = Ridge(2 * size.width, regularization=_STRENGTH)
    klda = KLDAEnsemble(dim=size.width, gamma=0.5 / size.width)
    yield _learned("ridge", plain, x, y, size, _bare_ridge)
    yield _learned("klda_ensemble", klda, x, y, size, _bare_discriminant)
    anacp = AnaCP(dim=size.width)
    yield _projected(anacp, x, y, size)
    calibrated = GaussianCalibrated(covariance="shared", epochs=1)
    calibrated.fit(calibrated.new_memory(x.shape[1]).update(x, y))
    for name, head in (("ridge", plain), ("klda_ensemble", klda), ("calibrated", calibrated)):
        yield _answered(name, head, x, size)
    yield _group_means(x, y, size)
    yield _layers(size)


def _learned(
    name: str, head: Head, x: Tensor, y: Tensor, size: Size, bare: Callable[..., Weights]
) -> SpeedComparison:
    """Statistics and fit, against the second moment of mapped features and one solution."""
    maps = [map for _, map in _pairs(head, x.shape[1])]
    ours, floor = _in_turns(
        lambda: head.fit(head.new_memory(x.shape[1]).update(x, y)),
        lambda: [bare(map(x).double(), y) for map in maps],
        repeats=size.repeats,
    )
    expected = _joined(maps, floor.result, x[:100])
    return _compared(
        f"learn, {name}, {len(x)} samples", "products and solutions alone",
        (ours.seconds, floor.seconds), ours.result(x[:100]) - expected, expected,
    )  # fmt: skip


def _projected(head: AnaCP, x: Tensor, y: Tensor, size: Size) -> SpeedComparison:
    """Statistics and fit of AnaCP, against its products and solutions; the replay is drawn."""
    under = head.feature_map(x.shape[1])
    assert isinstance(under, Joint)
    unit, *maps = [map for map in under.members if isinstance(map, UnitNorm | GeluProjection)]
    last = GeluProjection(x.shape[1], head.dim, seed=head.seed)
    base = PrototypeMemory(x.shape[1], "shared", feature_map=unit).update(x, y)
    generator = torch.Generator().manual_seed(head.seed)
    drawn = ClassGaussians(base, "shared", eps=0.0).draw(head.per_class, generator)

    def floor() -> tuple[list[Tensor], Tensor]:
        thetas = _thetas(head, unit(x).double(), [map(x).double() for map in maps], y)
        samples = drawn.flatten(0, 1)
        inner = last.projected(projected([_gelu(map, samples) for map in maps], thetas))
        one_hot = torch.eye(len(drawn), dtype=inner.dtype).repeat_interleave(head.per_class, 0)
        return thetas, ridge(inner, one_hot, head.regularization)

    ours, bare = _in_turns(
        lambda: head.fit(head.new_memory(x.shape[1]).update(x, y)), floor, repeats=size.repeats
    )
    thetas, classifier = bare.result
    outputs = projected([map(x[:100]).double() for map in maps], thetas)
    expected = last.projected(outputs) @ classifier
    return _compared(
        f"learn, anacp, {len(x)} samples", "products and solutions alone",
        (ours.seconds, bare.seconds), ours.result(x[:100]) - expected, expected,
    )  # fmt: skip


def _thetas(head: AnaCP, u: Tensor, z: list[Tensor], y: Tensor) -> list[Tensor]:
    """The projections of random features ``z`` onto lifted means of unit features ``u``."""
    sums = _class_sums(u, y)
    means = sums / torch.bincount(y)[:, None]
    targets = lifted_targets(means, (u.T @ u - means.T @ sums) / len(y))
    return [solved(h.T @ h, _class_sums(h, y).T @ targets, head.regularization) for h in z]


def _gelu(map: FeatureMap, units: Tensor) -> Tensor:
    assert isinstance(map, GeluProjection)
    return map.projected(units)


def _answered(name: str, head: Head, x: Tensor, size: Size) -> SpeedComparison:
    """Logits, against maps and products alone."""
    pairs = _pairs(head, x.shape[1])
    maps = [map for _, map in pairs]
    layers = [_linear(member, map.width(x.shape[1])) for member, map in pairs]
    ours, bare = _in_turns(lambda: head(x), lambda: _joined(maps, layers, x), repeats=size.repeats)
    return _compared(
        f"answer, {name}, {len(x)} samples", "maps and products alone",
        (ours.seconds, bare.seconds), ours.result - bare.result, bare.result,
    )  # fmt: skip


def _group_means(x: Tensor, y: Tensor, size: Size) -> SpeedComparison:
    """FedCOF's second moment of clients' class means, against its two products."""
    client = torch.arange(len(x)) % _CLIENTS
    groups = [
        PrototypeMemory(x.shape[1]).update(x[client == k], y[client == k]) for k in range(_CLIENTS)
    ]
    ours, bare = _in_turns(
        lambda: GroupMoments(groups).memory(), lambda: _bare_moment(groups), repeats=size.repeats
    )
    return _compared(
        f"estimate, fedcof, {_CLIENTS} clients", "its two products", (ours.seconds, bare.seconds),
        ours.result.second_moment - bare.result, bare.result,
    )  # fmt: skip


def _bare_moment(groups: list[PrototypeMemory]) -> Tensor:
    """``sum_c (n_c - 1) T_c / (Q_c - 1) + n_c m_c m_c^T``."""
    y, sums = torch.cat([g.classes for g in groups]), torch.cat([g.sums for g in groups])
    counts = torch.cat([g.counts for g in groups])
    n, several = torch.bincount(y, counts.double()), torch.bincount(y) - 1
    means = _class_sums(sums, y) / n[:, None]
    away = sums / counts[:, None] - means[y]
    shares = torch.where(several > 0, (n - 1) / several.clamp(min=1), 0.0)
    return (away * (shares[y] * counts)[:, None]).T @ away + (means * n[:, None]).T @ means


def _layers(size: Size) -> SpeedComparison:
    """All layers of a network, against one forward pass of it alone."""
    x = images(size)[0][: size.batch]
    shape = tuple(x.shape[1:])
    plain, deep = (
        build_backbone(BackboneConfig(name="resnet18_slim"), shape, seed=0).eval() for _ in range(2)
    )
    read_layers(deep, "all", shape)
    with torch.no_grad():
        ours, bare = _in_turns(lambda: deep(x), lambda: plain(x), repeats=size.repeats)
    last = ours.result[:, -bare.result.shape[1] :]
    return _compared(
        f"all layers of resnet18_slim, {len(x)} images", "one forward pass",
        (ours.seconds, bare.seconds), last - bare.result, bare.result, LAYERS_TARGET,
    )  # fmt: skip


def _bare_ridge(h: Tensor, y: Tensor) -> Weights:
    """``(h^T h + lambda I)^-1 S`` by one Cholesky factor."""
    gram = h.T @ h
    gram.diagonal().add_(_STRENGTH)
    sums = _class_sums(h, y).T
    weights = torch.cholesky_solve(sums, torch.linalg.cholesky(gram))
    return weights.float(), torch.zeros(weights.shape[1])


def _bare_discriminant(h: Tensor, y: Tensor) -> Weights:
    """Scores by the inverse of the pooled covariance, shrunk as KLDA-E's."""
    sums, counts = _class_sums(h, y), torch.bincount(y)
    means = sums / counts[:, None]
    covariance = (h.T @ h - means.T @ sums) / len(y)
    factor = torch.linalg.cholesky(shrink_towards_identity(covariance, 1e-4, scaled=True))
    weights = torch.cholesky_solve(means.T, factor)
    biases = -0.5 * (means.T * weights).sum(0)
    return weights.float(), biases.float()


def _class_sums(h: Tensor, y: Tensor) -> Tensor:
    return torch.zeros(int(y.max()) + 1, h.shape[1], dtype=h.dtype).index_add_(0, y, h)


def _pairs(head: Head, width: int) -> list[tuple[Head, FeatureMap]]:
    """The heads that answer, and the map of each."""
    map = head.feature_map(width)
    if not isinstance(map, Joint):
        return [(head, map)]
    assert isinstance(head, KLDAEnsemble)
    return list(zip(head.heads, map.members, strict=True))


def _linear(head: Head, width: int) -> Weights:
    """The layer that a linear head is, of features under its map."""
    biases = head.mapped_logits(torch.zeros(1, width))[0]
    return head.mapped_logits(torch.eye(width)) - biases, biases


def _joined(maps: list[FeatureMap], layers: list[Weights], x: Tensor) -> Tensor:
    """Logits of a linear layer, or those of the mean softmax of several."""
    found = [torch.addmm(b, map(x), w) for map, (w, b) in zip(maps, layers, strict=True)]
    if len(found) == 1:
        return found[0]
    return torch.stack([logits.softmax(1) for logits in found]).mean(0).log()


def _compared(
    case: str,
    peer: str,
    seconds: tuple[float, float],
    gap: Tensor,
    scale: Tensor,
    target: float = TARGET,
) -> SpeedComparison:
    difference = float(gap.abs().max() / scale.abs().max())
    return SpeedComparison(
        case=case, peer_name=peer, ours=seconds[0], peer=seconds[1], kind="cost", target=target,
        threads=torch.get_num_threads(), difference=require_equal(case, difference, _ALIKE),
    )  # fmt: skip
