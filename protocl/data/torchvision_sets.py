"""What the data sets of torchvision have in common: where they live, and what to do if absent."""

from __future__ import annotations

from collections.abc import Callable
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


def open_both(kind: Any, config: BenchmarkConfig, expected: Path) -> tuple[Any, Any]:
    """The training and the test part of a torchvision data set of class ``kind``.

    Arguments and errors are those of :func:`open_set`.
    """

    def part(train: bool) -> Any:
        return open_set(
            lambda: kind(str(root_of(config)), train=train, download=config.download),
            config,
            expected,
        )

    return part(True), part(False)


def open_set(factory: Callable[[], Any], config: BenchmarkConfig, expected: Path) -> Any:
    """Make a data set of torchvision, or say what is missing.

    Args:
        factory: makes it; downloads first if ``config.download``.
        config: names the set in messages.
        expected: file or folder in which torchvision looks.

    Raises:
        DataError: the files are absent or damaged, or the download failed.
    """
    try:
        return factory()
    # torchvision raises RuntimeError for absent or damaged files; a download without a
    # network ends in URLError, which is an OSError.
    except (RuntimeError, OSError, EOFError) as error:
        if config.download:
            raise DataError(
                f"{config.name} could not be downloaded ({error}); without a network, copy it from "
                f"another machine to {expected} or give benchmark.path=FILE.npz"
            ) from error
        raise DataError(
            f"{config.name} was not found in {expected} ({error}); fetch it with "
            "benchmark.download=true, or give benchmark.path= an .npz archive or another folder"
        ) from error
