"""What ``PrototypePlugin`` costs an Avalanche training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Literal

from protocl.bench import Comparison, Size
from protocl.bench.comparison import require_equal
from protocl.bench.synthetic import images
from protocl.bench.timing import interleaved, thread_count
from protocl.strategies import PrototypePlugin
from protocl.strategies.bench.peers import experience, largest_difference, small_network, trained

TARGET = 1.03
BATCH = 64


def measure(size: Size) -> Iterator[Comparison]:
    """One epoch on a small network with the plugin and without, in CPU seconds of one thread.

    The target is for features that are collected during training. The extra pass costs what a
    forward pass over the data costs, whatever the number of epochs; it is reported for one.
    """
    with thread_count(1):
        yield _compare(size, "training", TARGET)
        yield _compare(size, "extra_pass", None)


def _compare(
    size: Size, collect: Literal["training", "extra_pass"], target: float | None
) -> Comparison:
    data = experience(*images(size))
    build = partial(small_network, size.classes)
    ours, peer = interleaved(
        lambda: trained(build, data, BATCH, PrototypePlugin(collect=collect)),
        lambda: trained(build, data, BATCH),
        repeats=3 * size.repeats,  # a few percent are looked for
        clock=time.process_time,
    )
    case = f"one epoch with PrototypePlugin, collect={collect}, {size.images} x 3x32x32"
    return Comparison(
        case=case,
        peer_name="without the plugin (CPU time)",
        ours=ours.seconds,
        peer=peer.seconds,
        kind="cost",
        target=target,
        threads=1,
        # The plugin must not change what is trained.
        difference=require_equal(case, largest_difference(ours.result, peer.result), 0.0),
    )
