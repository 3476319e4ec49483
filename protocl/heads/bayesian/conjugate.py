"""Gaussian classes with unknown means: the posterior and its predictive in closed form.

Model (Kessler et al. 2023, "On sequential Bayesian inference for continual learning", section 7)::

    p ~ Dir(alpha)                 y ~ Cat(p)
    mean_c ~ N(mu_c, Lambda_c^-1)  z | y = c ~ N(mean_c, Sigma)

The posterior follows from counts and sums by class, so it does not depend on order, batches or on
which client saw a sample. All functions broadcast one form of covariance: precisions ``(C, 1)``,
``(C, D)`` or ``(C, D, D)`` with a noise variance ``()``, ``(D,)`` or ``(D, D)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from protocl.heads.bayesian.priors import Beliefs, is_flat
from protocl.heads.covariance.triangular import inverses
from protocl.memory.precision import in_full_precision
from protocl.tracing import exporting

_PIECE = 1 << 22
"""Elements of the largest intermediate result that are held at once."""


class Predictive(NamedTuple):
    """``log p(z, y = c)`` is ``log_weights - |(z - means) scales|^2 / 2``.

    Attributes:
        log_weights: ``(C,)``, log-probability of the class and of the density at its mean.
        means: ``(C, D)``.
        scales: ``(C, 1)`` or ``(C, D)`` inverse standard deviations, or ``(C, D, D)`` whitening
            matrices.
    """

    log_weights: Tensor
    means: Tensor
    scales: Tensor

    def to(self, dtype: torch.dtype) -> Predictive:
        """Convert all tensors to another precision."""
        return Predictive(*(part.to(dtype) for part in self))


def posterior(prior: Beliefs, noise: Tensor, counts: Tensor, sums: Tensor) -> Beliefs:
    """Belief after ``counts`` ``(C,)`` samples that add up to ``sums`` ``(C, D)``.

    ``Lambda' = Lambda + n Sigma^-1`` and ``Lambda' mu' = Lambda mu + Sigma^-1 sum z``
    (eqs. 15 to 17). Fractional counts are allowed: discounted samples.
    """
    concentration = prior.concentration + counts
    if prior.precision.ndim == 3:
        noise_precision = torch.linalg.inv(noise)
        precision = prior.precision + counts[:, None, None] * noise_precision
        # From the prior's mean on: what an inverse is off by must not be multiplied by an offset.
        surplus = (sums - counts[:, None] * prior.mean) @ noise_precision.mT
        return Beliefs(
            concentration, prior.mean + torch.linalg.solve(precision, surplus), precision
        )
    precision = prior.precision + counts[:, None] / noise
    return Beliefs(
        concentration, (prior.precision * prior.mean + sums / noise) / precision, precision
    )


def predictive(beliefs: Beliefs, noise: Tensor) -> Predictive:
    """The next sample and its class, eq. 18: ``N(z; mu_c, Sigma + Lambda_c^-1)``."""
    width = beliefs.mean.shape[1]
    weights = (beliefs.concentration / beliefs.concentration.sum()).log()
    weights = weights - width / 2 * math.log(2 * math.pi)
    if beliefs.precision.ndim == 3:
        factor = torch.linalg.cholesky(noise + torch.linalg.inv(beliefs.precision))
        return Predictive(
            weights - factor.diagonal(dim1=1, dim2=2).log().sum(1),
            beliefs.mean,
            inverses(factor).mT,
        )
    scales = (noise + 1 / beliefs.precision).rsqrt()
    return Predictive(weights + scales.log().expand(-1, width).sum(1), beliefs.mean, scales)


@in_full_precision
def log_joint(features: Tensor, distribution: Predictive) -> Tensor:
    """``log p(z, y = c)``, ``(N, C)``; a softmax over the columns gives ``p(y = c | z)``.

    Differentiable in ``features`` ``(N, D)``, and of their type; computed in float64.
    """
    weights, means, scales = distribution.to(torch.float64)
    # Squares are expanded below: without what all means share, fewer leading digits cancel.
    centre = means.mean(0)
    z, means = features.double() - centre, means - centre
    if scales.ndim == 3:
        whitened = torch.einsum("ncd,cde->nce", z[:, None, :] - means, scales)
        squares = whitened.square().sum(2)
    else:
        squares = _weighted_squares(z, means, scales.square())
    return (weights - squares / 2).to(features.dtype)


def _weighted_squares(z: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    """``sum_d w_cd (z_nd - m_cd)^2``, ``(N, C)``, by matrix products; weights ``(C, 1 or D)``."""
    across = z @ (means * weights).mT
    constant = (means.square() * weights).sum(1)
    own = z.square() @ weights.expand_as(means).mT
    return (own - 2 * across + constant).clamp(min=0)


@torch.no_grad()
def log_joint_in_pieces(features: Tensor, distribution: Predictive) -> Tensor:
    """As :func:`log_joint`, without gradients and with bounded memory for any ``N``."""
    if exporting():
        return log_joint(features, distribution)
    _, means, scales = distribution
    held = means.numel() if scales.ndim == 3 else sum(means.shape)  # for each sample
    pieces = features.split(max(1, _PIECE // max(1, held)))
    return torch.cat([log_joint(piece, distribution) for piece in pieces])


class Unseen(NamedTuple):
    """What is expected of samples of one more class, of which nothing was seen.

    Attributes:
        distribution: of its next sample, one row.
        concentration: ``(1,)``, its weight beside the known classes.
    """

    distribution: Predictive
    concentration: Tensor


@torch.no_grad()
def unseen_class(unseen: Beliefs, noise: Tensor) -> Unseen:
    """What a belief about one more class, one row, says of its samples.

    Raises:
        ValueError: the prior is flat, so that it gives no density.
    """
    if is_flat(unseen):
        raise ValueError("a flat prior gives no density to unseen classes: use precision > 0")
    belief = Beliefs(*(part.to(noise) for part in unseen))
    return Unseen(predictive(belief, noise), belief.concentration)


@torch.no_grad()
def unknown_probability(
    features: Tensor, log_density: Tensor, unseen: Unseen, total: Tensor
) -> Tensor:
    """Probability ``(N,)`` that a sample belongs to one more class, of which nothing was seen.

    Args:
        features: ``(N, D)``.
        log_density: ``(N,)``, ``log p(z)`` under the known classes.
        unseen: the further class.
        total: sum of the concentrations of the known classes.
    """
    joint = log_joint_in_pieces(features, unseen.distribution).squeeze(1)
    return torch.sigmoid(joint + (unseen.concentration / total).log() - log_density)


def log_evidence(
    prior: Beliefs, noise: Tensor, counts: Tensor, sums: Tensor, squares: Tensor
) -> Tensor:
    """``log p`` of all samples and their classes in the order in which they came, a number.

    Equals the sum of one-step-ahead predictive log-probabilities, whatever the order.

    Args:
        prior: over every class that a sample could have had.
        noise: ``()`` or ``(D,)`` variances.
        counts: ``(C,)``.
        sums: ``(C, D)``.
        squares: ``(C, D)`` sums of squares.
    """
    counted = counts.to(squares.dtype)
    width = squares.shape[1]
    total, samples = prior.concentration.sum(), counted.sum()
    labels = torch.lgamma(total) - torch.lgamma(total + samples)
    labels = (
        labels
        + (torch.lgamma(prior.concentration + counted) - torch.lgamma(prior.concentration)).sum()
    )
    n = counted[:, None]
    centred = sums - n * prior.mean
    spread = squares - 2 * sums * prior.mean + n * prior.mean.square()
    quadratic = spread / noise - (centred / noise).square() / (prior.precision + n / noise)
    log_determinant = n * noise.log() + torch.log1p(n / (noise * prior.precision))
    normaliser = n.sum() * width * math.log(2 * math.pi)
    return labels - ((quadratic + log_determinant.expand_as(quadratic)).sum() + normaliser) / 2
