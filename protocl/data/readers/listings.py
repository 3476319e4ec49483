"""Image sets that say in files of their own which images are for the test, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from protocl.data.config import BenchmarkConfig
from protocl.data.folder import images_in
from protocl.data.readers.columns import Table
from protocl.errors import ConfigError, DataError

Row = tuple[str, str, str]
"""Path of an image below the folder, its class, and ``train`` or ``test``."""


def cub(folder: Path, config: BenchmarkConfig) -> Table:
    """CUB-200-2011: ``images.txt`` and ``train_test_split.txt`` number the images alike.

    Source: Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011.
    """
    files = dict(_words(folder / "images.txt", 2))
    parts = dict(_words(folder / "train_test_split.txt", 2))
    absent = sorted(set(files) - set(parts))
    if absent:
        raise DataError(f"{folder / 'train_test_split.txt'} says nothing of image {absent[0]}")
    return _table(
        folder,
        (
            (f"images/{file}", file.partition("/")[0], "train" if parts[key] == "1" else "test")
            for key, file in files.items()
        ),
    )


def tiny_imagenet(folder: Path, config: BenchmarkConfig) -> Table:
    """Tiny ImageNet: folders of training images, and a list of validation images for the test.

    The images of ``test/`` have no labels. Classes are WordNet ids.

    Source: Stanford CS231N, Tiny ImageNet Visual Recognition Challenge.
    """
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    train = (
        (str(file.relative_to(folder)), name, "train")
        for name in classes
        for file in images_in(folder / "train" / name)
    )
    asked = _words(folder / "val" / "val_annotations.txt", 2)
    test = ((f"val/images/{file}", name, "test") for file, name in asked)
    return _table(folder, [*train, *test])


def domains(folder: Path, config: BenchmarkConfig) -> Table:
    """DomainNet: two lists a domain; ``benchmark.split=DOMAIN`` takes one of them.

    The domains are the clients, for federations.

    Source: Peng et al., Moment Matching for Multi-Source Domain Adaptation, 2019.
    """
    found = sorted(file.name.removesuffix("_train.txt") for file in folder.glob("*_train.txt"))
    if config.split is not None and config.split not in found:
        raise ConfigError(
            f"benchmark.split={config.split}: {folder} has the domains {', '.join(found)}"
        )
    chosen = found if config.split is None else [config.split]
    rows = [
        (file, Path(file).parent.name, part)
        for domain in chosen
        for part in ("train", "test")
        for file, _ in _words(folder / f"{domain}_{part}.txt", 2)
    ]
    table = _table(folder, rows)
    return Table(
        table.where,
        {**table.columns, "client": [file.partition("/")[0] for file, _, _ in rows]},
        folder,
    )


def cars(folder: Path, config: BenchmarkConfig) -> Table:
    """Stanford Cars: annotations in MATLAB's files, classes by the names of makes and models.

    Source: Krause et al., 3D Object Representations for Fine-Grained Categorization, 2013.
    """
    names = [str(name) for name in _mat(folder / "devkit" / "cars_meta.mat", "class_names")]
    lists = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    rows = [
        (f"cars_{part}/{entry['fname']}", int(entry["class"]) - 1, part)
        for part, file in lists.items()
        for entry in _mat(folder / file, "annotations")
    ]
    images, ids, parts = (list(column) for column in zip(*rows, strict=True))
    columns: dict[str, list[Any]] = {"image": images, "label": ids, "split": parts}
    return Table(str(folder), columns, folder, {"label": names})


def _table(folder: Path, rows: Iterable[Row]) -> Table:
    listed = list(rows)
    if not listed:
        raise DataError(f"{folder} lists no images")
    images, classes, parts = (list(column) for column in zip(*listed, strict=True))
    return Table(str(folder), {"image": images, "label": classes, "split": parts}, folder)


def _words(file: Path, least: int) -> Iterator[tuple[str, str]]:
    """The first two words of each line."""
    if not file.is_file():
        raise DataError(f"{file} is missing; it says which images are for the test")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if words and len(words) < least:
            raise DataError(f"{file}: line {number} is '{line}'; expected at least {least} words")
        if words:
            yield words[0], words[1]


def _mat(file: Path, key: str) -> Any:
    from scipy.io import loadmat

    if not file.is_file():
        raise DataError(f"{file} is missing; it says which images are for the test")
    try:
        content: Any = loadmat(file, squeeze_me=True)[key]
    except Exception as error:  # the reader raises whatever a damaged file leads it to
        raise DataError(f"{file} cannot be read: {error}") from error
    return content.reshape(-1)
