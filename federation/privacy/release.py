"""One private release: what clients send, and what the server publishes.

What is published besides the numbers is their class list. Either it is fixed beforehand and public
(:class:`PrivateSum`), or a class is published only when its noisy count passes a threshold that a
class of one sample passes with probability ``delta`` at most (:func:`release_by_threshold`).

Who adds the noise decides whom it protects from:

=============== ========================= ==================================== ================
placement       noise of each party       protects from                        noise of the sum
=============== ========================= ==================================== ================
``local``       all of it                 everyone, the server included        ``sqrt(n)`` times
``distributed`` ``1/h`` of the variance   everyone who sees only the sum, so   ``sqrt(n/h)``
                                          together with secure aggregation;    times
                                          others too, where ``h`` are honest
``central``     none; the server's is     those who see what the server        once
                added to the sum          publishes; the server is trusted
=============== ========================= ==================================== ================

Limits. A sum of discrete Gaussians is not exactly one. Here each has a standard deviation of at
least :data:`SMALLEST_NOISE` steps, and then the difference is below ``exp(-2000)`` for every event
(Kairouz, Liu and Steinke, "The distributed discrete Gaussian mechanism", ICML 2021, section 3).
Clients that are dishonest may add no noise, and each knows its own; with ``distributed``, plan for
as many contributors as are honest and stay (:mod:`protocl.federation.privacy.guarantees`). Timing,
message sizes and which clients take part are not hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocl.federation.privacy.mechanism import GaussianMechanism, PrivacyError, clipped_memory
from protocl.federation.privacy.postprocess import make_plausible
from protocl.federation.privacy.prg import KeyStream
from protocl.federation.privacy.vector import COUNT_SCALE, StatisticsLayout
from protocl.memory import PrototypeMemory
from protocl.memory.summation import overflows

Placement = Literal["local", "distributed", "central"]
PLACEMENTS: tuple[Placement, ...] = ("local", "distributed", "central")


@dataclass(frozen=True)
class NoisyVector:
    """What a client sends: a vector, and how much of a release's noise is in it."""

    vector: NDArray[np.int64]
    layout_digest: str
    noise_share: Fraction


@dataclass(frozen=True)
class PrivateRelease:
    """What all parties of a release agree on.

    Attributes:
        mechanism: clipping and noise.
        layout: the public class list and the kind of memory.
        placement: who adds the noise.
        contributors: with ``distributed``, how many parties that are honest and stay add up to a
            release.
    """

    mechanism: GaussianMechanism
    layout: StatisticsLayout
    placement: Placement = "central"
    contributors: int = 1

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ValueError(
                f"placement='{self.placement}': expected one of {', '.join(PLACEMENTS)}"
            )
        if self.contributors < 1:
            raise ValueError(f"contributors={self.contributors}: expected at least 1")

    @property
    def client_share(self) -> Fraction:
        """Share of a release's noise variance that each client adds."""
        shares = {
            "local": Fraction(1),
            "distributed": Fraction(1, self.contributors),
            "central": Fraction(0),
        }
        return shares[self.placement]

    def require_enough(self, contributors: int, *, secure: bool) -> None:
        """Refuse to show a sum of which ``contributors`` who are honest hold less than the noise.

        Raises:
            PrivacyError: each has a part of the noise, and they are too few, or are shown one by
                one because there is no secure aggregation.
        """
        if self.placement != "distributed":
            return
        if not secure:
            raise PrivacyError(
                "noise 'distributed' without secure aggregation shows the server vectors with a "
                "fraction of the noise; use secure aggregation, or noise 'local'"
            )
        if contributors < self.contributors:
            raise PrivacyError(
                f"the noise of {contributors} honest contributors: expected {self.contributors} or "
                "more"
            )

    def contribution(
        self, features: Tensor, labels: Tensor, source: KeyStream | None = None
    ) -> NoisyVector:
        """A client's clipped statistics with the client's noise.

        Args:
            features: ``(N, D)``.
            labels: ``(N,)``; samples of classes outside the public list are left out.
            source: of the noise; the system's entropy by default.
        """
        memory = clipped_memory(
            self.layout.empty_memory(), features, labels, self.mechanism, self.layout.classes
        )
        vector, share = self.layout.pack(memory), self.client_share
        if share:
            vector = vector + self.mechanism.noise(
                self.layout, parties=share.denominator, source=source
            )
        return NoisyVector(vector, self.layout.digest, share)


def terms_of(layout: StatisticsLayout, release: PrivateRelease | None) -> str:
    """What all vectors in one sum must have in common, as text."""
    if release is None:
        return layout.digest
    return f"{layout.digest} {release.placement} {release.client_share} {release.mechanism}"


class PrivateSum:
    """The server's side of a release: adds contributions, then publishes their sum.

    Contributions that lack their share of the noise are refused, and nothing is published before
    the sum holds at least the noise of a release.
    """

    def __init__(self, release: PrivateRelease) -> None:
        self.agreed = release
        self.contributors = 0
        self._total = np.zeros(release.layout.size, dtype=np.int64)
        self._noise = Fraction(0)
        self._published = False

    def add(self, contribution: NoisyVector) -> None:
        """Add a client's vector.

        Raises:
            PrivacyError: it was laid out for another release, holds less noise than agreed, or
                comes after publication.
            OverflowError: the sum does not fit.
        """
        self.add_total(contribution, contributors=1)

    def add_total(self, contribution: NoisyVector, contributors: int) -> None:
        """Add the sum of several clients' vectors, as secure aggregation gives it.

        Args:
            contribution: the sum; ``noise_share`` is that of each client.
            contributors: how many clients it is the sum of.
        """
        agreed = self.agreed
        if contribution.layout_digest != agreed.layout.digest:
            raise PrivacyError("a contribution for other classes or another kind of memory")
        if contribution.noise_share < agreed.client_share:
            raise PrivacyError(
                f"a contribution with {contribution.noise_share} of the noise: expected at least "
                f"{agreed.client_share} with placement '{agreed.placement}'; it was not added"
            )
        if self._published:
            raise PrivacyError(
                "this sum has been published; what is added now would show in the difference to "
                "the next publication. Start another release"
            )
        if overflows(torch.from_numpy(self._total), torch.from_numpy(contribution.vector)):
            raise OverflowError("the sum with its noise exceeds 64 bits; use a larger step")
        self._total = self._total + contribution.vector
        self._noise += contribution.noise_share * contributors
        self.contributors += contributors

    def finish(self, source: KeyStream | None = None) -> NDArray[np.int64]:
        """The noisy sum ``(layout.size,)``; with ``central`` placement its noise is added now.

        After this nothing can be added, and asking again gives the same vector.

        Args:
            source: of the server's noise; the system's entropy by default.

        Raises:
            PrivacyError: the contributions hold less noise than a release needs.
        """
        agreed = self.agreed
        if agreed.placement == "central" and not self._noise:
            self._total = self._total + agreed.mechanism.noise(agreed.layout, source=source)
            self._noise = Fraction(1)
        if self._noise < 1:
            raise PrivacyError(
                f"{self.contributors} contributors give {self._noise} of the noise of a release; "
                f"expected at least {agreed.contributors} contributors"
            )
        self._published = True
        return self._total.copy()

    @property
    def noise_variance(self) -> float:
        """Variance of the noise in the sum, in variances of a release."""
        return float(self._noise)

    def publish(
        self, *, minimum_count: float = 1.0, source: KeyStream | None = None
    ) -> PrototypeMemory:
        """The memory of the noisy sum.

        Args:
            minimum_count: classes whose noisy count is lower are left out.
            source: as for :meth:`finish`.

        Raises:
            PrivacyError: as :meth:`finish`.
        """
        return memory_of(self.agreed, self.finish(source), self.noise_variance, minimum_count)


def memory_of(
    agreed: PrivateRelease,
    vector: NDArray[np.int64],
    noise_variance: float = 1.0,
    minimum_count: float = 1.0,
) -> PrototypeMemory:
    """The plausible memory behind a noisy vector.

    Args:
        agreed: what the vector was made under.
        vector: ``(layout.size,)``, of one release or the sum of several.
        noise_variance: of its noise, in variances of one release.
        minimum_count: classes whose noisy count is lower are left out.
    """
    memory = agreed.layout.unpack(vector, minimum_count)
    floor = agreed.mechanism.moment_noise(agreed.layout) * math.sqrt(noise_variance)
    return make_plausible(memory, agreed.mechanism.clip, floor)


def release_by_threshold(
    memory: PrototypeMemory,
    mechanism: GaussianMechanism,
    delta: float,
    source: KeyStream | None = None,
) -> PrototypeMemory:
    """A noisy copy of a memory whose class list is itself private.

    A class is published only if its noisy count passes ``1 + sigma Phi^-1(1 - delta)``, with
    ``sigma`` the noise of a count. The release costs the mechanism's epsilon at a delta that is
    larger by ``delta``.

    Args:
        memory: of samples clipped by :func:`clipped_memory`; the server is trusted with it.
        mechanism: the clipping that was done, and the noise.
        delta: probability with which the class of a single sample is published.
        source: of the noise; the system's entropy by default.
    """
    if not 0 < delta < 0.5:
        raise ValueError(f"delta={delta}: expected a probability between 0 and 0.5")
    if len(memory) == 0:
        return memory.copy()
    layout = StatisticsLayout(memory, memory.classes.tolist())
    sigma = math.sqrt(mechanism.variances(layout)["count"])
    # One step more than for a continuous Gaussian covers the discrete one's tail.
    threshold = COUNT_SCALE + 1 + sigma * -NormalDist().inv_cdf(delta)
    noisy = layout.pack(memory) + mechanism.noise(layout, source=source)
    published = layout.unpack(noisy, minimum_count=threshold / COUNT_SCALE)
    return make_plausible(published, mechanism.clip, mechanism.moment_noise(layout))
