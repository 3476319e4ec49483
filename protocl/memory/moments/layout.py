"""Which tensors hold the sums of a memory: their names, shapes and kinds of numbers.

======== ============================ ======================================================
moments  floating point               fixed point
======== ============================ ======================================================
pairs    value ``second + second_low``  ``second + 2^64 second_high``, both int64
single   ``second`` alone             ``second`` alone; a sum beyond 64 bits is refused
======== ============================ ======================================================

The other half of a second moment takes no memory until a number in it is not zero: without one it
has no columns. That of other sums, which are small, is always there in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from protocl.errors import DataError
from protocl.memory.batch import LEVELS, Level
from protocl.memory.symmetric import triangle_size

Moments = Literal["pairs", "single"]


class SumForm(NamedTuple):
    """How :meth:`protocl.PrototypeMemory.parts` gives a sum.

    Attributes:
        shape: of a class, or of the whole where classes share it.
        shared: whether all classes share it.
        symmetric: whether its rows are upper triangles of symmetric matrices.
        unit: what 1 stands for, in features or their products; 1.0 in floating point.
    """

    shape: tuple[int, ...]
    shared: bool
    symmetric: bool
    unit: float


@dataclass(frozen=True)
class Layout:
    """The tensors of one kind of memory.

    Attributes:
        level, width, exact, step, moments: of the memory.
        raw: how many features before the map are summed as well; 0 for none.
    """

    level: Level
    width: int
    raw: int
    exact: bool
    step: float
    moments: Moments

    @cached_property
    def forms(self) -> dict[str, SumForm]:
        """Each sum by name."""
        unit = self.step if self.exact else 1.0
        forms = {"sum": SumForm((self.width,), False, False, unit)}
        if self.raw:
            forms["raw"] = SumForm((self.raw,), False, False, unit)
        second = LEVELS[self.level](self.width)
        if second is not None:
            matrices = second.count(self.width) == 2
            row = (triangle_size(self.width),) if matrices else (self.width,)
            forms["second"] = SumForm(row, -1 not in second, matrices, unit**2)
        return forms

    @cached_property
    def halves(self) -> dict[str, str]:
        """For each sum that has another half the name of that."""
        names = {name: f"{name}_low" for name in self.forms if not self.exact}
        if "second" in self.forms:
            names["second"] = "second_high" if self.exact else "second_low"
            if self.moments == "single":
                del names["second"]
        return names

    @cached_property
    def owners(self) -> dict[str, str]:
        """Name of each tensor of numbers, in the order in which they are kept, to that of its sum.

        Those that come and go (``second_low``, ``second_high``) are among them.
        """
        owners = {}
        for name in self.forms:
            owners |= {name: name} | ({self.halves[name]: name} if name in self.halves else {})
        return owners

    def shared(self, name: str) -> bool:
        """Whether all classes share the tensor ``name``; False for ids and counts."""
        owner = self.owners.get(name)
        return owner is not None and self.forms[owner].shared

    def sizes(self, name: str, classes: int) -> list[tuple[int, ...]]:
        """Shapes that the tensor ``name`` may have, the first of which is the usual one."""
        owner = self.owners.get(name)
        if owner is None:
            return [(classes,)]
        rows = () if self.forms[owner].shared else (classes,)
        whole = rows + self.forms[owner].shape
        if name in ("second_low", "second_high"):
            return [(*whole[:-1], 0), whole]
        return [whole]

    def numbers(self, classes: int) -> int:
        """The most numbers that the sums of so many classes take.

        A second word in fixed point, which only sums beyond 64 bits need, does not count.
        """
        total = 0
        for name, form in self.forms.items():
            halves = 2 if name in self.halves and not self.exact else 1
            total += halves * form.shape[0] * (1 if form.shared else classes)
        return total

    @property
    def kind(self) -> torch.dtype:
        """Of the numbers."""
        return torch.int64 if self.exact else torch.float64


def is_zero(half: Tensor) -> bool:
    """Whether all of a half ``(..., T)`` is zero; ends at the first row that is not."""
    rows = half.reshape(-1, half.shape[-1]) if half.numel() else ()
    return not any(bool(row.any()) for row in rows)


def require_array(
    name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype, layout: Layout
) -> None:
    """Refuse the array ``name`` unless it is as it is stored, whatever the number of classes.

    Raises:
        DataError: it is missing, has another shape or type, or holds NaN or infinite values.
    """
    if name not in tensors:
        raise DataError(f"the statistics lack the array '{name}'")
    array, ids = tensors[name], tensors["class_ids"]
    sizes = layout.sizes(name, ids.shape[0] if ids.ndim else 0)
    if tuple(array.shape) not in sizes or array.dtype != dtype:
        raise DataError(
            f"array '{name}' is {tuple(array.shape)} {array.dtype}, expected {sizes[-1]} {dtype}"
        )
    if array.is_floating_point() and not bool(torch.isfinite(array).all()):
        raise DataError(f"array '{name}' holds NaN or infinite values")
