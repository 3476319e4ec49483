"""NAPA-VQ's neighbourhood loss and graph update: ours beside a loop over samples."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from protocl.bench import Size, SpeedComparison
from protocl.bench.comparison import require_equal
from protocl.bench.synthetic import features
from protocl.bench.timing import interleaved
from protocl.strategies.exemplar_free.neural_gas import neighbourhood_loss, update_edges
from protocl.strategies.training.distances import squared_distances

TARGET = 7.0
K, EPS, E_MIN = 15, 0.9, 0.9**10


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Two batches' worth of features against two coding vectors a class: 256 x 200 in full size."""
    x, y = features(size)
    batch, vectors = 2 * size.batch, 2 * size.classes
    z, labels = x[:batch], y[:batch]
    codes, edges = x[-vectors:], torch.eye(vectors)
    ours, peer = interleaved(
        lambda: vectorised(z, labels, codes, edges),
        lambda: sample_by_sample(z, labels, codes, edges),
        repeats=4 * size.repeats,
        # Milliseconds of one thread: CPU seconds are not disturbed by other work on the machine.
        clock=time.process_time,
    )
    case = f"NAPA-VQ loss and graph, {batch} x {size.width}, {vectors} vectors"
    difference = max(
        float((a - b).abs().max()) for a, b in zip(ours.result, peer.result, strict=True)
    )
    yield SpeedComparison(
        case=case,
        peer_name="loop over samples and neighbours",
        ours=ours.seconds,
        peer=peer.seconds,
        kind="speedup",
        target=TARGET,
        threads=torch.get_num_threads(),
        difference=require_equal(case, difference, tolerance=1e-3),
    )


def vectorised(z: Tensor, labels: Tensor, codes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and edges, as in training."""
    squares = squared_distances(z, codes)
    graph = update_edges(edges, squares, K, EPS, E_MIN)
    return neighbourhood_loss(squares, labels, graph.directed), graph.symmetric


def sample_by_sample(
    z: Tensor, labels: Tensor, codes: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with hits counted one by one and own distances from a ``(B, B)`` matrix.

    That is how the authors' code goes about it (commit 0a8b78d), written anew.
    """
    distances = torch.cdist(z, codes)
    nearest = distances.topk(min(K, len(codes)), largest=False).indices
    hits, wins = torch.zeros_like(edges), torch.zeros(len(edges))
    for winner, *others in nearest.tolist():
        wins[winner] += 1
        for neighbour in (winner, *others):
            hits[winner, neighbour] += 1
    directed = torch.where(hits > 0, 1.0, edges) * EPS ** (wins[:, None] - hits)
    directed[directed < E_MIN] = 0
    own = torch.cdist(z, codes[labels]).diagonal().square()
    neighbours = (directed - torch.diag(directed.diagonal()))[labels] > 0
    raw = torch.exp(-0.001 * distances.square()) * neighbours
    weights = torch.nan_to_num(raw / raw.sum(1, keepdim=True))
    push = (weights * distances.square()).sum(1)
    return torch.relu(own - push).mean(), (directed + directed.T) / 2
