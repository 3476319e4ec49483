"""Portions of all shards, read ahead by several processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from protocl.data.shards.decoding import Wanted, decoded_sample
from protocl.data.shards.shard import Entry, Fault, Portion, Shard
from protocl.errors import DataError

T = TypeVar("T")


class Portions(IterableDataset[Portion]):
    """The portions of shards, each shard read by one worker from its beginning to its end.

    Args:
        shards: all of them.
        done: entries of each that are not to be read again, by place; all others from 0 on.
        size: entries a portion.
        wanted: what a sample has to be.
    """

    def __init__(
        self, shards: Mapping[int, Shard], done: Mapping[int, int], size: int, wanted: Wanted
    ) -> None:
        self._shards = list(shards.items())
        self._done, self._size, self._wanted = dict(done), size, wanted

    def __iter__(self) -> Iterator[Portion]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for place, shard in self._shards[first::step]:
            start = self._done.get(place, 0)
            yield from shard.portions(place, start, self._size, self._wanted)

    def read(self, workers: int) -> Iterator[Portion]:
        """All portions, those of one shard in their order.

        Args:
            workers: processes that read; 0 for this one.

        Raises:
            DataError: a process ended before its work was done.
        """
        workers = min(workers, len(self._shards))
        loader = DataLoader(self, batch_size=None, num_workers=workers, collate_fn=_as_it_is)
        try:
            yield from loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a process that reads ended ({str(error).splitlines()[0]}); the same command with "
                "--resume goes on, with fewer --workers where memory was short"
            ) from error


def first_sample(shards: Sequence[Shard], wanted: Wanted) -> Entry:
    """The first entry of all that can be read, which says what samples are.

    Raises:
        DataError: there is none; it names the first fault.
    """
    faults = []
    for shard in shards:
        for entry in _entries(shard):
            if isinstance(entry, Entry):
                try:
                    decoded_sample(entry.sample, f"{shard.name}: sample '{entry.name}'", wanted)
                    return entry
                except DataError as error:
                    faults.append(str(error))
            else:
                faults.append(entry.message)
    raise DataError(faults[0] if faults else f"{shards[0].name} holds no samples")


def _entries(shard: Shard) -> Iterator[Entry | Fault]:
    try:
        yield from shard.entries(0)
    except DataError as error:
        yield Fault("damaged shard", str(error))


def _as_it_is(portion: T) -> T:
    return portion
