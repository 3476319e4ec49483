"""Differential privacy for each sample: clipped statistics with discrete Gaussian noise.

The unit of privacy is one sample, added or removed ("add-or-remove-one"). Its features are clipped
to a norm ``C`` and rounded towards zero to multiples of the step, so in fixed point it moves the
count by 1, the sums by at most ``C`` and the second moments by at most ``C^2`` (Frobenius norm,
upper triangle), exactly: integers are compared, not floats. Each of these ``J`` parts gets noise of
standard deviation ``z sqrt(J)`` times its sensitivity; together they are one Gaussian mechanism of
noise multiplier ``z`` (Dwork et al., "Analyze Gauss", STOC 2014, for the moments).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocl.errors import ProtoclError
from protocl.federation.privacy.discrete_gaussian import discrete_gaussian
from protocl.federation.privacy.prg import KeyStream
from protocl.federation.privacy.vector import COUNT_SCALE, StatisticsLayout
from protocl.memory import PrototypeMemory
from protocl.memory.feature_maps import FeatureMap, Tukey
from protocl.memory.rows import class_id_tensor
from protocl.memory.summation import EXACT_INTEGER_BITS, quantise

logger = logging.getLogger(__name__)

SMALLEST_NOISE = 16
"""Standard deviation, in steps, that a party's noise must have."""

_GUARD = 1 - 2.0**-30
"""Clipped norms stay this much below ``C``: more than double precision can be wrong by."""


class PrivacyError(ProtoclError):
    """Statistics would be combined or published with less noise than was promised."""


@dataclass(frozen=True)
class GaussianMechanism:
    """Clipping and noise of one release.

    Attributes:
        clip: ``C``, largest norm of a sample's mapped features.
        noise_multiplier: ``z``, standard deviation of the noise over the sensitivity.
    """

    clip: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        for name, value in (("clip", self.clip), ("noise_multiplier", self.noise_multiplier)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: expected a positive number")

    @classmethod
    def for_budget(
        cls, clip: float, epsilon: float, delta: float, releases: int = 1
    ) -> GaussianMechanism:
        """The least noise under which ``releases`` of the same samples cost ``epsilon``."""
        import dp_accounting
        from dp_accounting import rdp

        if epsilon <= 0 or not 0 < delta < 1 or releases < 1:
            raise ValueError(
                f"epsilon={epsilon}, delta={delta}, releases={releases}: expected epsilon > 0, "
                "delta between 0 and 1, and at least one release"
            )
        multiplier = dp_accounting.calibrate_dp_mechanism(
            rdp.RdpAccountant,
            lambda z: dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(z), releases),
            epsilon,
            delta,
        )
        return cls(clip, float(multiplier))

    def epsilon(self, delta: float, releases: int = 1) -> float:
        """What ``releases`` of the same samples cost, by Google's RDP accountant.

        Args:
            delta: between 0 and 1, well below 1 over the number of samples.
            releases: how many times the same samples are released.
        """
        import dp_accounting
        from dp_accounting import rdp

        accountant = rdp.RdpAccountant()
        accountant.compose(dp_accounting.GaussianDpEvent(self.noise_multiplier), releases)
        return float(accountant.get_epsilon(delta))

    def largest_square(self, step: float) -> int:
        """Largest squared norm of a clipped sample, in squared steps."""
        return math.floor((Fraction(self.clip) / Fraction(step)) ** 2)

    def variances(self, layout: StatisticsLayout) -> dict[str, int]:
        """Noise variance of each part of a vector, in its squared integer units."""
        square = self.largest_square(layout.step)
        sensitivities = {"count": COUNT_SCALE**2, "sum": square, "raw": square, "second": square**2}
        factor = Fraction(self.noise_multiplier) ** 2 * len(layout.parts)
        return {name: math.ceil(factor * sensitivities[name]) for name in layout.parts}

    def moment_noise(self, layout: StatisticsLayout) -> float:
        """About the largest eigenvalue of a release's noise in a second moment.

        ``sigma sqrt(W)`` for a ``(W, W)`` matrix; 0 if no second moments are kept. Variances below
        it are as good as unknown (:func:`protocl.federation.privacy.postprocess.make_plausible`).
        """
        if "second" not in layout.parts:
            return 0.0
        sigma = math.sqrt(self.variances(layout)["second"]) * layout.step**2
        return sigma * math.sqrt(layout.empty_memory().width)

    def noise(
        self, layout: StatisticsLayout, *, parties: int = 1, source: KeyStream | None = None
    ) -> NDArray[np.int64]:
        """Noise ``(layout.size,)`` such that that of ``parties`` parties adds up to a release.

        Raises:
            PrivacyError: a party's noise would be too coarse for the step.
        """
        source = source or KeyStream()
        noise = np.empty(layout.size, dtype=np.int64)
        for name, variance in self.variances(layout).items():
            part = layout.parts[name]
            own = -(-variance // parties)
            if own < SMALLEST_NOISE**2:
                raise PrivacyError(
                    f"noise of {math.sqrt(own):.3g} steps on '{name}': expected at least "
                    f"{SMALLEST_NOISE}; use a smaller step or fewer contributors"
                )
            noise[part] = discrete_gaussian(own, part.stop - part.start, source)
        return noise


def tame(features: Tensor, step: float, least: float | None = None) -> Tensor:
    """Features that fixed point and the feature map can take, whatever they were.

    An error would tell that a client has such a feature, and keep all of its data out.

    Args:
        features: ``(N, D)``.
        step: quantisation step.
        least: smallest value that the feature map takes.

    Returns:
        ``(N, D)`` float64: zero for NaN, the largest number of fixed point for what is beyond it.
    """
    largest = 2.0**EXACT_INTEGER_BITS * step
    values = features.to(torch.float64).nan_to_num(nan=0.0, posinf=largest, neginf=-largest)
    return values.clamp(-largest if least is None else least, largest)


def clip_samples(features: Tensor, clip: float, step: float) -> Tensor:
    """Rows scaled down to a norm of at most ``clip``, and rounded towards zero.

    Returns:
        ``(N, W)`` float64 multiples of ``step`` whose norm is at most ``clip`` exactly.
    """
    values = features.to(torch.float64)
    norms = values.norm(dim=1, keepdim=True)
    factors = (clip * _GUARD / norms.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    return torch.trunc(values * factors / step) * step


def clipped_memory(
    template: PrototypeMemory,
    features: Tensor,
    labels: Tensor,
    mechanism: GaussianMechanism,
    classes: int | Iterable[int] | Tensor | None = None,
) -> PrototypeMemory:
    """The memory of clipped samples; it is not private before noise is added.

    No feature is an error: NaN counts as zero, and what is infinite or too large is clipped as all
    else. How many samples were, depends on data beyond epsilon, so it is said in the log only.

    Args:
        template: a fixed-point memory of the kind that is wanted; its statistics are not used.
        features: ``(N, D)`` before the feature map. What the map gives is clipped; so are, by
            themselves, the features before the map where the memory keeps their sums.
        labels: ``(N,)`` class ids.
        mechanism: gives the norm.
        classes: if given, samples of other classes are left out, silently, since an error would
            tell that there are some.
    """
    if classes is not None:
        keep = torch.isin(labels, class_id_tensor(classes).to(labels.device))
        features, labels = features[keep], labels[keep]
    tamed = tame(features, template.step, _least(template.feature_map, template.step))
    # The map must see what it would see in an update, whose features are rounded first.
    rounded = quantise(tamed, template.step) * template.step
    whole = template.feature_map(rounded).nan_to_num(nan=0.0)
    mapped = clip_samples(whole, mechanism.clip, template.step)
    _tell(features, tamed, whole.norm(dim=1) > mechanism.clip)
    sums = PrototypeMemory(template.width, template.level, exact=True, step=template.step)
    sums.update(mapped, labels)
    parts = sums.parts()
    if template.raw_means:
        raw = PrototypeMemory(template.feature_dim, exact=True, step=template.step)
        parts["raw"] = raw.update(clip_samples(rounded, mechanism.clip, template.step), labels).sum
    return PrototypeMemory.from_parts(template, parts)


def _least(feature_map: FeatureMap, step: float) -> float | None:
    """The smallest feature that a map takes."""
    if not isinstance(feature_map, Tukey):
        return None
    return 0.0 if feature_map.power > 0 else step


def _tell(features: Tensor, tamed: Tensor, long: Tensor) -> None:
    """Say here how many samples were changed; nobody else is told, for epsilon is not about it."""
    changed = (features.to(torch.float64) != tamed).any(dim=1)
    if bool(changed.any()):
        logger.warning(
            "%d of %d samples have features that are NaN, infinite or out of range; they were "
            "clipped, which only this client is told", int(changed.sum()), len(features),
        )  # fmt: skip
    clipped = int((long | changed).sum())
    logger.info("%d of %d samples were clipped; only this client is told", clipped, len(features))


@dataclass
class PrivacyBudget:
    """What the releases of a federation have cost, and the most that they may.

    Each sample pays for the releases that it is part of. Deltas are disjoint: their samples pay
    once each, whatever the number of rounds; a set of samples that is released again pays again.

    Attributes:
        mechanism: of every release.
        epsilon: the most that any sample may pay, at ``delta``.
        delta: of the guarantee.
    """

    mechanism: GaussianMechanism
    epsilon: float
    delta: float
    _releases: Counter[str] = field(default_factory=Counter)

    @property
    def spent(self) -> float:
        """Epsilon paid by the samples that were released most often."""
        most = max(self._releases.values(), default=0)
        return self.mechanism.epsilon(self.delta, most) if most else 0.0

    def spend(self, samples: str) -> float:
        """Account for one release of a set of samples.

        Args:
            samples: name of the set, such as client and experience. Sets must not overlap.

        Returns:
            what this set has paid so far.

        Raises:
            PrivacyError: the budget does not allow it; nothing is accounted then.
        """
        cost = self.mechanism.epsilon(self.delta, self._releases[samples] + 1)
        if cost > self.epsilon:
            raise PrivacyError(
                f"release {self._releases[samples] + 1} of '{samples}' would cost epsilon "
                f"{cost:.3g} at delta {self.delta:g}; the budget is {self.epsilon:g}"
            )
        self._releases[samples] += 1
        return cost
