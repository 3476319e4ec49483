"""What ``PrototypePlugin`` costs an Avalanche training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from torch import nn

from protocl.bench import Size, SpeedComparison
from protocl.bench.comparison import require_equal
from protocl.bench.synthetic import images
from protocl.bench.timing import interleaved, thread_count, timed
from protocl.strategies import PrototypePlugin
from protocl.strategies.bench.peers import (
    experience,
    largest_weight_difference,
    small_network,
    trained,
)

TARGET = 1.03
BATCH = 64


def measure(size: Size) -> Iterator[SpeedComparison]:
    """One epoch on a small network with the plugin and without, on one thread.

    The target is for features that are collected during training, whose few percent are less than
    what two epochs of the same work differ by. So the epoch is compared with itself without the
    time that passes inside the plugin. Beside it whole epochs are compared, also with the extra
    pass, which costs what a forward pass over the data costs, whatever the number of epochs.
    """
    with thread_count(1):
        yield _inside(size)
        yield _compare(size, "training")
        yield _compare(size, "extra_pass")


class _Stopwatch:
    """Stands before a plugin and adds up the time that passes inside it."""

    def __init__(self, plugin: PrototypePlugin) -> None:
        self.seconds = 0.0
        self._plugin = plugin
        hook = plugin.reader.hook
        vars(hook)["_read_input"] = self._timed(hook._read_input)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._plugin, name)
        return self._timed(found) if name.startswith(("before_", "after_")) else found

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return run


def _inside(size: Size) -> SpeedComparison:
    """An epoch beside itself without the calls of the plugin; the median of several."""
    data = experience(*images(size))
    build = partial(small_network, size.classes)

    def epoch() -> tuple[float, float, nn.Module]:
        watch = _Stopwatch(PrototypePlugin(collect="training"))
        whole = timed(lambda: trained(build, data, BATCH, watch))
        return whole.seconds, whole.seconds - watch.seconds, whole.result

    epochs = sorted((epoch() for _ in range(2 * size.repeats + 1)), key=lambda e: e[0] / e[1])
    ours, peer, model = epochs[size.repeats]
    case = f"one epoch with PrototypePlugin, collect=training, {size.images} x 3x32x32"
    plain = trained(build, data, BATCH)
    return SpeedComparison(
        case=case,
        peer_name="the same epoch without the time inside the plugin",
        ours=ours,
        peer=peer,
        kind="cost",
        target=TARGET,
        threads=1,
        difference=require_equal(case, largest_weight_difference(model, plain), 0.0),
    )


def _compare(size: Size, collect: Literal["training", "extra_pass"]) -> SpeedComparison:
    data = experience(*images(size))
    build = partial(small_network, size.classes)
    ours, peer = interleaved(
        lambda: trained(build, data, BATCH, PrototypePlugin(collect=collect)),
        lambda: trained(build, data, BATCH),
        repeats=3 * size.repeats,
        clock=time.process_time,
    )
    case = f"one epoch with PrototypePlugin, collect={collect}, {size.images} x 3x32x32"
    return SpeedComparison(
        case=case,
        peer_name="another epoch without the plugin (CPU time)",
        ours=ours.seconds,
        peer=peer.seconds,
        kind="cost",
        target=None,
        threads=1,
        # The plugin must not change what is trained.
        difference=require_equal(case, largest_weight_difference(ours.result, peer.result), 0.0),
    )
