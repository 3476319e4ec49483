"""How sure an answer is, and whether more samples would make it surer.

Source: Prob-PSENN (Recio et al., 2024, arXiv 2403.13740), sections 4.2 and 4.3; there the
distributions of prototypes are trained, here they are the posterior of the class means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from protocl.heads.bayesian.head import BayesianPrototypes
from protocl.memory import PrototypeMemory

_LEAST = 1e-8


class Uncertainty(NamedTuple):
    """Entropies ``(N,)`` of answers, in nats: ``total = aleatoric + epistemic``.

    Attributes:
        total: of the mean answer.
        aleatoric: what remains however well the prototypes are known: classes overlap there.
        epistemic: what knowing the prototypes better would take away.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def uncertainty(probabilities: Tensor) -> Uncertainty:
    """Uncertainties of answers under several drawn sets of prototypes.

    Args:
        probabilities: ``(N, S, C)`` of ``S`` sets.

    >>> sure = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    >>> torn = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> [round(float(part), 3) for part in uncertainty(torn)]
    [0.693, 0.0, 0.693]
    >>> round(float(uncertainty(sure).total), 3)
    0.0
    """
    total = _entropy(probabilities.mean(1))
    aleatoric = torch.minimum(_entropy(probabilities).mean(1), total)  # but for rounding it is
    return Uncertainty(total, aleatoric, total - aleatoric)


@torch.no_grad()
def drawn_probabilities(
    head: BayesianPrototypes,
    memory: PrototypeMemory,
    features: Tensor,
    *,
    draws: int = 50,
    seed: int = 0,
) -> Tensor:
    """Answers ``(N, S, C)`` under prototypes drawn from their posterior, columns as the classes.

    A prototype of class ``c`` is drawn from ``N(mu_c, Lambda_c^-1)``, with the covariance of its
    samples over their number and the prior's: classes of few samples move more.

    Args:
        head: gives prior, noise and form of covariance; it need not be fitted.
        memory: the statistics.
        features: ``(N, D)``.
        draws: ``S``.
        seed: of the draws.

    Raises:
        ValueError: as :meth:`.Head.fit`, or ``draws`` is not positive.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: expected 1 or more")
    beliefs, noise, _ = head.fit(memory).believed(memory)
    generator = torch.Generator(device=memory.device).manual_seed(seed)
    samples = memory.feature_map(features.double())
    weights = (beliefs.concentration / beliefs.concentration.sum()).log()
    spread = _spread(beliefs.precision)
    # Under a common noise prototypes are compared where it is the identity.
    found = [
        (weights - _gaps(samples, _drawn(beliefs.mean, spread, generator), noise) / 2).softmax(1)
        for _ in range(draws)
    ]
    return torch.stack(found, 1)


def share_closer(distances: Tensor, classes: Tensor, own: Mapping[int, Tensor]) -> Tensor:
    """The share ``(N,)`` of its class's samples that lie closer to the prototype than a query.

    Near 1 the explanation "it looks like this class's prototype" is far-fetched, however sure the
    answer is (there: explanation epistemic uncertainty).

    Args:
        distances: ``(N,)`` of queries to the prototype of their class.
        classes: ``(N,)`` these classes.
        own: distances ``(n,)`` of each class's samples to its prototype.

    Raises:
        KeyError: a class is not in ``own``.
    """
    found = torch.empty(len(distances), dtype=torch.float64)
    for row, class_id in enumerate(classes.tolist()):
        found[row] = (own[class_id] < distances[row]).double().mean()
    return found


def _entropy(probabilities: Tensor) -> Tensor:
    # What is added against log 0 would make the entropy of a sure answer negative.
    return (probabilities * -(probabilities + _LEAST).log()).sum(-1).clamp(min=0)


def _spread(precision: Tensor) -> Tensor:
    """A root of the covariances: ``(C, 1 or W)`` or lower triangular ``(C, W, W)``."""
    if precision.ndim == 3:
        return torch.linalg.cholesky(torch.linalg.inv(precision))
    return precision.rsqrt()


def _drawn(means: Tensor, spread: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(means.shape, dtype=means.dtype, device=means.device, generator=generator)
    moved = (spread @ noise[..., None])[..., 0] if spread.ndim == 3 else spread * noise
    return means + moved


def _gaps(samples: Tensor, prototypes: Tensor, noise: Tensor) -> Tensor:
    """Squared distances ``(N, C)`` under a noise ``()``, ``(W,)`` or ``(W, W)``."""
    if noise.ndim == 2:
        factor = torch.linalg.cholesky(noise)
        samples, prototypes = (
            torch.linalg.solve_triangular(factor, points.T, upper=False).T
            for points in (samples, prototypes)
        )
        return torch.cdist(samples, prototypes).square()
    return torch.cdist(samples / noise.sqrt(), prototypes / noise.sqrt()).square()
