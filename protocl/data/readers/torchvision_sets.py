"""What the data sets of torchvision have in common: where they live, and what to do if absent."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, refuse
from protocl.data.readers.torch_sets import from_torch
from protocl.errors import ConfigError, DataError
from protocl.registry import unknown_name

_TRAIN = ("trainval", "train", "train-standard")
_TEST = ("test", "val", "valid")
"""What the data sets call their parts, the first that one has."""


def load_torchvision(config: BenchmarkConfig) -> ArrayData:
    """Any data set of pictures with classes that torchvision has: ``torchvision/Flowers102``.

    Found in ``path`` or ``root``, or fetched with ``download=true``. The parts are its own
    (``trainval`` or ``train``; ``test`` or ``val``); of a set without a test part
    ``benchmark.test`` says which share of each class is one. ``split`` is the setting of that name
    where it is no part, such as ``letters`` of EMNIST.

    Raises:
        ConfigError: torchvision has no such set, or nothing says which images are for the test.
        DataError: the files are absent or damaged, or it is a set without classes.
    """
    refuse(config, "labels", "columns")
    kind = config.name.partition("/")[2]
    known = _known()
    if kind not in known:
        raise unknown_name("data set of torchvision", kind or "(none)", known)
    train, test = _opened(kind, known[kind], config)
    return from_torch(train, test, config)


def _known() -> dict[str, Any]:
    """The data sets of torchvision whose items are a sample and its class."""
    from torchvision import datasets

    no_set = ("VisionDataset", "DatasetFolder", "ImageFolder", "wrap_dataset_for_transforms_v2")
    kinds = {name: getattr(datasets, name) for name in datasets.__all__ if name not in no_set}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type)}


def _opened(kind: str, made_by: Any, config: BenchmarkConfig) -> tuple[Any, Any]:
    accepted = signature(made_by).parameters
    more: dict[str, Any] = {"download": config.download} if "download" in accepted else {}
    if "train" in accepted:
        if "split" in accepted and config.split is not None:
            more["split"] = config.split
        return tuple(_open(kind, config, {**more, "train": train}) for train in (True, False))
    refuse(config, "split")
    if "split" in accepted:
        return tuple(_first(kind, config, more, names) for names in (_TRAIN, _TEST))
    return _open(kind, config, more), None


def _first(
    kind: str, config: BenchmarkConfig, more: Mapping[str, Any], names: tuple[str, ...]
) -> Any:
    """The first part of one of these names that the data set knows."""
    for name in names:
        try:
            return _open(kind, config, {**more, "split": name})
        except ValueError as error:  # which torchvision raises for a part that it does not know
            unknown = error
    raise ConfigError(
        f"benchmark={config.name}: torchvision's {kind} has none of the parts {', '.join(names)} "
        f"({unknown})"
    )


def _open(kind: str, config: BenchmarkConfig, settings: Mapping[str, Any]) -> Any:
    from torchvision import datasets

    root = root_of(config)
    try:
        made = getattr(datasets, kind)
        return made(root=str(root), **settings) if _takes_root(made) else made(**settings)
    except (RuntimeError, OSError, EOFError, TypeError) as error:
        raise DataError(
            f"torchvision's {kind} was not found in {root} ({error}); fetch it with "
            f"benchmark.download=true, or lay it there as torchvision documents {kind}, and give "
            "benchmark.path= its parent folder"
        ) from error


def _takes_root(made: Any) -> bool:
    return "root" in signature(made).parameters


def root_of(config: BenchmarkConfig) -> Path:
    """The folder given to torchvision as ``root``: ``path`` if the user set it, else ``root``."""
    return Path(config.path or config.root).expanduser()


def is_archive(config: BenchmarkConfig) -> bool:
    """Whether the user brings the data as an ``.npz`` archive."""
    return config.path is not None and Path(config.path).suffix == ".npz"


def open_both(kind: str, config: BenchmarkConfig, expected: Path) -> tuple[Any, Any]:
    """The training and the test part of the torchvision data set called ``kind``.

    Other arguments and errors are those of :func:`open_set`.
    """

    def part(train: bool) -> Any:
        settings = {"train": train, "download": config.download}
        return open_set(kind, config, expected, **settings)

    return part(True), part(False)


def open_set(kind: str, config: BenchmarkConfig, expected: Path, **settings: Any) -> Any:
    """Make a data set of torchvision, or say what is missing.

    torchvision, whose import takes seconds, is not imported where the folder is absent.

    Args:
        kind: name of its class; downloads first if ``config.download``.
        config: names the set in messages.
        expected: folder in which torchvision looks.
        **settings: arguments of the class besides the root.

    Raises:
        DataError: the files are absent or damaged, or the download failed.
    """
    if not config.download and not expected.is_dir():
        raise _absent(config, expected, "there is no such folder")
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(str(root_of(config)), **settings)
    # torchvision raises RuntimeError for absent or damaged files; a download without a
    # network ends in URLError, which is an OSError.
    except (RuntimeError, OSError, EOFError) as error:
        if config.download:
            raise DataError(
                f"{config.name} could not be downloaded ({error}); without a network, copy it from "
                f"another machine to {expected} or give benchmark.path=FILE.npz"
            ) from error
        raise _absent(config, expected, str(error)) from error


def _absent(config: BenchmarkConfig, expected: Path, reason: str) -> DataError:
    return DataError(
        f"{config.name} was not found in {expected} ({reason}); fetch it with "
        "benchmark.download=true, or give benchmark.path= an .npz archive or another folder"
    )
