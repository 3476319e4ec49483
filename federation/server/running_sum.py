"""The sum of all contributions, which changes in single steps that happen or do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocl.federation.server.accumulator import Block
from protocl.federation.wire.statistics import Packed, PackedForm
from protocl.federation.wire.validation import RejectedError
from protocl.memory import PrototypeMemory

_BYTES = 1 << 26
"""What waits at least before it is added to the memory: a copy of the memory is made for it."""

Mark = tuple[PrototypeMemory, list[Packed], int]
"""What a sum was at some time."""


class RunningSum:
    """A memory, and the contributions that were added since, in the form in which they came.

    These two, put in place together, are the sum; the block that adds up is made of them anew
    where it was left half-way. So a step that fails, whenever it does, can be taken back
    (:meth:`return_to`): a memory that was handed out is never changed.

    Args:
        form: how contributions are packed.
        memory: where the sum begins; it is not changed.
        kept: whether contributions are kept elsewhere as well, so that waiting costs nothing.
    """

    _block: Block | None
    _sum: tuple[PrototypeMemory, list[Packed]]

    def __init__(self, form: PackedForm, memory: PrototypeMemory, *, kept: bool) -> None:
        self._form = form
        self._frugal = form.exact or not kept  # in floating point each block rounds
        self._begin(memory)

    @property
    def memory(self) -> PrototypeMemory:
        """The sum; read it, do not change it."""
        memory, waiting = self._sum
        if waiting:
            total, (block, self._block) = memory.copy(), (self._whole_block(), None)
            block.empty_into(total)
            self._begin(total)
        return self._sum[0]

    @property
    def class_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Classes of the memory, and of what was added since."""
        return self._ids, self._whole_block().class_ids

    def add(self, packed: Packed) -> None:
        """Add a contribution.

        Raises:
            RejectedError: in fixed point a sum would leave 64 bits; nothing is added.
        """
        block, self._block = self._whole_block(), None
        if block.add(packed):
            self._sum[1].append(packed)
            self._bytes += packed.nbytes
            self._block = block
            if block.full or (self._frugal and self._bytes > self._most):
                _ = self.memory
        else:  # sums come close to 64 bits, so that each must be looked at
            self._begin(self._merged(self.memory.copy(), packed))

    def replace(self, before: Sequence[Packed], packed: Packed) -> None:
        """Take ``before`` away and add ``packed``.

        Raises:
            RejectedError: as :meth:`add`.
        """
        self._begin(self._merged(self.without(before), packed))

    def without(self, parts: Sequence[Packed]) -> PrototypeMemory:
        """A memory without some of the contributions."""
        memory = self.memory.copy()
        for part in parts:
            memory.subtract(self._form.memory(part))
        return memory

    def take(self, memory: PrototypeMemory) -> None:
        """Be another memory from now on."""
        self._begin(memory)

    def mark(self) -> Mark:
        """What the sum is now."""
        memory, waiting = self._sum
        return memory, waiting, len(waiting)

    def return_to(self, mark: Mark) -> None:
        """Be again what the sum was."""
        memory, waiting, number = mark
        self._begin(memory, waiting[:number])

    # -- parts ------------------------------------------------------------------------------

    def _begin(self, memory: PrototypeMemory, waiting: Sequence[Packed] = ()) -> None:
        self._block = None
        self._bytes = sum(packed.nbytes for packed in waiting)
        self._most = max(_BYTES, 2 * memory.nbytes)
        self._ids = memory.class_ids.cpu().numpy()
        self._sum = memory, list(waiting)

    def _whole_block(self) -> Block:
        """The sum of what waits; made anew where the last one was left half-way."""
        if self._block is None:
            memory, waiting = self._sum
            block = Block(self._form)
            block.learn_reach(memory)
            for packed in waiting:
                block.add(packed)
            self._block = block
        return self._block

    def _merged(self, memory: PrototypeMemory, packed: Packed) -> PrototypeMemory:
        try:
            return memory.merge(self._form.memory(packed))
        except OverflowError as error:
            raise RejectedError("overflow", str(error)) from error
