"""The field's image sets as they are published: where they come from, and how they lie.

A set is a row of :data:`SETS` and, where its parts are said in files beside the images, a listing
in :mod:`.listings`.
"""

from __future__ import annotations

import logging
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from protocl.data.arrays import ArrayData
from protocl.data.config import BenchmarkConfig, refuse
from protocl.data.folder import read_folder
from protocl.data.readers.columns import Table
from protocl.data.readers.listings import cars, cub, domains, tiny_imagenet
from protocl.data.readers.table import from_table
from protocl.errors import DataError
from protocl.io.atomic import atomic_folder

logger = logging.getLogger(__name__)

_PILOT = "the links in the README of github.com/sun-hailong/LAMDA-PILOT (the field's own split)"
_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True)
class Published:
    """An image set.

    Attributes:
        folder: what its archive unpacks to.
        source: where it comes from.
        tree: what lies in the folder.
        listing: reads its files of parts; None where folders say all.
        sign: a file or folder that is there where the listing applies.
        share: of each class for the test, where the set has no split of its own.
    """

    folder: str
    source: str
    tree: str
    listing: Callable[[Path, BenchmarkConfig], Table] | None = None
    sign: str = ""
    share: float | None = None


SETS = {
    "imagenet_r": Published(
        "imagenet-r",
        f"people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar, or {_PILOT}",
        "train/WNID/IMAGE and test/WNID/IMAGE, or WNID/IMAGE of which a fifth is for the test",
        share=0.2,
    ),
    "imagenet_a": Published(
        "imagenet-a",
        f"people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar, or {_PILOT}",
        "train/WNID/IMAGE and test/WNID/IMAGE, or WNID/IMAGE of which a fifth is for the test",
        share=0.2,
    ),
    "cub200": Published(
        "CUB_200_2011",
        f"data.caltech.edu/records/65de6-vp158 (CUB_200_2011.tgz), or {_PILOT}",
        "images/CLASS/IMAGE with images.txt and train_test_split.txt, or train/ and test/",
        cub,
        "train_test_split.txt",
    ),
    "vtab": Published(
        "vtab-cil/vtab",
        _PILOT,
        "train/CLASS/IMAGE and test/CLASS/IMAGE of 50 classes",
    ),
    "omnibenchmark": Published(
        "omnibenchmark",
        _PILOT,
        "train/CLASS/IMAGE and test/CLASS/IMAGE of 300 classes",
    ),
    "stanford_cars": Published(
        "stanford_cars",
        "Krause et al., 3D Object Representations (2013); its page is gone, mirrors have it",
        "cars_train/, cars_test/, devkit/cars_meta.mat, devkit/cars_train_annos.mat and "
        "cars_test_annos_withlabels.mat, as torchvision expects, or train/ and test/",
        cars,
        "devkit",
    ),
    "tiny_imagenet": Published(
        "tiny-imagenet-200",
        "cs231n.stanford.edu/tiny-imagenet-200.zip",
        "train/WNID/images/IMAGE, val/images/IMAGE and val/val_annotations.txt",
        tiny_imagenet,
        "val/val_annotations.txt",
    ),
    "domainnet": Published(
        "domainnet",
        "ai.bu.edu/M3SDA (the six archives and twelve lists, cleaned version)",
        "DOMAIN/CLASS/IMAGE with DOMAIN_train.txt and DOMAIN_test.txt of one or more domains",
        domains,
        "*_train.txt",
    ),
}
"""By the names of ``benchmark=``."""


def load_published(config: BenchmarkConfig) -> ArrayData:
    """An image set of the field with its usual split, from its folder or archive.

    It is looked for at ``path`` (the folder, the one above it, or the archive as it is published,
    which is unpacked into ``root``), else below ``root``.

    Raises:
        DataError: it is not there; the message says where it comes from and how it must lie.
    """
    refuse(config, "labels", "columns")
    published = SETS[config.name]
    if published.listing is not domains:
        refuse(config, "split")
    folder = _located(published, config)
    if published.listing is not None and any(folder.glob(published.sign)):
        return from_table(published.listing(folder, config), config)
    if not (folder / "train").is_dir():
        if published.share is None:
            raise _absent(published, config, folder, "it holds no train/")
        config = _shared(published, config, folder)
    return read_folder(folder, config)


def _shared(published: Published, config: BenchmarkConfig, folder: Path) -> BenchmarkConfig:
    if config.test is not None:
        return config
    logger.warning(
        "%s has no split of its own: %g of each class is for the test, drawn by "
        "benchmark.test_seed=%d; the split of published results is with %s",
        folder, published.share, config.test_seed, _PILOT,
    )  # fmt: skip
    return replace(config, test=published.share)


def _located(published: Published, config: BenchmarkConfig) -> Path:
    """The folder of a set; unpacked first where an archive is given."""
    root = Path(config.root).expanduser()
    given = root if config.path is None else Path(config.path).expanduser()
    if given.is_file() and given.name.lower().endswith(_ENDINGS):
        given = _unpacked(given, root)
    inner = given / published.folder
    if inner.is_dir():
        return inner
    if config.path is None or not given.is_dir():
        raise _absent(published, config, inner if config.path is None else given, "it is not there")
    return given


def _absent(published: Published, config: BenchmarkConfig, folder: Path, reason: str) -> DataError:
    return DataError(
        f"{config.name} was not found in {folder} ({reason}). It comes from {published.source}; "
        f"expected is a folder {Path(published.folder).name}/ with {published.tree}: give "
        "benchmark.path=FOLDER, or the archive itself"
    )


def _unpacked(archive: Path, root: Path) -> Path:
    """The folder with the content of an archive; it is unpacked once."""
    target = root / f"{archive.name}.unpacked"
    if target.is_dir():
        return target
    try:
        with atomic_folder(target) as folder:
            # "data" refuses what would lie outside of the folder.
            shutil.unpack_archive(archive, folder, filter=None if _zipped(archive) else "data")
    except (shutil.ReadError, tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from error
    return target


def _zipped(archive: Path) -> bool:
    return archive.suffix.lower() == ".zip"
