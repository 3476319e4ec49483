"""Memory and processor time of a stream, beside the forward pass that it cannot do without."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from protocl.backbones import BackboneConfig
from protocl.backbones.features import frozen
from protocl.bench.comparison import Size, SpeedComparison
from protocl.bench.peak_memory import MIB, PeakMeter
from protocl.bench.timing import timed
from protocl.data.arrays import as_images
from protocl.streaming.reading import Portions
from protocl.streaming.run import Stream, stream
from protocl.streaming.settings import StreamConfig

MOST_MIB = 300.0
"""Peak of a stream above the process after its imports, whatever the number of rows."""
MOST_TIME = 1.2
"""Of a stream, as a multiple of the forward pass."""
_ROWS = 40
"""The large stream has so many times the samples of the size, the small one a tenth of that."""
_WIDTH = 32
_GROUP = 100_000
_SIDE = 224


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Rows of a Parquet file, ten times as many, and pictures through ``efficientnet_lite0``."""
    rows = _ROWS * size.samples
    with tempfile.TemporaryDirectory() as folder:
        small, large = (_peak(Path(folder), count) for count in (rows // 10, rows))
        yield _limit(rows // 10, small)
        yield _limit(rows, large)
        yield _comparison(f"peak memory, {rows:,} rows", f"{rows // 10:,} rows", large, small)
        yield _pictures(Path(folder), 192 if size.samples >= 10_000 else 4)


def _limit(rows: int, peak: float) -> SpeedComparison:
    return SpeedComparison(
        case=f"peak memory of protocl stream, {rows:,} rows x {_WIDTH}",
        peer_name="above the process after import",
        ours=peak,
        peer=None,
        kind="limit",
        target=MOST_MIB,
        threads=torch.get_num_threads(),
        unit="MiB",
    )


def _comparison(case: str, peer: str, ours: float, theirs: float) -> SpeedComparison:
    return SpeedComparison(
        case=case, peer_name=peer, ours=ours, peer=theirs, kind="share", target=None,
        threads=torch.get_num_threads(), unit="MiB",
    )  # fmt: skip


def _peak(folder: Path, rows: int) -> float:
    """MiB that a stream of so many rows takes above a new process that has imported torch."""
    file = str(_table(folder / f"{rows}.parquet", rows))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(rise, file, torch.get_num_threads()).result()


def rise(file: str, threads: int) -> float:
    """MiB by which this process grows at most while it streams ``file``."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, PeakMeter() as meter:
        stream([file], Path(folder) / "model", StreamConfig(head="lda"))
    return meter.rise / MIB


def _table(file: Path, rows: int) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    generator = np.random.default_rng(0)
    schema = pa.schema({"x": pa.list_(pa.float32(), _WIDTH), "label": pa.int64()})
    with parquet.ParquetWriter(file, schema, compression="none") as writer:
        for start in range(0, rows, _GROUP):
            count = min(_GROUP, rows - start)
            numbers = generator.standard_normal((count, _WIDTH), dtype=np.float32)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), _WIDTH)
            labels = pa.array(generator.integers(100, size=count))
            writer.write_table(pa.table([lists, labels], schema=schema))
    return file


def _pictures(folder: Path, count: int) -> SpeedComparison:
    """Processor time: reading, decoding, encoding and summing, beside encoding alone."""
    shard = _tar(folder / "pictures.tar", count)
    config = StreamConfig(backbone=BackboneConfig(name="efficientnet_lite0"), head="lda")
    job = Stream([str(shard)], folder / "model", config)
    assert job.encoder is not None
    backbone = job.encoder.backbone
    size = config.batch_size or job.batch_size(torch.device("cpu"))
    read = list(Portions(job.shards, {}, size, job.wanted).read(0))
    with frozen(backbone):
        batches = [as_images(portion.x) for portion in read if portion.x is not None]
        backbone(batches[0])
        first = timed(lambda: [backbone(x) for x in batches], time.process_time).seconds
        ours = timed(job.run, time.process_time).seconds
        again = timed(lambda: [backbone(x) for x in batches], time.process_time).seconds
    return SpeedComparison(
        case=f"protocl stream, {count} JPEG files {_SIDE}x{_SIDE}, efficientnet_lite0, lda",
        peer_name="the forward pass alone, mean of before and after (processor time)",
        ours=ours,
        peer=(first + again) / 2,
        kind="share",
        target=MOST_TIME,
        threads=torch.get_num_threads(),
    )


def _tar(file: Path, count: int) -> Path:
    from PIL import Image

    generator = np.random.default_rng(0)
    with tarfile.open(file, "w") as archive:
        for number in range(count):
            coarse = generator.integers(256, size=(28, 28, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((_SIDE, _SIDE))
            content = io.BytesIO()
            picture.save(content, "JPEG")
            for ending, data in (("jpg", content.getvalue()), ("cls", str(number % 8).encode())):
                info = tarfile.TarInfo(f"{number:06d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file
