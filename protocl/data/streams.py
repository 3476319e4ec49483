"""Class-incremental streams: the order of the classes, their cut into experiences."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from protocl.data.arrays import ArrayData
from protocl.data.experiences import ClassStream, Unlabelled
from protocl.data.shares import draw_share
from protocl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from protocl.data.config import BenchmarkConfig

logger = logging.getLogger(__name__)

_PROTOCOL = re.compile(r"B(\d+)-Inc(\d+)", re.IGNORECASE)


def class_stream(config: BenchmarkConfig, data: ArrayData, seed: int) -> ClassStream:
    """The class-incremental stream that ``config`` makes of ``data``.

    Every class of the order and every sample of it is in exactly one experience, and class ids are
    those of the data set. The global random state is neither read nor changed.

    Args:
        config: how to order and cut the classes.
        data: images or features.
        seed: seed of the run: held-out samples, and the class order unless ``order_seed`` is set.

    Raises:
        ConfigError: the order or the cut does not fit the classes.
        DataError: a class has no test samples, too few to hold some out, or nothing but test
            samples.
    """
    if config.validation:
        data = hold_out(data, config.validation, seed, config.class_order)
    order = class_order(config, data.y_train, seed, data.arrival)
    if len(order) == 1:
        logger.warning("%s: one class only: accuracy says nothing", data.name)
    named = order[: _number_named(config, len(order))]
    sizes = experience_sizes(config, len(named))
    _require_test_samples(data, named)
    arriving = iter(named)
    classes = [[next(arriving) for _ in range(size)] for size in sizes]
    if config.unlabelled or config.new_classes:
        return _partly_labelled(config, data, classes, order[len(named) :], seed)
    return ClassStream(_without_untrained(data, config), classes, config.task_labels)


def build_benchmark(config: BenchmarkConfig, data: ArrayData, seed: int) -> Any:
    """:func:`class_stream` as an Avalanche benchmark.

    It is built with ``nc_benchmark``, so that batches are ``(x, y, t)`` as LwF, iCaRL and others
    need.

    Returns:
        An Avalanche ``NCScenario`` with ``train_stream`` and ``test_stream``; the data set at the
        root of both is :class:`.TensorData`.
    """
    return class_stream(config, data, seed).benchmark()


def _number_named(config: BenchmarkConfig, n_classes: int) -> int:
    if not 0 <= config.new_classes < n_classes:
        raise ConfigError(
            f"benchmark.new_classes={config.new_classes}: expected at least 0 and fewer than the "
            f"{n_classes} classes of the stream, of which at least one is named"
        )
    return n_classes - config.new_classes


def _partly_labelled(
    config: BenchmarkConfig, data: ArrayData, classes: list[list[int]], new: list[int], seed: int
) -> ClassStream:
    """The stream over labelled samples alone, with all others beside it.

    Args:
        config: ``unlabelled`` and ``task_labels`` are read.
        data: all samples.
        classes: named ones of each experience.
        new: classes that nobody names.
        seed: decides which samples of named classes have no label.
    """
    came = torch.full((data.n_classes,), -1)
    for t, ids in enumerate(classes):
        came[ids] = t
    named, dealt = came >= 0, [j * len(classes) // max(len(new), 1) for j in range(len(new))]
    labelled = named[data.y_train] & ~hidden_share(data, config.unlabelled, seed)
    came[new] = torch.tensor(dealt, dtype=torch.int64)
    others = (came[data.y_train] >= 0) & ~labelled
    counts = torch.bincount(came[new], minlength=len(classes)).tolist()
    y = data.y_train[others]
    unlabelled = Unlabelled(data.x_train[others], came[y], tuple(counts))
    kept = data.select(labelled, named[data.y_test])
    return ClassStream(kept, classes, config.task_labels, unlabelled, y)


def hidden_share(data: ArrayData, share: float, seed: int) -> Tensor:
    """``(N,)`` which training samples lose their label; of each class at least one keeps it.

    Raises:
        ConfigError: ``share`` is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"benchmark.unlabelled={share}: expected a share of at least 0, below 1")
    if not share:
        return torch.zeros(len(data.y_train), dtype=torch.bool)
    return draw_share(data.y_train, data.n_classes, share, seed)


def _require_test_samples(data: ArrayData, classes: list[int]) -> None:
    absent = sorted(set(classes) - set(data.y_test.unique().tolist()))
    if absent:
        raise DataError(
            f"{data.name}: class {absent[0]} ('{data.class_names[absent[0]]}') has training but no "
            "test samples; add some, leave it out of benchmark.class_order, or use "
            "benchmark.validation"
        )


def _without_untrained(data: ArrayData, config: BenchmarkConfig) -> ArrayData:
    """``data`` without test samples of classes that have no others, if the order leaves them out.

    Avalanche counts the classes of the training data only.
    """
    known = torch.isin(data.y_test, data.y_train)
    if bool(known.all()):
        return data
    if config.class_order is None:
        first = int(data.y_test[~known].min())
        raise DataError(
            f"{data.name}: class {first} ('{data.class_names[first]}') has test but no training "
            "samples; add some, take its test samples out, or leave it out with "
            "benchmark.class_order"
        )
    return replace(data, x_test=data.x_test[known], y_test=data.y_test[known])


def class_order(
    config: BenchmarkConfig, labels: Tensor, seed: int, arrival: Sequence[int] = ()
) -> list[int]:
    """Class ids in their order of arrival.

    Args:
        config: ``class_order``, ``shuffle_classes`` and ``order_seed`` are read.
        labels: training labels ``(N,)``; their distinct values are the classes there are.
        seed: used when ``config.order_seed`` is None.
        arrival: the order that the data give (:attr:`.ArrayData.arrival`), in place of a seeded
            one.

    Raises:
        ConfigError: a given order repeats a class or names one that does not exist.
    """
    classes: list[int] = labels.unique().tolist()
    if config.class_order is not None:
        return _given_order(list(config.class_order), classes)
    if arrival:
        return [c for c in arrival if c in set(classes)]
    if not config.shuffle_classes:
        return classes
    order_seed = seed if config.order_seed is None else config.order_seed
    permutation = np.random.RandomState(order_seed).permutation(len(classes))
    return [classes[i] for i in permutation]


def _given_order(order: list[int], classes: list[int]) -> list[int]:
    unknown = sorted(set(order) - set(classes))
    repeated = sorted({c for c in order if order.count(c) > 1})
    if unknown or repeated or not order:
        problem = (
            f"class {unknown[0]} does not exist"
            if unknown
            else f"class {repeated[0]} appears twice"
            if repeated
            else "the list is empty"
        )
        raise ConfigError(
            f"benchmark.class_order: {problem}; expected distinct ids out of the "
            f"{len(classes)} classes {classes[0]}..{classes[-1]}"
        )
    return order


def experience_sizes(config: BenchmarkConfig, n_classes: int) -> list[int]:
    """Number of classes in each experience; they add up to ``n_classes``.

    There is no remainder: a cut that does not come out even is an error that names those that do.

    Raises:
        ConfigError: malformed protocol, conflicting fields, or an uneven cut.
    """
    base, increment = _base_and_increment(config)
    if increment is None:
        return _equal_parts(config.n_experiences, n_classes)
    rest = n_classes - base
    if not 0 <= base < n_classes or not 1 <= increment <= rest or rest % increment:
        valid = _divisors(rest) if 0 <= base < n_classes else "none: the base session is too large"
        raise ConfigError(
            f"benchmark protocol B{base}-Inc{increment} does not fit {n_classes} classes: the "
            f"increment must divide the {rest} classes after the base session; valid: {valid}"
        )
    return ([base] if base else []) + [increment] * (rest // increment)


def _base_and_increment(config: BenchmarkConfig) -> tuple[int, int | None]:
    if config.protocol is None:
        if config.increment is None and config.base_classes:
            raise ConfigError(
                f"benchmark.base_classes={config.base_classes} needs benchmark.increment as well, "
                f"or benchmark.protocol=B{config.base_classes}-Inc10"
            )
        return config.base_classes or 0, config.increment
    if config.base_classes is not None or config.increment is not None:
        raise ConfigError(
            f"benchmark.protocol={config.protocol} and benchmark.base_classes / increment say the "
            "same thing twice; give one of the two"
        )
    match = _PROTOCOL.fullmatch(config.protocol.strip())
    if match is None:
        raise ConfigError(
            f"benchmark.protocol={config.protocol}: expected B<base classes>-Inc<increment>, "
            "such as B50-Inc10 or B0-Inc10"
        )
    return int(match[1]), int(match[2])


def _equal_parts(n_experiences: int | None, n_classes: int) -> list[int]:
    if n_experiences is None:
        raise ConfigError(
            "benchmark: nothing says how to cut the stream; give n_experiences, or increment, or "
            "protocol=B0-Inc10"
        )
    if not 1 <= n_experiences <= n_classes or n_classes % n_experiences:
        raise ConfigError(
            f"benchmark.n_experiences={n_experiences} does not divide {n_classes} classes; "
            f"valid: {_divisors(n_classes)}"
        )
    return [n_classes // n_experiences] * n_experiences


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)


def hold_out(
    data: ArrayData, share: float, seed: int, classes: Collection[int] | None = None
) -> ArrayData:
    """Replace the test data by a share of the training data, held out from it.

    The share is taken from each class (at least one sample, and at least one stays), drawn with a
    generator of its own. Test samples of classes without training samples are gone.

    Args:
        data: its test data is left aside.
        share: held-out share of each class, in (0, 1).
        seed: decides which samples are held out.
        classes: those that need samples for both; None for all.

    Raises:
        ConfigError: ``share`` is outside (0, 1).
        DataError: one of ``classes`` has a single training sample.
    """
    if not 0 < share < 1:
        raise ConfigError(f"benchmark.validation={share}: expected a share of at least 0, below 1")
    y = data.y_train
    counts = torch.bincount(y, minlength=data.n_classes)
    singles = (counts == 1).nonzero().flatten().tolist()
    single = next((c for c in singles if classes is None or c in classes), None)
    if single is not None:
        raise DataError(
            f"{data.name}: class {single} ('{data.class_names[single]}') has one training sample; "
            "benchmark.validation needs at least two in each class"
        )
    held = draw_share(y, data.n_classes, share, seed)
    rest = data.select(~held, torch.arange(0))
    return replace(rest, x_test=data.x_train[held], y_test=y[held])
