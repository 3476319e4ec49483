"""The typed schema of every key of ``protocl discover``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocl.config.schema import RunConfig
from protocl.config.validation import AT_LEAST_1, SEED, SHARE, Range, ranged

_CATEGORIES = Range(
    "given, estimated or a number from 1", lambda value: isinstance(value, str) or value >= 1
)


@dataclass
class DiscoverConfig(RunConfig):
    """One discovery of categories in the training samples of a benchmark.

    Attributes:
        known_classes: how many classes are known: those of the least ids, as in the literature.
        labelled: share of their samples that are labelled.
        split_seed: of the draw of these.
        categories: how many there are in all: ``"given"``, as many as the data have classes; or
            ``"estimated"``, the number at which labelled samples are best in place when all are
            clustered without labels; or a number.
        most: largest number that is tried, as a multiple of the known classes.
        tries: how many numbers are tried at most, two thirds of them at equal distances.
        estimate_samples: samples, drawn, on which numbers are tried.
        map: of features, under which they are summed (``protocl list maps``); None for none.
        whitening: weight of the scaled identity in the covariance within the known classes, under
            which features are whitened and brought to unit length; None leaves that out.
        spherical: keep centres at unit length.
        restarts, iterations: see :class:`.SemiSupervisedKMeans`.
        cache: folder of the features that frozen backbones computed.
    """

    name: str = "discover-${benchmark.name}"
    known_classes: int = ranged(1, AT_LEAST_1)
    labelled: float = ranged(0.5, SHARE)
    split_seed: int = ranged(0, SEED)
    categories: int | Literal["given", "estimated"] = ranged("given", _CATEGORIES)
    most: float = ranged(2.5, AT_LEAST_1)
    tries: int = ranged(12, AT_LEAST_1)
    estimate_samples: int = ranged(10_000, AT_LEAST_1)
    map: str | None = None
    whitening: float | None = ranged(0.1, SHARE)
    spherical: bool = True
    restarts: int = ranged(10, AT_LEAST_1)
    iterations: int = ranged(100, AT_LEAST_1)
    cache: str = "~/.cache/protocl/features"
