"""A share of each class, drawn at random: for the test, or held out for choosing settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protocl.data.config import BenchmarkConfig, among
from protocl.errors import ConfigError, DataError


def draw_share(y: Tensor, n_classes: int, share: float, seed: int) -> Tensor:
    """Draw a share of each class: at least one sample, unless that would leave none.

    The generator is one of its own; the global random state is neither read nor changed.

    Args:
        y: class ids ``(N,)``.
        n_classes: number of class ids.
        share: in (0, 1); of a class's samples the nearest whole number.
        seed: decides which samples are drawn.

    Returns:
        ``(N,)`` whether a sample is drawn; of a class with a single sample none is.

    >>> draw_share(torch.tensor([0, 0, 0, 0, 1]), 2, 0.5, seed=0).sum()
    tensor(2)
    """
    counts = torch.bincount(y, minlength=n_classes)
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[y[shuffled].argsort(stable=True)]
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(y)) - starts[y[by_class]]
    take = (counts * share).round().long().clamp(min=1).minimum((counts - 1).clamp(min=0))
    drawn = torch.zeros(len(y), dtype=torch.bool)
    drawn[by_class[rank < take[y[by_class]]]] = True
    return drawn


def rows_for_test(
    y: Tensor, names: Sequence[str], given: Tensor | None, config: BenchmarkConfig, where: str
) -> Tensor:
    """Which samples are for the test: those that the data say, or a share of each class.

    Args:
        y: class ids ``(N,)``.
        names: one per class id.
        given: ``(N,)`` what the data say, or None where they say nothing.
        config: ``test`` and ``test_seed`` are read.
        where: the data, for messages.

    Returns:
        ``(N,)`` truth values.

    Raises:
        ConfigError: both say it, or neither, or the share is outside (0, 1).
        DataError: a class that arrives has a single sample.
    """
    if given is not None:
        if config.test is not None:
            raise ConfigError(
                f"benchmark.test={config.test}: {where} says itself which samples are for the "
                "test; leave benchmark.test out"
            )
        return given
    if config.test is None:
        raise ConfigError(
            f"{where} does not say which samples are for the test: benchmark.test=0.2 takes a "
            "fifth of each class, drawn by benchmark.test_seed"
        )
    if not 0 < config.test < 1:
        raise ConfigError(f"benchmark.test={config.test}: expected a share between 0 and 1")
    _refuse_singles(y, names, config, where)
    return draw_share(y, len(names), config.test, config.test_seed)


def _refuse_singles(y: Tensor, names: Sequence[str], config: BenchmarkConfig, where: str) -> None:
    counts = torch.bincount(y, minlength=len(names))
    singles = [c for c in among(config, counts) if counts[c] == 1]
    if singles:
        shown = ", ".join(f"'{names[c]}' ({c})" for c in singles[:5])
        more = f" and {len(singles) - 5} more" if len(singles) > 5 else ""
        kept = [c for c in among(config, counts) if counts[c] > 1]
        others = str(kept).replace(" ", "")
        raise DataError(
            f"{where}: one sample each have the classes {shown}{more}; benchmark.test="
            f"{config.test} needs at least two: add some, or leave them out with "
            f"benchmark.class_order={others}"
        )
