"""Parts of classes that are summed beside the classes, to tell what is unknown more finely."""

from __future__ import annotations

import torch
from torch import Tensor

from protocl.memory import PrototypeMemory
from protocl.open_world.parts.codebook import Codebook, learn_codebook
from protocl.open_world.scores import known_scores

PREFIX = "parts_"
"""Begins the names of scores by parts."""


class PartsBeside:
    """Sums of the parts of each class, under the map and of the level of the classes' own.

    A class is divided when its first samples come; later ones go to the parts that there are. No
    sample is kept, and every score that a memory allows is one of parts as well, since parts are
    rows like any others.

    Args:
        parts: of each class, at least 2.
        seed: of the division.

    Example:
        >>> x, y = torch.tensor([[0.0], [0.5], [8.0], [8.5], [4.0], [4.5]]), torch.arange(6) // 4
        >>> beside = PartsBeside(2)
        >>> beside.learn(PrototypeMemory(1, level="shared"), x, y)
        >>> beside.scores(torch.tensor([[8.5], [2.5]]))["parts_distance"].tolist()
        [-0.0625, -2.25]
    """

    def __init__(self, parts: int, seed: int = 0) -> None:
        self.parts, self.seed = parts, seed
        self.codebook: Codebook | None = None
        self.memory: PrototypeMemory | None = None

    def learn(self, like: PrototypeMemory, features: Tensor, labels: Tensor) -> None:
        """Add samples.

        Args:
            like: of the classes; gives map, level and arithmetic.
            features: ``(N, D)``.
            labels: ``(N,)``.
        """
        if self.memory is None:
            self.memory = like.empty_like()
        if (strange := self._strange(labels)) is not None:
            made = learn_codebook(
                like, features[strange], labels[strange], self.parts, seed=self.seed
            )
            self.codebook = made if self.codebook is None else self.codebook.beside(made)
        if self.codebook is not None:
            self.codebook.update(self.memory, features, labels)

    def scores(self, features: Tensor) -> dict[str, Tensor]:
        """:func:`.known_scores` by parts, of features ``(N, D)``; names begin with ``parts_``."""
        assert self.memory is not None  # something was learned
        found = known_scores(self.memory, features)
        return {f"{PREFIX}{name}": score for name, score in found.items()}

    def _strange(self, labels: Tensor) -> Tensor | None:
        """``(N,)`` whether a sample is of a class without parts; None where all have some."""
        if self.codebook is None:
            return torch.ones_like(labels, dtype=torch.bool) if len(labels) else None
        new = ~labels.unsqueeze(1).eq(self.codebook.classes.unique()).any(1)
        return new if bool(new.any()) else None
