"""One more pass over an experience after it was trained on, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.strategies.plugin.extraction import features_of
from protocl.strategies.plugin.feature_buffer import FeatureChunk, in_chunks
from protocl.strategies.plugin.model_output import tensors_in


class ExtraPass:
    """Adds the statistics of an experience, or replaces those that it added just before.

    So that training on the same experience again straight away counts nothing twice.
    """

    def __init__(self) -> None:
        self._samples = torch.zeros(2, 0)
        self._last: tuple[Tensor, PrototypeMemory | None, str] | None = None

    def forget(self) -> None:
        """Forget what was added last, so that the next pass replaces nothing."""
        self._last = None

    def chunks(
        self, strategy: Any, layer: str | None = None, num_workers: int = 0
    ) -> Iterator[FeatureChunk]:
        """Features of the strategy's experience, whose model the caller keeps undisturbed.

        Yields:
            Chunks in order. The next one overwrites the one before.
        """
        dataset = strategy.experience.dataset
        signature = Signature(len(dataset))

        def signed() -> Iterator[FeatureChunk]:
            passed = features_of(strategy, dataset, layer, num_workers, held=True)
            for x, features, labels, tasks in passed:
                signature.add(x, labels)
                yield features, labels, tasks

        yield from in_chunks(signed())
        self._samples = signature.value()

    def added(
        self, memory: PrototypeMemory | None, part: PrototypeMemory, moves: bool
    ) -> PrototypeMemory:
        """``memory`` with the statistics of the samples that were read last.

        Args:
            memory: to be added to; None for none yet.
            part: the statistics; where the order of samples counts, those of before among them.
            moves: the backbone can have moved since the pass before.

        Raises:
            ValueError: what is to be replaced cannot be taken out.
        """
        if memory is not None and self._last is not None:
            before, contribution, revision = self._last
            if revision == memory.revision and torch.equal(before, self._samples):
                if contribution is None:
                    return memory  # the backbone is frozen: the statistics are already there
                memory -= contribution
        if part.ordered:
            memory = part
        elif memory is not None:
            memory += part
        else:
            # Without a copy: statistics can be gigabytes. Only a moving backbone needs its own.
            memory = part.copy() if moves else part
        self._last = (self._samples, part if moves else None, memory.revision)
        return memory


def _flat(x: Any, labels: Tensor) -> Tensor:
    """All numbers ``(B, K)`` of the inputs; NaN, which equals nothing, where there are none."""
    found = [part.reshape(len(labels), -1).float() for part in tensors_in(x)]
    if not found:
        return torch.full((len(labels), 1), torch.nan, device=labels.device)
    return found[0] if len(found) == 1 else torch.cat(found, 1)


class Signature:
    """What tells samples from other samples: label and one projection of each input.

    Args:
        samples: number of them.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._seen = 0
        self._direction: Tensor | None = None
        self._values: Tensor | None = None

    def add(self, x: Any, labels: Tensor) -> None:
        """Take in inputs ``(B, ...)``, or what holds several such, and labels ``(B,)``."""
        flat = _flat(x, labels)
        if self._direction is None or len(self._direction) != flat.shape[1]:
            places = torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device)
            self._direction = torch.sin(places)
        if self._values is None:
            self._values = flat.new_zeros((2, self._samples))
        end = self._seen + len(labels)
        self._values[0, self._seen : end] = labels
        self._values[1, self._seen : end] = flat @ self._direction
        self._seen = end

    def value(self) -> Tensor:
        """``(2, N)`` of all samples, on the CPU."""
        return torch.zeros(2, 0) if self._values is None else self._values.cpu()
