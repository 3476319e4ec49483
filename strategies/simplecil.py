"""SimpleCIL: nearest class mean by cosine over a frozen backbone.

A class is the mean of its features as they are, a sample belongs to the mean of largest cosine
(Zhou et al., IJCV 2024). Not the same as NMC (Janson et al., 2022), which divides each feature
vector by its norm before averaging and compares by Euclidean distance, so that a mean's length
counts: ``nearest_mean`` with ``normalize_input``.

Stored between experiences: count and mean of each class; no samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from protocl import heads
from protocl.config import StrategyInfo
from protocl.config.sections import Part, part
from protocl.strategies.frozen.recipe import RecipeConfig


@dataclass
class SimpleCILConfig(RecipeConfig):
    """Settings of :class:`.SimpleCIL`."""

    info: ClassVar[StrategyInfo] = StrategyInfo(
        title="SimpleCIL",
        paper="Zhou et al., IJCV 2024",
        stored_between_experiences="count and mean of each class",
        keeps_data=False,
        bytes_per_class="16 D + 16",
    )

    name: str = "simplecil"
    head: Part = part(partial(heads.NearestMean, "cosine"))
