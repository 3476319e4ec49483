"""What the data sets of torchvision have in common: where they live, and what to do if absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protocl.data.config import BenchmarkConfig
from protocl.errors import DataError


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
