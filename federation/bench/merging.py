"""Merging beside the mere reading of the same bytes (``protocl bench merging``)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord

from protocl.bench.comparison import Size, SpeedComparison, require_equal
from protocl.bench.timing import interleaved, thread_count
from protocl.federation.server.state import MergedMemory
from protocl.federation.wire.codec import Precision
from protocl.federation.wire.messages import Contribution, MessageReader, encode
from protocl.memory import PrototypeMemory

TARGET = 2.0
_CLIENTS = 10_000
_MESSAGES = 500
"""Different messages: at full size 100 MB or more, several times the processor's cache."""

_PAYLOADS: tuple[tuple[bool, Precision], ...] = (
    (True, "exact"),
    (False, "exact"),
    (False, "float32"),
    (True, "float16"),
    (True, "int8"),
)

Message = tuple[ArrayRecord, ConfigRecord]
Arrival = tuple[str, ArrayRecord, ConfigRecord]


def measure(size: Size) -> Iterator[SpeedComparison]:
    """Decode, check and merge the messages of 10,000 clients with all classes each, one thread.

    What is kept of each client is kept, so that any of them can be forgotten afterwards. Beside
    it three ways of reading the same bytes: as Flower does, into arrays, which is where any other
    strategy begins and what the target is held to; and two floors, copying them into one buffer and
    adding them up as 64-bit words. Each of 500 messages comes from 20 clients.
    """
    for exact, precision in _PAYLOADS:
        yield from _compare(size, exact, precision)


def _compare(size: Size, exact: bool, precision: Precision) -> Iterator[SpeedComparison]:
    messages, total = _messages(size, exact, precision)
    clients = _CLIENTS if size.samples >= _CLIENTS else len(messages)
    empty = total.empty_like()
    buffers = [array.data for arrays, _ in messages for array in arrays.values()]
    rounds = range(clients // len(messages))
    arrivals = [
        _of_client(f"{turn}-{number}", message)
        for turn in rounds
        for number, message in enumerate(messages)
    ]
    target = np.empty(max(map(len, buffers)), dtype=np.uint8)

    def ours() -> PrototypeMemory:
        return _merge(arrivals, empty)

    def copy() -> None:
        for _ in rounds:
            for data in buffers:
                np.copyto(target[: len(data)], np.frombuffer(data, dtype=np.uint8))

    def add() -> None:
        for _ in rounds:
            for data in buffers:
                np.add.reduce(np.frombuffer(data, dtype=np.int64, count=len(data) // 8))

    def read() -> None:
        for _ in rounds:
            for arrays, _header in messages:
                arrays.to_numpy_ndarrays()

    bytes_each = sum(map(len, buffers)) // len(messages)
    case = (
        f"merge {clients} clients, {size.classes} classes x {size.width}, "
        f"{'fixed point' if exact else 'float64'}, payload {precision}, {bytes_each} bytes each"
    )
    repeats, clock = min(3, size.repeats), time.process_time
    with thread_count(1):
        mine, copied = interleaved(ours, copy, repeats=repeats, clock=clock)
        added, flower = interleaved(add, read, repeats=repeats, clock=clock)
    expected = total.means
    error = float((mine.result.means - expected).abs().max() / expected.abs().max())
    most = TARGET if precision == "exact" else None
    for name, seconds, target_here in (
        ("Flower's to_numpy_ndarrays", flower.seconds, most),
        ("copying the bytes", copied.seconds, None),
        ("adding up the bytes", added.seconds, None),
    ):
        yield SpeedComparison(
            case=case,
            peer_name=f"{name} (CPU time)",
            ours=mine.seconds,
            peer=seconds,
            kind="cost",
            target=target_here,
            threads=1,
            difference=require_equal(case, error, 1e-12 if precision == "exact" else 1e-2),
        )


def _merge(arrivals: list[Arrival], empty: PrototypeMemory) -> PrototypeMemory:
    reader, merged = MessageReader(empty), MergedMemory(empty)
    for client, arrays, header in arrivals:
        merged.accept(reader.read(arrays, header), client=client)
    return merged.memory


def _of_client(name: str, message: Message) -> Arrival:
    """The same arrays under a header of the client's own."""
    arrays, header = message
    header = header.copy()
    header["epoch"] = name
    return name, arrays, header


def _messages(
    size: Size, exact: bool, precision: Precision
) -> tuple[list[Message], PrototypeMemory]:
    """Messages of clients with five samples of every class, and the sum of what they hold."""
    generator = torch.Generator().manual_seed(0)
    empty = PrototypeMemory(size.width, exact=exact, fingerprint="bench")
    total = empty.empty_like()
    labels = torch.arange(5 * size.classes) % size.classes
    messages = []
    for _ in range(_MESSAGES if size.samples >= _CLIENTS else 4):
        features = torch.randn(len(labels), size.width, generator=generator)
        memory = empty.empty_like().update(features, labels)
        total.merge(memory)
        messages.append(encode(Contribution(memory, "", 1, "full"), precision))
    return messages, total
