"""Cleaning of doubtful labels by a memory of few trusted samples, before they are learned."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from protocl.config.validation import is_number
from protocl.errors import PrecisionWarning
from protocl.heads.base import Head
from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import unit
from protocl.memory.rows import find_rows


class Cleaned(NamedTuple):
    """Samples with labels to believe.

    Attributes:
        labels: ``(N,)`` class ids; those that were wrong beyond doubt are others than before.
        keep: ``(N,)`` whether to learn the sample; others belong to no class.
        targets: ``(N, C)`` soft labels, columns as the classes of the trusted memory.
        gaps: ``(N,)`` how unlike the label's prototype a sample lies to all prototypes.
    """

    labels: Tensor
    keep: Tensor
    targets: Tensor
    gaps: Tensor


@torch.no_grad()
def clean(
    features: Tensor,
    labels: Tensor,
    trusted: PrototypeMemory,
    head: Head | None = None,
    *,
    temperature: float = 0.1,
    share: float = 0.5,
    sure: float = 0.6,
    furthest: float = 20.0,
) -> Cleaned:
    """Correct labels that trusted prototypes contradict, and leave out what fits no class.

    A soft label is ``share softmax(logits of the head) + (1 - share) softmax(z . P / temperature)``
    with unit features ``z`` and prototypes ``P``. A sample whose largest is above ``sure`` takes
    that class; one whose own is above ``1 / C`` keeps it; others are left out, and so is who is
    further than ``furthest`` by ``sum_c |P_y . P_c - z . P_c| / 2``, which is at most ``C`` and so
    says nothing up to 20 classes. A pure function of the memory.

    Source: Qin et al., "FoPro: few-shot guided robust webly-supervised prototypical learning",
    AAAI 2023 (arXiv 2212.00465), section 3.3.

    Args:
        features: ``(N, D)`` of doubtful samples.
        labels: ``(N,)`` their labels, of classes that the memory knows.
        trusted: statistics of trusted samples.
        head: fitted to the same classes; without one the prototypes alone decide.
        temperature, share, sure, furthest: see above.

    Raises:
        ValueError: a label is of no trusted class, or a setting is out of range.

    Warns:
        PrecisionWarning: all prototypes have the same direction but for a hundredth of
            ``temperature``, as where features are far from the origin: cosines tell nothing.

    Example:
        >>> trusted = PrototypeMemory(2).update(torch.eye(2), torch.tensor([4, 9]))
        >>> web = torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.2]])
        >>> found = clean(web, torch.tensor([4, 4, 4]), trusted)
        >>> found.labels.tolist(), found.keep.tolist()
        ([4, 9, 4], [True, True, True])
    """
    _require(temperature, share, sure)
    rows = find_rows(trusted.classes, labels)
    prototypes = unit(trusted.means)
    _warn_of_one_direction(prototypes, temperature)
    cosines = unit(trusted.feature_map(features).double()) @ prototypes.T
    targets = _targets(features, cosines, trusted, head, temperature, share)
    largest, best = targets.max(1)
    own = targets.gather(1, rows[:, None])[:, 0]
    certain = largest > sure
    rows = torch.where(certain, best, rows)
    gaps = ((prototypes @ prototypes.T)[rows] - cosines).abs().sum(1) / 2
    keep = (certain | (own > 1 / len(prototypes))) & (gaps <= furthest)
    return Cleaned(trusted.classes[rows], keep, targets, gaps)


def density(distances: Tensor, count: int) -> float:
    """The temperature of a class's concentration: the larger, the looser it is.

    ``sum of distances / (n log(n + 10))``, the same as in prototypical contrastive learning (Li et
    al., ICLR 2021, eq. 12). 0 of no samples.

    Args:
        distances: of the samples to their prototype.
        count: ``n``.
    """
    return float(distances.sum()) / (count * math.log(count + 10)) if count else 0.0


def _require(temperature: float, share: float, sure: float) -> None:
    if not (is_number(temperature) and temperature > 0):
        raise ValueError(f"temperature={temperature!r}: expected a number > 0")
    for name, value in (("share", share), ("sure", sure)):
        if not (is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{name}={value!r}: expected a number from 0 to 1")


def _warn_of_one_direction(prototypes: Tensor, temperature: float) -> None:
    apart = 1 - float((prototypes @ prototypes.T).amin())
    if len(prototypes) > 1 and apart < temperature / 100:
        warnings.warn(
            f"trusted prototypes have cosines of {1 - apart:.6f} or more to each other: next to "
            f"temperature={temperature:g} they tell no class from another; subtract the mean of "
            "the features first, or give a lower temperature",
            PrecisionWarning,
            stacklevel=4,
        )


def _targets(
    features: Tensor,
    cosines: Tensor,
    trusted: PrototypeMemory,
    head: Head | None,
    temperature: float,
    share: float,
) -> Tensor:
    near = (cosines / temperature).softmax(1)
    if head is None:
        return near
    if head.classes.tolist() != trusted.classes.tolist():
        raise ValueError("the head answers for other classes than the trusted memory has")
    return share * head(features).double().softmax(1) + (1 - share) * near
