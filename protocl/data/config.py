"""The configuration of a benchmark, and the way from its name to its data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from protocl.errors import ConfigError, DataError
from protocl.registry import BENCHMARKS

if TYPE_CHECKING:
    from protocl.data.arrays import ArrayData

OWN = ("test", "labels", "columns")
"""Settings of data that users bring, which no published set has."""


@dataclass
class ColumnsConfig:
    """Which column of a table is what (keys ``benchmark.columns.*``).

    Without them the usual names are looked for: ``label`` (``labels``, ``class``, ``target``),
    ``image`` (``file``, ``filename``, ``file_name``, ``path``), ``split``, ``client`` and ``time``.

    Attributes:
        label: classes: texts, whole numbers or truth values.
        image: files of pictures, relative to the table's own folder.
        features: numbers; by default all columns that are nothing else, where no image is named.
        split: ``train`` or ``test`` (``validation`` where nothing is ``test``).
        client: who holds a sample in a federation.
        time: numbers or dates (ISO 8601); classes arrive in the order of their first sample.
    """

    label: str | None = None
    image: str | None = None
    features: list[str] | None = None
    split: str | None = None
    client: str | None = None
    time: str | None = None


@dataclass
class BenchmarkConfig:
    """Settings of a benchmark: which data, and how its classes arrive (group ``benchmark``).

    How the classes are cut into experiences: ``protocol`` if given, else ``increment`` (with
    ``base_classes``) if given, else ``n_experiences`` equal parts.

    Attributes:
        name: registered data set (``protocl list benchmarks``).
        root: folder in which downloaded data sets live.
        path: file or folder of data brought by the user: an ``.npz`` archive, an array, a table, a
            folder of images or of idx files (MNIST, Fashion-MNIST), the name of a data set on the
            Hugging Face hub.
        labels: file of labels, for samples in an ``.npy`` file.
        columns: what the columns of a table are.
        test: share of each class, in (0, 1), that is for the test, of data that do not say it
            themselves.
        test_seed: decides which samples those are, whatever the seed of the run.
        download: fetch a torchvision data set that is absent.
        n_experiences: number of experiences of equal size.
        base_classes: classes in the first experience; 0 or None for no base session.
        increment: classes in each (further) experience.
        protocol: base session and increment in one field: ``B50-Inc10``, ``B0-Inc10``.
        classes: use only the class ids below this number.
        class_order: class ids in the order of arrival; may leave classes out.
        shuffle_classes: without ``class_order``: seeded order (true) or by id (false).
        order_seed: seed of the class order; None takes the seed of the run. The order is
            ``numpy.random.RandomState(seed).permutation``, so 1993 gives the order that is usual
            in the literature.
        task_labels: number the experiences as tasks; otherwise all are task 0.
        validation: share of each class's training data, in [0, 1), that is held out and used *in
            place of* the test data, for choosing hyperparameters.
        unlabelled: share of each class's training samples, in [0, 1), that come without labels
            with its experience, for strategies that learn from such (ProtoGCD, GPC).
        new_classes: so many classes, the last of the order, are never named: their training
            samples are all unlabelled and come evenly with the experiences of the others.
        train_per_class: keep only the first so many training samples of each class.
        test_per_class: the same for test samples.
        imbalance: share of its training samples that the rarest class keeps, in (0, 1]: a long
            tail, in which the shares of the classes fall exponentially from 1 to this one. Test
            samples stay.
        imbalance_seed: draws which classes are rare, and which of their samples stay; None lets the
            shares fall in the order of class ids, and the first samples stay.
        split: part of a data set that has parts: Omniglot's ``background`` or ``evaluation``, a
            domain of DomainNet, a configuration on the Hugging Face hub.
        image_size: side in pixels to which images are resized when they are read (image folders,
            Omniglot's own files); a backbone's ``image_size`` is separate.
        augmentation: of training images, drawn anew in each epoch: ``"none"``, ``"crop_flip"`` or
            ``"full"`` (colour jitter and greyscale besides). Features that a frozen backbone
            computes once are of the images as they are, and refuse it.
    """

    name: str = "digits"
    root: str = "~/.cache/protocl/data"
    path: str | None = None
    labels: str | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    test: float | None = None
    test_seed: int = 0
    download: bool = False
    n_experiences: int | None = 5
    base_classes: int | None = None
    increment: int | None = None
    protocol: str | None = None
    classes: int | None = None
    class_order: list[int] | None = None
    shuffle_classes: bool = True
    order_seed: int | None = None
    task_labels: bool = False
    validation: float = 0.0
    unlabelled: float = 0.0
    new_classes: int = 0
    train_per_class: int | None = None
    test_per_class: int | None = None
    imbalance: float | None = None
    imbalance_seed: int | None = None
    split: str | None = None
    image_size: int | None = None
    augmentation: str = "none"


def load_data(config: BenchmarkConfig) -> ArrayData:
    """Load the data set that ``config`` names, restricted as it asks.

    Raises:
        ConfigError: unknown name, or a value out of range.
        DataError: files are absent or damaged; the message says where they are expected.
    """
    for key in ("classes", "train_per_class", "test_per_class", "image_size"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise ConfigError(f"benchmark.{key}={value}: expected a number of at least 1")
    for key in ("order_seed", "imbalance_seed"):
        seed = getattr(config, key)
        if seed is not None and not 0 <= seed < 2**32:
            raise ConfigError(f"benchmark.{key}={seed}: expected 0 <= seed < 2**32")
    # A family such as torchvision/NAME is registered under its first part.
    data: ArrayData = BENCHMARKS.get(config.name.partition("/")[0])(config)
    if not len(data.y_train):
        raise DataError(f"{data.name} has no training samples")
    return _long_tailed(_restrict(data, config), config)


def imbalanced_counts(config: BenchmarkConfig, data: ArrayData) -> torch.Tensor | None:
    """Training samples of each class id ``(C,)`` of a stream with a long tail; None of others."""
    if config.imbalance is None:
        return None
    return torch.bincount(data.y_train, minlength=data.n_classes)


def among(config: BenchmarkConfig, counts: torch.Tensor) -> list[int]:
    """The classes that have samples and are not left out by ``classes`` or ``class_order``.

    Args:
        config: see above.
        counts: samples of each class id ``(C,)``.
    """
    present: list[int] = counts.nonzero().flatten().tolist()
    if config.class_order is not None:
        present = [c for c in present if c in set(config.class_order)]
    return [c for c in present if config.classes is None or c < config.classes]


def refuse(config: BenchmarkConfig, *keys: str) -> None:
    """Refuse settings that a data set does not have, instead of ignoring them.

    Raises:
        ConfigError: one of ``keys`` is set; of ``columns`` any.
    """
    for column, value in vars(config.columns).items() if "columns" in keys else ():
        if value is not None:
            raise ConfigError(
                f"benchmark.columns.{column}={value}: '{config.name}' is no table; leave it out"
            )
    for key in keys:
        value = getattr(config, key)
        if key != "columns" and value is not None:
            hint = "; to resize arrays set backbone.image_size" if key == "image_size" else ""
            raise ConfigError(f"benchmark.{key}={value}: '{config.name}' has no such setting{hint}")


def refuse_unlabelled(config: BenchmarkConfig) -> None:
    """Refuse samples without labels where nobody would read them.

    Raises:
        ConfigError: the settings take labels away.
    """
    for key in ("unlabelled", "new_classes"):
        value = getattr(config, key)
        if value:
            raise ConfigError(
                f"benchmark.{key}={value}: samples without labels are for protocl run; leave it out"
            )


def _restrict(data: ArrayData, config: BenchmarkConfig) -> ArrayData:
    """Keep ``config.classes`` classes and ``..._per_class`` samples of each."""
    if config.classes is not None and config.classes > data.n_classes:
        raise ConfigError(
            f"benchmark.classes={config.classes}: {data.name} has {data.n_classes} classes"
        )
    n_classes = config.classes or data.n_classes
    train = _first_of_each(data, data.y_train, n_classes, config, "train_per_class")
    test = _first_of_each(data, data.y_test, n_classes, config, "test_per_class")
    if len(train) == len(data.y_train) and len(test) == len(data.y_test):
        return data
    return replace(data.select(train, test), class_names=data.class_names[:n_classes])


def _first_of_each(
    data: ArrayData, y: torch.Tensor, n_classes: int, config: BenchmarkConfig, key: str
) -> torch.Tensor:
    """Rows ``(K,)`` of the first samples of each class below ``n_classes``, in order.

    How many is the setting ``key``; classes that arrive must have as many.
    """
    wanted = (y < n_classes).nonzero().flatten()
    limit: int | None = getattr(config, key)
    if limit is None:
        return wanted
    counts = torch.bincount(y[wanted], minlength=n_classes)
    scarce = min(among(config, counts), key=counts.__getitem__, default=None)
    if scarce is not None and counts[scarce] < limit:
        raise DataError(
            f"benchmark.{key}={limit}: class {scarce} ('{data.class_names[scarce]}') of "
            f"{data.name} has {int(counts[scarce])} samples; ask for at most that many"
        )
    return _first_rows(y, wanted, torch.full_like(counts, limit))


def _first_rows(y: torch.Tensor, rows: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Of ``rows`` the first ``limits[c]`` of each class ``c``, sorted."""
    by_class = rows[y[rows].argsort(stable=True)]
    counts = torch.bincount(y[rows], minlength=len(limits))
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(by_class)) - starts[y[by_class]]
    return by_class[rank < limits[y[by_class]]].sort().values


def _long_tailed(data: ArrayData, config: BenchmarkConfig) -> ArrayData:
    """Keep of each class's training samples a share that falls exponentially.

    Class ``r`` of ``R`` keeps ``imbalance ** (r / (R - 1))`` of them, rounded down, and at least
    one (Cui et al., "Class-balanced loss", CVPR 2019, and all who cite its CIFAR-100-LT).
    """
    share, seed = config.imbalance, config.imbalance_seed
    if share is None:
        if seed is not None:
            raise ConfigError(
                f"benchmark.imbalance_seed={seed} is of a long tail: give benchmark.imbalance=0.01"
            )
        return data
    if not 0 < share <= 1:
        raise ConfigError(f"benchmark.imbalance={share}: expected a share above 0, at most 1")
    counts = torch.bincount(data.y_train, minlength=data.n_classes)
    classes, rows = among(config, counts), torch.arange(len(data.y_train))
    if seed is not None:
        drawn = np.random.RandomState(seed)
        classes = [classes[i] for i in drawn.permutation(len(classes))]
        rows = rows[torch.from_numpy(drawn.permutation(len(rows)))]
    limits = counts.clone()
    for rank, c in enumerate(classes):
        kept = share ** (rank / max(len(classes) - 1, 1))
        limits[c] = max(1, int(int(counts[c]) * kept))
    kept_rows = _first_rows(data.y_train, rows, limits)
    return data.select(kept_rows, torch.arange(len(data.y_test)))
