"""What a protected federation promises, against whom, and for which change of the data.

*Add or remove* one sample changes each of the ``J`` parts of a vector by its sensitivity at most
(:mod:`protocl.federation.privacy.mechanism`), so the noise multiplier is ``z``. *Replace* one by
another changes them by more. With another class both changes are at right angles: each part moves
by ``sqrt(2)`` of its sensitivity. With the same class counts stay, a sum moves by twice its
sensitivity (opposite features), and a second moment by ``sqrt(2)`` at most, since
``|x x' - y y'|^2 = |x|^4 + |y|^4 - 2 (x . y)^2``, in the upper triangle as well. The worse of both
divides ``z``.

Who takes part knows the noise that it added itself. Against colluders only the noise of the others
counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from protocl.federation.privacy.mechanism import GaussianMechanism
from protocl.federation.privacy.release import PrivateRelease
from protocl.federation.privacy.vector import StatisticsLayout

_SAME_CLASS = {"count": 0, "sum": 4, "raw": 4, "second": 2}
"""Squared change of each part, in squared sensitivities, if a sample is replaced by another."""


@dataclass(frozen=True)
class Audience:
    """Who sees a sum, and how much noise there is in it that they do not know.

    Attributes:
        colluders: participants that pool what they know.
        noise: variance of the noise of the others, in variances of a release.
    """

    colluders: int
    noise: Fraction


def replacement_square(layout: StatisticsLayout) -> Fraction:
    """By how much replacing a sample is worse than adding one, as a factor on squared change."""
    parts = list(layout.parts)
    same = sum(_SAME_CLASS[name] for name in parts)
    return Fraction(max(same, 2 * len(parts)), len(parts))


def epsilons(
    mechanism: GaussianMechanism, layout: StatisticsLayout, delta: float, noise: Fraction
) -> dict[str, float]:
    """Epsilon of a sample for both changes of the data, where ``noise`` is not known.

    Args:
        mechanism: of a release.
        layout: of its vectors.
        delta: probability of failure.
        noise: variance of the noise, in variances of a release.
    """
    changes = {"add_remove": Fraction(1), "replace_one": replacement_square(layout)}
    return {
        name: GaussianMechanism(
            mechanism.clip, mechanism.noise_multiplier * math.sqrt(noise / square)
        ).epsilon(delta)
        for name, square in changes.items()
    }


def audiences(
    release: PrivateRelease, parties: int, staying: int, colluders: int
) -> dict[str, Audience]:
    """Outsiders, who see what is published, and colluding participants.

    Args:
        release: what is agreed on.
        parties: asked in a round.
        staying: of whom so many stay at least.
        colluders: of whom so many may pool what they know; the others are honest and stay.
    """
    share = release.client_share
    if release.placement == "central":
        known, hidden = Fraction(1), Fraction(1)
    elif release.placement == "local":
        known, hidden = share * staying, share
    else:
        honest = min(release.contributors, parties - colluders)
        known, hidden = share * max(staying, release.contributors), share * honest
    return {"outsiders": Audience(0, known), "colluders": Audience(colluders, hidden)}
