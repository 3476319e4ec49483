"""What a contribution must satisfy before it is used; its sender may be faulty or hostile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocl.errors import ProtoclError
from protocl.federation.exactly_once.client import MAX_LIVES
from protocl.federation.wire.limits import Limits
from protocl.federation.wire.moments import Moments
from protocl.federation.wire.statistics import Packed, PackedForm, extremes

Reason = Literal[
    "format", "size", "fingerprint", "mismatch", "shape", "values", "bounds", "sequence", "names",
    "forgotten", "claimed", "overflow", "screened", "classes", "owner",
    "left", "release",
]  # fmt: skip

LONGEST_LIFE = 64
"""Letters of the text that names a life of a client."""

LONGEST_RELEASE = 4096
"""Letters of a signed release."""

T = TypeVar("T")

Ids = NDArray[np.int64]

_UNTIL: dict[Reason, str] = {
    "screened": "judged again in every round",
    "overflow": "until the server merges with a larger step",
    "sequence": "until the full state arrives",
    "forgotten": "for good",
    "claimed": "until that one is silent for some rounds",
    "owner": "until its secret is shown",
    "classes": "until the server accepts more of them",
    "left": "until it comes back with the release of another edge",
    "release": "until one is shown that this edge accepts",
}


def until(reason: Reason) -> str:
    """Say how long a contribution that was refused for ``reason`` will be refused."""
    return _UNTIL.get(reason, "as long as the client sends it so")


class RejectedError(ProtoclError, ValueError):
    """A message that must not be merged.

    Attributes:
        reason: one word to count by.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason


def checked_claims(
    values: Mapping[str, object],
) -> tuple[tuple[str, ...], tuple[int, ...], str, str, bool]:
    """The lives, shares, secret, release and withdrawal that a header may name.

    Raises:
        RejectedError: they are of another kind, or too long.
    """
    return (
        _checked_list(values, "replaces", str),
        _checked_list(values, "shares", int),
        _checked_text(values, "secret", LONGEST_LIFE),
        _checked_text(values, "release", LONGEST_RELEASE),
        "withdraws" in values and _checked_withdrawal(values),
    )


def _checked_list(values: Mapping[str, object], key: str, kind: type[T]) -> tuple[T, ...]:
    items = values.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise RejectedError("format", f"{key}={items!r:.80}: expected a list of {kind.__name__}")
    if len(items) > MAX_LIVES or any(len(str(item)) > LONGEST_LIFE for item in items):
        raise RejectedError(
            "format",
            f"{key}={items!r:.80}: expected at most {MAX_LIVES} of {LONGEST_LIFE} letters",
        )
    return tuple(items)


def _checked_text(values: Mapping[str, object], key: str, longest: int) -> str:
    text = values.get(key, "")
    if not isinstance(text, str) or len(text) > longest:
        raise RejectedError("format", f"{key}: expected a text of {longest} letters at most")
    return text


def check_values(packed: Packed, form: PackedForm, limits: Limits, error: float) -> None:
    """Refuse statistics that no samples within the limits could have.

    Args:
        packed: of the right shapes and types.
        form: what they are.
        limits: of counts, classes and features.
        error: largest rounding error of a mean, as a share of the largest magnitude in its row.

    Raises:
        RejectedError: counts or means out of bounds, values that are not finite, or a variance
            below zero.
    """
    if not len(packed.counts):
        if any(array.any() for array in packed.sums.values()):
            raise RejectedError("values", "sums of no samples are not zero")
        return
    _check_counts(packed.counts, limits)
    feature = limits.feature_bound(form) * (1 + error)
    for name in form.shapes:
        _check_magnitude(name, packed, form, feature)
    if "second" in packed.sums:
        _check_moment(packed, form, limits, error)


def check_class_ids(ids: Ids, limits: Limits, allowed: Ids | None = None, means: int = 1) -> None:
    """Refuse class ids that are negative, repeated, out of order, too many or not ``allowed``.

    Args:
        ids: of classes, or of ``means`` groups of each.
        limits: of the number of classes.
        allowed: ids of classes that are accepted, None for any.
        means: groups of each class.

    Raises:
        RejectedError: they are.
    """
    classes = ids if means == 1 else np.unique(ids // means)
    if len(classes) > limits.max_classes:
        raise RejectedError(
            "bounds", f"{len(classes)} classes; at most {limits.max_classes} are accepted"
        )
    if len(ids) and (ids[0] < 0 or np.logical_or.reduce(ids[1:] <= ids[:-1])):
        raise RejectedError("values", "class ids are negative, repeated or out of order")
    if allowed is not None and (strange := classes[~np.isin(classes, allowed)]).size:
        raise RejectedError(
            "classes", f"class {strange[0]} is not in limits.classes, the list of those accepted"
        )


def _check_counts(counts: NDArray[np.int64], limits: Limits) -> None:
    least, most = extremes(counts)
    if not 1 <= least <= most <= limits.max_count:
        raise RejectedError(
            "bounds", f"counts lie in {least}..{most}; expected 1..{limits.max_count}"
        )


def _check_magnitude(name: str, packed: Packed, form: PackedForm, feature: float) -> None:
    """No mean may exceed the largest feature; NaN and infinity fail the same comparison."""
    array = packed.sums[name]
    limit = (feature**2 if name == "second" else feature) / form.units[name]
    # At first as if each sum were of one sample, which is enough for most that is well.
    if name == "second" and form.upper in packed.sums:
        array, limit, within = form.values(packed, name), limit * form.units[name], False
    elif form.exact:
        within = packed.reach[name] <= limit
    else:
        smallest, most = extremes(array)
        within = most <= limit and smallest >= -limit  # false for NaN
    if within:
        return
    samples = packed.counts
    if name == form.pooled:
        samples = samples.sum(keepdims=True)
    rows = array.reshape(1 if form.exact else len(array), len(samples), -1)
    bound = samples * limit
    if not bool(((rows.max(axis=2) <= bound) & (rows.min(axis=2) >= -bound)).all()):
        raise RejectedError(
            "values",
            f"array '{name}' holds NaN, infinite values, or means of features beyond {feature:g}",
        )


def _check_moment(packed: Packed, form: PackedForm, limits: Limits, error: float) -> None:
    moments = Moments(packed, form, error)
    if not moments.variances_hold():
        raise RejectedError("values", "the second moment is less than the means allow")
    if form.level in ("shared", "full") and not moments.scatter_holds(limits.max_width):
        raise RejectedError("values", "the second moment is one that no samples could have")


# -- beside what else is there -------------------------------------------------------------------


class Reaching(Protocol):
    """What says how far its sums reach."""

    @property
    def reach(self) -> dict[str, int]:
        """See :class:`.Packed`."""


def require_share(parts: Sequence[Reaching], packed: Packed, limits: Limits) -> None:
    """Refuse what would take more than its client's share of 64 bits, whatever others bring back.

    Args:
        parts: what else counts of the client.
        packed: what is to be added to it.
        limits: of the share.

    Raises:
        RejectedError: it would.
    """
    for name, reach in packed.reach.items():
        own = sum(part.reach[name] for part in parts) + reach
        if own > (share := limits.share(name)):
            raise RejectedError(
                "overflow",
                f"'{name}' of this client alone could reach {own:.3g} steps, and exceed "
                f"{_share_in_words(share, limits)}",
            )


def _share_in_words(share: int, limits: Limits) -> str:
    if share == limits.share("second"):
        return "64 bits"
    return f"its share of 64 bits, {share:.3g} for each of limits.max_clients={limits.max_clients}"


def require_few_classes(
    client: Iterable[Ids], everybody: Iterable[Ids], ids: Ids, limits: Limits, means: int = 1
) -> None:
    """Refuse more classes than one client may have, or all together.

    Args:
        client: classes of what else counts of the client, in any number of pieces.
        everybody: the classes of all, in any number of pieces.
        ids: of what is to be added.
        limits: of both.
        means: groups of each class, of which these are the ids.

    Raises:
        RejectedError: they would be more.
    """
    for name, most, whose, pieces in (
        ("max_classes", limits.max_classes, "this client", client),
        ("max_classes_in_all", limits.max_classes_in_all, "all clients", everybody),
    ):
        # Their union only where their sum does not tell.
        known = [ids, *pieces]
        if sum(map(len, known)) <= most:
            continue
        if (number := len(np.unique(np.concatenate(known) // means))) > most:
            raise RejectedError(
                "classes", f"{whose} would have {number} classes; limits.{name}={most}"
            )


# -- in headers ----------------------------------------------------------------------------------


def _checked_withdrawal(values: Mapping[str, object]) -> bool:
    """Whether a header withdraws something; RejectedError where its contribution cannot."""
    withdraws = values.get("withdraws", False)
    if not isinstance(withdraws, bool) or (withdraws and values["kind"] != "full"):
        raise RejectedError(
            "format", f"withdraws={withdraws!r:.80}: expected true or false, true of a full state"
        )
    return withdraws
