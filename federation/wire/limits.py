"""How much a client may claim and send before the server refuses it; every number is a setting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from protocl.config.validation import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    Range,
    ranged,
    require_declared,
)
from protocl.memory.rows import class_id_of

if TYPE_CHECKING:
    from protocl.federation.wire.statistics import PackedForm

WIDEST = int(np.iinfo(np.int64).max)

_LARGEST_FEATURE = 1e6  # unless 64 bits hold less
_LARGEST = 1e150  # squares are still finite
_FEATURE = Range(
    f"a number > 0, and at most {_LARGEST:g}, since second moments hold its square",
    lambda value: 0 < value <= _LARGEST,
)


@dataclass(frozen=True)
class Limits:
    """What a client may claim and send (keys ``limits.*``); what is beyond is refused by name.

    With the defaults no message and no ``max_clients`` clients overflow sums of features by what
    they claim: a sample within ``max_feature`` fits 64 bits, and each client has its share of them.
    Second moments have two words instead. Where they have one, with ``moments="single"``, and in
    all sums of ``protected``, clients have no shares, and one may leave little to others.

    Attributes:
        max_bytes: of one message, all of its arrays, texts and numbers.
        max_messages: read from one client in a round.
        max_contributions: read from one message; what is beyond them is sent again.
        max_classes: of one client, in all that counts of it. With ``protected`` in one vector: in a
            masked one the client alone sees them, and a noisy one has all of the list.
        max_classes_in_all: of all clients together.
        classes: ids or names of the classes that are accepted; empty for any.
        max_text: letters of a class's name, and of any other text.
        max_count: samples of one class in one contribution.
        max_feature: magnitude of a (mapped) feature, hence of a mean. None for 1e6, or less where
            64 bits of fixed point do not hold the square of it; at most 1e150.
        max_clients: of sums of features in fixed point each client may take one part in so many of
            the 64 bits' range, so that so many cannot overflow together.
        max_width: of features up to which scatter matrices are factorised; wider ones are checked
            pair by pair, with 0 none is (:mod:`protocl.federation.wire.moments`).

    Example:
        >>> from protocl.federation import Limits
        >>> few = Limits(max_classes=10, classes=[0, 1, "cat"])
        >>> few.max_classes, few.max_clients, len(few.allowed_ids())
        (10, 1000, 3)
    """

    max_bytes: int = ranged(1 << 30, AT_LEAST_1)
    max_messages: int = ranged(16, AT_LEAST_1)
    max_contributions: int = ranged(16, AT_LEAST_1)
    max_classes: int = ranged(10_000, AT_LEAST_1)
    max_classes_in_all: int = ranged(100_000, AT_LEAST_1)
    classes: list[Any] = field(default_factory=list)
    max_text: int = ranged(256, AT_LEAST_1)
    max_count: int = ranged(10_000_000, AT_LEAST_1)
    max_feature: float | None = ranged(None, _FEATURE)
    max_clients: int = ranged(1000, AT_LEAST_1)
    max_width: int = ranged(1024, NOT_NEGATIVE)

    def __post_init__(self) -> None:
        require_declared(self)
        for one in self.classes:
            if not isinstance(one, int | str) or isinstance(one, bool) or one == "":
                raise ValueError(f"classes={self.classes!r:.80}: expected ids or names of classes")

    @classmethod
    def of_sum(cls) -> Limits:
        """What the merged memory of any number of clients stays within."""
        most = WIDEST
        return _OfSum(
            max_bytes=most, max_classes=most, max_classes_in_all=most, max_count=most,
            max_text=most, max_width=0,
        )  # fmt: skip

    def feature_bound(self, form: PackedForm) -> float:
        """Largest magnitude of a feature, of statistics that are packed like this.

        Raises:
            ValueError: ``max_feature`` is more than 64 bits hold.
        """
        if not form.exact:
            return self.max_feature or _LARGEST_FEATURE
        power = 2 if "second" in form.shapes else 1
        held = float(2 ** (62 // power)) * form.empty.step
        if self.max_feature is None:
            return min(held, _LARGEST_FEATURE)
        if self.max_feature > held:
            raise ValueError(
                f"limits.max_feature={self.max_feature:g}: one such feature does not fit 64 bits "
                f"at level '{form.level}' with step {form.empty.step:g}; expected at most "
                f"{held:g}, or a larger step"
            )
        return self.max_feature

    def allowed_ids(self) -> NDArray[np.int64] | None:
        """Ids of the classes that are accepted, ascending; None for any."""
        ids = {class_id_of(one) if isinstance(one, str) else int(one) for one in self.classes}
        return np.array(sorted(ids), dtype=np.int64) if ids else None

    def share(self, name: str) -> int:
        """Largest magnitude of a sum of one client's contributions, in fixed point."""
        # Squares of one honest client may need more than a share.
        return WIDEST if name == "second" else WIDEST // self.max_clients


@dataclass(frozen=True)
class _OfSum(Limits):
    """Of the features of a sum nothing is known but that it is finite."""

    def feature_bound(self, form: PackedForm) -> float:
        """See :class:`Limits`."""
        return _LARGEST
