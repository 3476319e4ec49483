"""The neural-gas graph over coding vectors, and the losses that read it.

Which coding vectors are neighbours is learned from where the data lie: the nearest vector of a
feature (its winner) is joined to the next nearest ones. These are the classes that get confused.

``B`` features, ``N`` coding vectors, ``D`` width; ``squares`` is always the ``(B, N)`` matrix of
:func:`.squared_distances`, computed once for all functions here.

Source: Malepathirana et al., "NAPA-VQ: Neighborhood-aware prototype augmentation with vector
quantization for continual learning", ICCV 2023, in the form of the authors' code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from protocl.strategies.training.distances import distances


def distance_cross_entropy(squares: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of ``softmax(-distance / temperature)``, averaged over the batch.

    Args:
        squares: ``(B, N)`` squared distances.
        labels: ``(B,)`` row of each feature's own vector.
        temperature: > 0.
    """
    with torch.autocast(squares.device.type, enabled=False):
        return functional.cross_entropy(-distances(squares) / temperature, labels)


class Graph(NamedTuple):
    """Edges between coding vectors after a batch.

    Attributes:
        directed: ``(N, N)`` from winners to their neighbours, which the losses of the batch read.
        symmetric: ``(N, N)`` mean of both directions, which the next batch starts from.
    """

    directed: Tensor
    symmetric: Tensor


@torch.no_grad()
def update_edges(edges: Tensor, squares: Tensor, k: int, eps: float, e_min: float) -> Graph:
    """Join winners to their neighbours, let the other edges of winners age, and prune.

    With ``n_i`` features won by vector ``i`` and ``m_ij`` of them having ``j`` among their ``k``
    nearest: ``E_ij`` becomes 1 where ``m_ij > 0``, is multiplied by ``eps ** (n_i - m_ij)``, and
    becomes 0 below ``e_min``. The order of features in a batch plays no part, nor do labels. A
    vector that wins nothing keeps its edges.

    Args:
        edges: ``(N, N)`` symmetric strengths in [0, 1] with unit diagonal.
        squares: ``(B, N)`` squared distances.
        k: nearest vectors that a feature joins, the winner included; all if there are fewer.
        eps: factor by which an edge ages, in (0, 1].
        e_min: strength below which an edge is removed.
    """
    vectors = len(edges)
    nearest = squares.detach().topk(min(k, vectors), dim=1, largest=False).indices
    winners = nearest[:, :1]
    pairs = (winners * vectors + nearest).flatten()
    # Scattered ones rather than bincount: the result's size is known, so nothing waits for a GPU.
    hits = edges.new_zeros(vectors * vectors).index_add_(0, pairs, edges.new_ones(len(pairs)))
    hits = hits.view(vectors, vectors)
    wins = hits.diagonal()[:, None]
    aged = torch.where(hits > 0, 1.0, edges) * eps ** (wins - hits)
    directed = torch.where(aged < e_min, 0.0, aged)
    return Graph(directed, (directed + directed.T) / 2)


def neighbourhood_loss(
    squares: Tensor, labels: Tensor, edges: Tensor, *, scale: float = 0.001, stable: bool = True
) -> Tensor:
    """Pull each feature to its own vector, push it from that vector's neighbours in the graph.

    ``mean_b relu(s_by - sum_j w_bj s_bj)`` over the neighbours ``j`` of ``y = labels[b]``, where
    ``s`` are squared distances and ``w_bj`` is proportional to ``exp(-scale s_bj)``. No gradient
    flows through the weights. Without neighbours nothing pushes.

    Args:
        squares: ``(B, N)`` squared distances.
        labels: ``(B,)`` row of each feature's own vector.
        edges: ``(N, N)`` directed strengths; neighbours are those above 0, whatever the strength.
        scale: of the squared distances in the weights.
        stable: False reproduces two corner cases of the authors' code: a neighbour at distance 0
            is none, and where all exponentials underflow nothing pushes.
    """
    rows = torch.arange(edges.shape[1], device=labels.device)
    neighbours = (edges[labels] > 0) & (labels[:, None] != rows)
    with torch.autocast(squares.device.type, enabled=False):
        scores = -scale * squares.detach()
        if stable:
            lowest = torch.finfo(scores.dtype).min
            weights = scores.masked_fill(~neighbours, lowest).softmax(1) * neighbours
        else:
            raw = scores.exp() * (neighbours & (scores < 0))
            total = raw.sum(1, keepdim=True)
            weights = torch.where(total > 0, raw / total, 0.0)
        own = squares.gather(1, labels[:, None]).squeeze(1)
        return functional.relu(own - (weights * squares).sum(1)).mean()


def grown(edges: Tensor, vectors: int) -> Tensor:
    """The graph ``(N, N)`` with unconnected vectors appended; ``edges`` stay as they are.

    Args:
        edges: ``(N', N')`` with ``N' <= vectors``.
        vectors: ``N``.
    """
    larger = torch.eye(vectors, dtype=edges.dtype, device=edges.device)
    larger[: len(edges), : len(edges)] = edges
    return larger


def choose_neighbours(edges: Tensor, anchors: Tensor, uniform: Tensor) -> Tensor:
    """One neighbour of each anchor, or the anchor itself, all equally likely: ``(R,)``.

    Args:
        edges: ``(N, N)`` strengths with unit diagonal; neighbours are those above 0.
        anchors: ``(R,)`` rows.
        uniform: ``(R,)`` in [0, 1): ``floor(uniform * n)`` is the number of the neighbour among
            the ``n``, in ascending order of rows.
    """
    joined = edges[anchors] > 0
    places = joined.cumsum(1)
    wanted = (uniform * places[:, -1]).long()
    return (places > wanted[:, None]).long().argmax(1)


def mix_prototypes(
    prototypes: Tensor, anchors: Tensor, neighbours: Tensor, weights: Tensor
) -> Tensor:
    """``g P_anchor + (1 - g) P_neighbour``, ``(R, D)``: features on the way to a neighbour.

    Args:
        prototypes: ``(N, D)``.
        anchors, neighbours: ``(R,)`` rows.
        weights: ``(R,)`` share ``g`` of the anchor.
    """
    return torch.lerp(prototypes[neighbours], prototypes[anchors], weights[:, None])
