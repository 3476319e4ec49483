"""Whether a vector, or a sum of vectors, is one that samples could have."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from protocl.federation.privacy.release import PrivateRelease
from protocl.federation.privacy.vector import COUNT_SCALE, StatisticsLayout
from protocl.federation.wire.codec import pack_exactly
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.statistics import PackedForm
from protocl.federation.wire.validation import RejectedError, check_class_ids, check_values

Vector = NDArray[np.int64]

_TAIL = 16
"""Standard deviations of noise that are allowed for; beyond them lies less than 2^-180."""


class SumCheck:
    """Refuses vectors that are out of range, as plain messages that are would be refused.

    Without noise all that holds for plain messages is checked. With noise, sums lie within what
    the count allows of clipped samples, up to the noise; nobody sees then how many classes a client
    has, so that all of the list count.

    Args:
        layout: of the vectors.
        release: clipping and noise; None for neither.
        limits: of what one client may send.

    Raises:
        ValueError: the limits are more than 64 bits hold; with noise, the list has more classes
            than one client may have.
    """

    def __init__(
        self, layout: StatisticsLayout, release: PrivateRelease | None, limits: Limits
    ) -> None:
        self.layout = layout
        self.release = release
        self.limits = limits
        self._form = PackedForm(layout.empty_memory())
        limits.feature_bound(self._form)
        self._allowed = limits.allowed_ids()
        if release is not None and len(layout.classes) > limits.max_classes:
            raise ValueError(
                f"limits.max_classes={limits.max_classes}: with noise each vector has all "
                f"{len(layout.classes)} classes of the list; raise it, or name fewer in "
                "limits.classes"
            )

    def require_possible(self, vector: Vector, contributors: int = 1) -> None:
        """Check a sum of the vectors of ``contributors`` clients.

        Raises:
            RejectedError: it cannot be one.
        """
        if self.release is None:
            self._check_exact(vector, contributors)
        else:
            self._check_noisy(vector, self.release, contributors)

    def _check_exact(self, vector: Vector, contributors: int) -> None:
        count = vector[self.layout.parts["count"]]
        if (count % COUNT_SCALE).any() or (count < 0).any():
            raise RejectedError("bounds", "counts are negative or no whole numbers")
        memory = self.layout.unpack(vector)
        if not np.array_equal(self.layout.pack(memory), vector):
            raise RejectedError("values", "sums of classes without samples are not zero")
        packed, most = pack_exactly(memory), self._most(contributors)
        check_class_ids(packed.class_ids, most, self._allowed)
        check_values(packed, self._form, most, error=0.0)

    def _most(self, contributors: int) -> Limits:
        """What so many clients may claim together."""
        return replace(
            self.limits,
            max_count=self.limits.max_count * contributors,
            max_classes=self.limits.max_classes * contributors,
        )

    def _check_noisy(self, vector: Vector, release: PrivateRelease, contributors: int) -> None:
        vectors = max(contributors, 1)
        noise = math.sqrt(max(float(release.client_share) * vectors, 1e-300))
        spread = {
            name: _TAIL * noise * math.sqrt(variance)
            for name, variance in release.mechanism.variances(self.layout).items()
        }
        square = math.sqrt(release.mechanism.largest_square(self.layout.step))
        largest = {"sum": square, "raw": square, "second": square**2}
        count = vector[self.layout.parts["count"]].astype(np.float64)
        most = self.limits.max_count * vectors * COUNT_SCALE
        if count.min() < -spread["count"] or count.max() > most + spread["count"]:
            raise RejectedError("bounds", "counts lie beyond what noise could make of any")
        samples = (max(float(count.sum()), 0.0) + spread["count"] * len(count)) / COUNT_SCALE
        for name, reach in largest.items():
            part = self.layout.parts.get(name)
            if part is None:
                continue
            bound = samples * reach + spread[name]
            # As floats, since the magnitude of the least integer is none.
            if np.abs(vector[part].astype(np.float64)).max() > bound:
                raise RejectedError("values", f"'{name}' is beyond what clipped samples can give")
