"""What a server tells Prometheus, on a port of its own machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from protocl.errors import ConfigError
from protocl.federation.server.resumable import LastingStrategy

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_PREFIX = "protocl_federation"


class ServerMetrics:
    """The numbers of one server, since its federation began; a collector of Prometheus.

    ``_rounds``, ``_contributions{outcome}``, ``_refused{reason}``, ``_bytes{direction}``,
    ``_seconds{part}`` count up; ``_clients``, ``_classes``, ``_samples`` and ``_backlog`` (replies
    that were asked for and have not come) are of now. All begin with ``protocl_federation``. What a
    method does not know (single clients, in a protected sum) is not there.
    """

    def __init__(self) -> None:
        self._counted: dict[str, tuple[str, Mapping[str, float]]] = {}
        self._now: Mapping[str, float] = {}

    def update(self, strategy: LastingStrategy, backlog: int = 0) -> None:
        """Take over the numbers of a strategy, after a round."""
        traffic, memory = strategy.traffic, strategy.memory
        sent = {way: traffic.total(way) for way in ("up", "down")}
        counted: dict[str, tuple[str, Mapping[str, float]]] = {
            "rounds": ("", {"": strategy.round}),
            "bytes": ("direction", sent),
        }
        now = {"classes": len(memory), "samples": memory.total, "backlog": backlog}
        if (seconds := getattr(strategy, "seconds", None)) is not None:
            counted["seconds"] = ("part", asdict(seconds))
        if (merged := getattr(strategy, "merged", None)) is not None:
            counted["contributions"] = ("outcome", merged.ledger.outcomes())
            counted["refused"] = ("reason", merged.ledger.reasons())
            now["clients"] = len(merged.clients)
        self._counted, self._now = counted, now

    def collect(self) -> Iterator[Metric]:
        """The newest numbers, as Prometheus asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, (label, values) in self._counted.items():
            labels = [label] if label else []
            family = CounterMetricFamily(f"{_PREFIX}_{name}", f"{name} so far", labels=labels)
            for key, value in values.items():
                family.add_metric([key] if label else [], value)
            yield family
        for name, value in self._now.items():
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", f"{name} now", value=value)


@contextmanager
def served_metrics(port: int) -> Iterator[ServerMetrics]:
    """Metrics that are served at ``http://127.0.0.1:PORT/metrics`` in the block; 0 serves none.

    Raises:
        ConfigError: the port is taken or none, or prometheus-client is not installed.
    """
    metrics = ServerMetrics()
    if not port:
        yield metrics
        return
    server = _serve(metrics, port)
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()


def _serve(metrics: ServerMetrics, port: int) -> Any:
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise ConfigError(
            f"metrics-port={port} needs prometheus-client: pip install 'protocl[serve]'"
        ) from error
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        return start_http_server(port, addr="127.0.0.1", registry=registry)[0]
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"metrics-port={port}: {error}; give a free port of 1 to 65535"
        ) from error
