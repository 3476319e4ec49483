"""What one measurement says, and the targets it is held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["speedup", "cost", "share", "limit"]
"""How ``ours`` and ``peer`` make the value that meets a target or misses it.

* ``speedup``: ``peer / ours``, at least the target.
* ``cost``: ``ours / peer``, at most the target.
* ``share``: ``ours / peer``, at most the target, where the two are not the same work: a part and
  the whole, or more than the peer does.
* ``limit``: ``ours`` itself, at most the target; there is no peer.
"""


@dataclass(frozen=True)
class Point:
    """The place of a comparison on a curve.

    Attributes:
        curve: name of the operation.
        classes: number of classes, the horizontal axis.
    """

    curve: str
    classes: int


@dataclass(frozen=True)
class SpeedComparison:
    """A case that was measured on both sides in the same run.

    Attributes:
        case: what was measured, on which sizes.
        peer_name: what it was measured against, or the meaning of a limit.
        ours: our cost, in ``unit``.
        peer: the peer's cost, in ``unit``; None for a limit.
        kind: see :data:`Kind`.
        target: bound on :attr:`value`; None reports the value without judging it.
        threads: threads that torch used on both sides.
        difference: largest absolute difference between the two results; None where a limit has
            no second result.
        unit: ``"s"`` (seconds) or ``"MiB"``.
        point: its place on a curve, where it is part of one.
    """

    case: str
    peer_name: str
    ours: float
    peer: float | None
    kind: Kind
    target: float | None
    threads: int
    difference: float | None = None
    unit: Literal["s", "MiB"] = "s"
    point: Point | None = None

    @property
    def value(self) -> float:
        """The ratio, or for a limit the measured quantity.

        Raises:
            ValueError: a ratio was asked of a comparison without a peer.
        """
        if self.kind == "limit":
            return self.ours
        if self.peer is None:
            raise ValueError(
                f"'{self.case}' has no peer; a comparison of kind {self.kind} needs one"
            )
        return self.peer / self.ours if self.kind == "speedup" else self.ours / self.peer

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.kind == "speedup" else self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        """Give all fields, the value and the verdict, for JSON."""
        return {**dataclasses.asdict(self), "value": self.value, "met": self.met}


@dataclass(frozen=True)
class Size:
    """How much data the cases work on.

    Attributes:
        samples: number of feature vectors.
        width: features per vector.
        classes: number of classes, equally frequent.
        batch: mini-batch of the streaming cases.
        images: number of 3x32x32 images of the training-loop cases.
        step_width: channels of the first stage of the ResNet-18 whose steps are timed.
        many_classes: numbers of classes of the curves of ``scale``.
        repeats: rounds of each interleaved measurement; the best of them counts.
        runs: of each whole process that is timed; the median of them counts.
        rows: of the commands that are timed as whole processes; None for all.
        cifar100: file or folder of CIFAR-100 for them; None leaves its rows out.
        device: of the groups that measure one (``accelerator``, ``steps``).
        per_class: training images a class of it; of the test images a third as many, at most all.
    """

    samples: int
    width: int
    classes: int
    batch: int
    images: int
    step_width: int
    many_classes: tuple[int, ...]
    repeats: int
    runs: int
    rows: tuple[str, ...] | None = None
    cifar100: str | None = None
    per_class: int = 30
    device: str = "cpu"


SIZES = {
    "full": Size(
        samples=50_000,
        width=512,
        classes=100,
        batch=128,
        images=6_400,
        step_width=64,
        many_classes=(1_000, 3_000, 10_000, 30_000, 100_000),
        repeats=7,
        runs=5,
    ),
    "small": Size(
        samples=600,
        width=16,
        classes=6,
        batch=64,
        images=128,
        step_width=2,
        many_classes=(50, 200),
        repeats=1,
        runs=1,
        rows=("nearest_mean",),
    ),
}
"""``full`` is what the targets are stated for; ``small`` only shows that everything runs."""

Group = Callable[[Size], Iterator[SpeedComparison]]
"""A registered group of cases."""


def require_equal(case: str, difference: float, tolerance: float) -> float:
    """The difference between two results, if it is small enough for their times to be compared.

    Raises:
        ValueError: the two sides computed different things.
    """
    if not difference <= tolerance:
        raise ValueError(
            f"{case}: the two sides differ by {difference:g}, more than {tolerance:g}; "
            "their times say nothing about each other"
        )
    return difference
