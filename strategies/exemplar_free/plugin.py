"""What the plugins of NAPA-VQ, PASS and IL2A have in common."""

from __future__ import annotations

from typing import Any

from protocl.memory import PrototypeMemory
from protocl.strategies.exemplar_free.kept_classes import KeptClasses
from protocl.strategies.training.base import FeatureLossPlugin


class ExemplarFreePlugin(FeatureLossPlugin):
    """A plugin that keeps statistics of classes in the place of their samples.

    Attributes:
        kept: classes, their prototypes, the teacher; all that stays between experiences.
    """

    kept: KeptClasses

    @property
    def memory(self) -> PrototypeMemory | None:
        """Statistics of each class, or None before the first experience has ended."""
        return self.kept.memory

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.kept.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept.load_state_dict(state)
