"""Sufficient statistics of one batch, computed in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from protocl.memory.feature_maps import FeatureMap
from protocl.memory.limits.digits import check_wide
from protocl.memory.summation import (
    EXACT_INTEGER_BITS,
    all_finite,
    quantise,
    rows_per_exact_product,
)
from protocl.memory.symmetric import add_upper_products_, pack_triangles

Level = Literal["mean", "diagonal", "shared", "full"]

LEVELS: dict[str, Callable[[int], tuple[int, ...] | None]] = {
    "mean": lambda width: None,
    "diagonal": lambda width: (-1, width),
    "shared": lambda width: (width, width),
    "full": lambda width: (-1, width, width),
}
"""Shape of the second moment by level; -1 stands for the number of classes."""

_PIECE = 1 << 17
"""Elements of the float64 working copy of one piece: 1 MiB stays in the cache, and larger
temporaries cost a page fault for every 4 KiB at each turn."""

_LEAST_ROWS = 64
"""Rows of a product at least: with fewer it waits for its sum, which is read and written each time
(a width of 10,000 takes 1.9 times as long with the 13 rows of a piece)."""

_PIECE_OF_SUMS = 1 << 20
"""The same where rows are only added up: there a call costs as much as thousands of rows."""


def require_tensor(name: str, value: Any) -> None:
    """Refuse arrays and lists, which the caller may want on another device or of another type.

    Raises:
        TypeError: ``value`` is no tensor, or a sparse one.
    """
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"{name} is a {kind}: expected a tensor, such as {_as_tensor(name, value)}")
    if value.layout is not torch.strided:
        raise TypeError(
            f"{name} is a tensor of layout {value.layout}: expected a dense one, such as "
            f"{name}.to_dense()"
        )


def _as_tensor(name: str, value: Any) -> str:
    """What to write for ``value`` to be a tensor."""
    if hasattr(value, "toarray"):  # SciPy's sparse matrices
        return f"torch.as_tensor({name}.toarray())"
    first = next(iter(value), None) if hasattr(value, "__iter__") else None
    if isinstance(first, str) and not hasattr(value, "columns"):
        return (
            f"names, ids = numpy.unique({name}, return_inverse=True) gives: torch.as_tensor(ids), "
            "where names[i] is the name of class i"
        )
    if hasattr(value, "to_numpy"):  # tables
        return f"torch.as_tensor({name}.to_numpy())"
    return f"torch.as_tensor({name})"


def check_batch(features: Tensor, labels: Tensor, feature_dim: int) -> None:
    """Refuse a batch whose types or shapes do not fit.

    Raises:
        TypeError: they are no tensors, features are not floating point, or labels not integers.
        ValueError: ``features`` is not ``(N, feature_dim)`` or ``labels`` not ``(N,)``.
    """
    require_tensor("features", features)
    require_tensor("labels", labels)
    if not features.is_floating_point():
        raise TypeError(f"features have dtype {features.dtype}: expected floating point")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels have dtype {labels.dtype}: expected integers")
    if features.ndim != 2 or features.shape[1] != feature_dim:
        raise ValueError(
            f"features have shape {tuple(features.shape)}: expected (N, {feature_dim}); "
            f"a backbone of another width needs a memory of its own"
        )
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}: expected ({len(features)},), "
            "one for each row of features"
        )


class BatchStatistics:
    """Class ids, counts, sums and second moments of a batch.

    No working copy holds more than a bounded piece of the batch, whatever its size.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)``.
        feature_dim: ``D`` that the memory expects.
        feature_map: map applied to each sample.
        level: which second moment is needed.
        raw: also sum the features before the map.
        step: quantisation step of fixed point, or None for floating point.
        device: where to compute.

    Raises:
        TypeError, ValueError: as :func:`check_batch`, or a label is negative.

    Attributes:
        rounded: whether fixed point has moved a feature; known after :meth:`sums`.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        feature_dim: int,
        feature_map: FeatureMap,
        level: Level,
        raw: bool,
        step: float | None,
        device: torch.device,
    ) -> None:
        check_batch(features, labels, feature_dim)
        self._features = features.detach().to(device)
        labels = labels.to(device=device, dtype=torch.int64)
        self._map, self._level, self._raw, self._step = feature_map, level, raw, step
        self._width = feature_map.width(feature_dim)
        self.class_ids, self._rows = torch.unique(labels, return_inverse=True)
        if len(labels) and int(self.class_ids[0]) < 0:
            raise ValueError(f"label {int(self.class_ids[0])}: class ids must be 0 or greater")
        self.counts = torch.bincount(self._rows, minlength=len(self.class_ids))
        self._largest = 0
        self.rounded = False
        self._kept: dict[str, Tensor] = {}

    def sums(self) -> dict[str, Tensor]:
        """Sums by name, and the second moment, as triangles, unless the level is ``full``.

        Raises:
            ValueError: a feature is NaN or infinite.
            OverflowError: a feature is beyond :data:`.digits.LARGEST`; in fixed point, a
                value or the sum of the batch does not fit.
        """
        classes = len(self.class_ids)
        totals = {"sum": self._zeros(classes, self._width)}
        if self._raw:
            totals["raw"] = self._zeros(classes, self._features.shape[1])
        if self._level == "diagonal":
            totals["second"] = self._zeros(classes, self._width)
        elif self._level == "shared":
            totals["second"] = self._zeros(self._width, self._width)
        rows_at_once = self._rows_at_once()
        for start in range(0, len(self._rows), rows_at_once):
            self._add_piece(totals, slice(start, start + rows_at_once))
        if self._level == "shared":
            totals["second"] = pack_triangles(totals["second"])
        if not all_finite(totals["sum"]):
            self._refuse_not_finite()
        self._require_room()
        return totals

    def _rows_at_once(self) -> int:
        if self._level == "shared":
            return max(_LEAST_ROWS, _PIECE // self._width)
        return max(1, (_PIECE_OF_SUMS if self._step is None else _PIECE) // self._width)

    def second_moments(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Per-class second moments, a few classes at a time; call :meth:`sums` first.

        Yields:
            ascending positions ``(G,)`` among ``class_ids`` and the upper triangles of their
            moments ``(G, W (W + 1) / 2)``.
        """
        order = torch.argsort(self._rows, stable=True)
        starts = self.counts.cumsum(0) - self.counts
        # Classes of like size go together, so that padding to the largest of them is short.
        for positions in torch.argsort(self.counts).split(max(1, _PIECE // self._width**2)):
            positions = positions.sort().values
            counts = self.counts[positions]
            moments = self._zeros(len(positions), self._width, self._width)
            length = max(1, _PIECE // (self._width * len(positions)))
            for offset in range(0, int(counts.max()), length):
                places = torch.arange(
                    offset, offset + min(length, int(counts.max()) - offset), device=order.device
                )
                present = places < counts[:, None]
                samples = order[torch.where(present, starts[positions][:, None] + places, 0)]
                values = self._values(samples.flatten())[1].view(*samples.shape, self._width)
                self._add_products(
                    moments, values if present.all() else values * present[..., None]
                )
            yield positions, pack_triangles(moments)

    def second_moment_bound(self) -> int:
        """Largest magnitude that an entry of a class's second moment can have, in fixed point."""
        return self._largest**2 * int(self.counts.max())

    def _zeros(self, *size: int) -> Tensor:
        kind = torch.float64 if self._step is None else torch.int64
        return torch.zeros(size, dtype=kind, device=self._features.device)

    def _add_piece(self, totals: dict[str, Tensor], piece: slice) -> None:
        rows = self._rows[piece]
        raw, mapped = self._values(piece)
        self._add_rows(totals["sum"], rows, mapped)
        if "raw" in totals:
            self._add_rows(totals["raw"], rows, raw)
        if self._level == "diagonal":
            squares = self._memory_for("squares", mapped)
            self._add_rows(totals["second"], rows, torch.mul(mapped, mapped, out=squares))
        elif self._level == "shared":
            self._add_products(totals["second"][None], mapped[None])

    def _add_rows(self, total: Tensor, rows: Tensor, values: Tensor) -> None:
        """Add each row of ``values`` ``(L, W)`` to the row of ``total`` that it belongs to."""
        if self._step is None:
            total.index_add_(0, rows, values)
        elif float(values.abs().max()) * len(values) <= 2**EXACT_INTEGER_BITS:
            # Every partial sum is exact in float64, whose additions are far quicker than int64's.
            part = torch.zeros(total.shape, dtype=torch.float64, device=total.device)
            total += part.index_add_(0, rows, values).to(torch.int64)
        else:
            total.index_add_(0, rows, values.to(torch.int64))

    def _add_products(self, moments: Tensor, values: Tensor) -> None:
        """Add ``values^T values`` ``(G, W, W)`` of ``(G, L, W)``, at least its upper blocks."""
        if self._step is None:
            add_upper_products_(moments, values)
            return
        for part in values.split(rows_per_exact_product(values, self._step), dim=1):
            moments += (part.mT @ part).to(torch.int64)

    def _values(self, index: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Features before and after the map, float64; whole numbers in fixed point."""
        features = self._features[index]
        if self._step is None:
            # Half precision is summed after conversion, which is exact.
            features = features if features.dtype == torch.float64 else features.to(torch.float32)
            mapped = self._mapped(features)
            if mapped.dtype == torch.float64:
                check_wide(mapped, squared=self._level != "mean")
            else:
                mapped = self._memory_for("mapped", mapped).copy_(mapped)
            return features.to(torch.float64) if self._raw else mapped, mapped
        if not all_finite(features):
            self._refuse_not_finite()
        raw = quantise(features, self._step)
        # One compare of a batch tells it of nearly all features; the rest need not be looked at.
        self.rounded = self.rounded or not torch.equal(raw * self._step, features.to(raw))
        if self._map.spec == "identity":
            mapped = raw
        else:
            mapped, self.rounded = quantise(self._mapped(raw * self._step), self._step), True
        self._largest = max(self._largest, int(mapped.abs().max()), int(raw.abs().max()))
        if self._level != "mean":
            rows_per_exact_product(mapped, self._step)
        return raw, mapped

    def _mapped(self, features: Tensor) -> Tensor:
        if self._map.spec == "identity":
            return features
        # Under autocast a projection would run in half precision whatever its inputs.
        with torch.autocast(features.device.type, enabled=False):
            return self._map(features)

    def _memory_for(self, name: str, values: Tensor) -> Tensor:
        """Float64 memory of the shape of ``values`` ``(L, W)``, the same for every piece.

        Memory that is given back after each piece may go back to the system, and costs a page
        fault for every 4 KiB again: up to eight times the work itself, or nothing, by chance.
        """
        kept = self._kept.get(name)
        if kept is None or len(kept) < len(values):
            kept = self._kept[name] = torch.empty_like(values, dtype=torch.float64)
        return kept[: len(values)]

    def _require_room(self) -> None:
        """Refuse a batch whose own sums could pass 64 bits."""
        power = 1 if self._level == "mean" else 2
        # What one feature gives always fits: it is exact in float64.
        if self._largest**power * len(self._rows) >= 2**63:
            raise OverflowError(
                f"{len(self._rows)} features of magnitude up to "
                f"{self._largest * (self._step or 1):g} do not fit 64-bit fixed point "
                f"with step {self._step:g} at once; add them in smaller batches, or use a larger "
                "step"
            )

    def _refuse_not_finite(self) -> None:
        for start in range(0, len(self._features), 4096):
            bad = ~torch.isfinite(self._features[start : start + 4096]).all(dim=1)
            if bool(bad.any()):
                row = start + int(bad.nonzero()[0])
                raise ValueError(
                    f"features of sample {row} are NaN or infinite: expected finite numbers"
                )
        raise ValueError(
            f"the sum of the features under the map '{self._map.spec}' is not finite; "
            "scale the features down"
        )
