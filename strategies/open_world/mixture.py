"""PALM's mathematics: several prototypes a class, weighted by optimal transport, moved by averages.

Notation: embeddings ``(N, P)`` of unit length; prototypes ``(R, P)`` of unit length; ``own``
``(N, R)`` whether a prototype is one of the sample's class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from protocl.memory.precision import in_full_precision


@in_full_precision
def sinkhorn(scores: Tensor, epsilon: float = 0.05, rounds: int = 3) -> Tensor:
    """Shares ``(N, R)`` of each sample in all prototypes, which all get about as much in all.

    Each round scales the sums over samples to ``1 / R`` and those over prototypes to ``1 / N``;
    the rows of the result add up to 1. In logarithms, so that no ``epsilon`` overflows.

    Args:
        scores: ``(N, R)`` inner products.
        epsilon: > 0, of the entropy: small ones make shares hard.
        rounds: 0 or more.

    Source: Cuturi, "Sinkhorn distances", 2013; as the code of PALM (Lu et al. 2024) has it.
    """
    samples, prototypes = scores.shape
    logs = scores / epsilon
    for _ in range(rounds):
        logs = logs - logs.logsumexp(0) - math.log(prototypes)
        logs = logs - logs.logsumexp(1, keepdim=True) - math.log(samples)
    return (logs + math.log(samples)).exp()


def largest(weights: Tensor, count: int) -> Tensor:
    """``(N, R)`` whether a weight is one of the ``count`` largest of its row; 0 for all."""
    if not count or count >= weights.shape[1]:
        return torch.ones_like(weights, dtype=torch.bool)
    chosen = torch.zeros_like(weights, dtype=torch.bool)
    return chosen.scatter_(1, weights.topk(count, dim=1).indices, True)


def reciprocal_weights(shares: Tensor, own: Tensor, count: int) -> Tensor:
    """What each sample adds to each prototype of its class, ``(N, R)``.

    The ``count`` largest shares within the class, scaled to a sum of 1 over prototypes and then
    over samples: a prototype takes most from samples that prefer it to its sisters. Sums of 0
    stay 0.

    Args:
        shares: ``(N, R)`` by :func:`sinkhorn`.
        own: ``(N, R)``.
        count: prototypes a sample adds to; 0 for all of its class.

    Source: Lu et al. 2024, reciprocal neighbour assignment; the form is that of their code.
    """
    weights = shares * own
    return as_shares(as_shares(weights * largest(weights, count), 1), 0)


def as_shares(weights: Tensor, dim: int) -> Tensor:
    """Weights >= 0 over their sum along ``dim``, however small it is; a sum of 0 stays 0.

    The released code divides by at least 1e-12. A sample that lies far from all prototypes of its
    class, whose shares are smaller, is then hardly drawn to them.
    """
    total = weights.sum(dim, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


@in_full_precision
def moved(prototypes: Tensor, weights: Tensor, embeddings: Tensor, momentum: float) -> Tensor:
    """``unit(m P + (1 - m) w^T z)``, with a gradient to the embeddings.

    A prototype without samples keeps its direction.

    Args:
        prototypes: ``(R, P)``.
        weights: ``(N, R)`` by :func:`reciprocal_weights`.
        embeddings: ``(N, P)``.
        momentum: in [0, 1].

    Source: Lu et al. 2024, moving average of the prototypes; the form is that of their code.
    """
    return functional.normalize(
        momentum * prototypes + (1 - momentum) * weights.T @ embeddings, dim=1
    )


def likelihood_loss(scores: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """``-mean_i [sum_r v_ir s_ir / tau - log sum_r exp(s_ir / tau)]``, a scalar.

    Args:
        scores: ``(N, R)`` inner products of samples and prototypes.
        weights: ``(N, R)``; their rows add up to 1, or to 0.
        temperature: > 0.

    Source: Lu et al. 2024, maximum likelihood; the form is that of their code.
    """
    logits = scores / temperature
    return (logits.logsumexp(1) - (weights * logits).sum(1)).mean()


@in_full_precision
def prototype_contrast(prototypes: Tensor, owners: Tensor, temperature: float = 0.5) -> Tensor:
    """Draw prototypes of a class together and push those of others away, a scalar.

    Prototypes that are alone in their class are left out; 0 if all are.

    Args:
        prototypes: ``(R, P)`` of unit length.
        owners: ``(R,)`` row of the class of each.
        temperature: > 0.

    Source: Lu et al. 2024, contrast of prototypes; the form is that of their code.
    """
    logits = prototypes @ prototypes.T / temperature
    itself = torch.eye(len(owners), dtype=torch.bool, device=logits.device)
    sisters = (owners[:, None] == owners) & ~itself
    counts = sisters.sum(1)
    others = logits.masked_fill(itself, torch.finfo(logits.dtype).min).logsumexp(1)
    attraction = torch.where(sisters, logits, 0.0).sum(1) / counts.clamp(min=1)
    losses = torch.where(counts > 0, others - attraction, 0.0)
    return losses.sum() / (counts > 0).sum().clamp(min=1)
