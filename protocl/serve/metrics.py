"""Counts, latencies and the distribution of answers, as Prometheus reads them.

Nothing here names a class: what was forgotten must not stay in a counter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from protocl.model.guesses import Guesses

RECENT = 1000
"""Predictions over which quantiles are taken."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_CHANCES = tuple(n / 10 for n in range(1, 11))
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        names = ("method", "route", "status")
        self._requests = Counter("protocl_requests", "Answers", names, registry=registry)
        self._seconds = Histogram(
            "protocl_request_seconds", "From the first byte of a request to that of its answer",
            ("method", "route"), buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._predictions = Counter("protocl_predictions", "Samples answered", registry=registry)
        self._strange = Counter("protocl_unknown_predictions", "Marked unknown", registry=registry)
        self._sure = Histogram(
            "protocl_best_probability", "Probability of the best class", buckets=_CHANCES,
            registry=registry,
        )  # fmt: skip
        self._unknown = Histogram(
            "protocl_unknown_probability",
            "That a sample is of no class known; by a score, share of known samples above it",
            buckets=_CHANCES, registry=registry,
        )  # fmt: skip
        self._changes = Counter("protocl_changes", "Changes", ("kind",), registry=registry)
        self._classes = Gauge("protocl_classes", "Classes known", registry=registry)
        self._samples = Gauge("protocl_samples", "Samples known", registry=registry)
        self._recent = _Recent()
        registry.register(self._recent)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def predicted(self, found: Sequence[Guesses], marked: Sequence[bool]) -> None:
        """Count predictions, and note how sure they are."""
        self._predictions.inc(len(found))
        self._strange.inc(sum(marked))
        for guesses in found:
            self._recent.scores.append(guesses.best[0].score)
            if guesses.best[0].probability is not None:
                self._sure.observe(guesses.best[0].probability)
            if guesses.unknown is not None:
                self._unknown.observe(guesses.unknown)

    def changed(self, kind: str) -> None:
        """Count a change."""
        self._changes.labels(kind).inc()

    def knows(self, classes: int, samples: int) -> None:
        """Note what is known now."""
        self._classes.set(classes)
        self._samples.set(samples)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)


class _Recent(Collector):
    """Quantiles of the best scores of the last predictions, whose range only the head knows."""

    def __init__(self) -> None:
        self.scores: deque[float] = deque(maxlen=RECENT)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The quantiles now."""
        family = GaugeMetricFamily(
            "protocl_best_score", f"Score of the best class, last {RECENT} predictions",
            labels=["quantile"],
        )  # fmt: skip
        scores = list(self.scores)
        if scores:
            values = np.quantile(scores, _QUANTILES)
            for quantile, value in zip(_QUANTILES, values.tolist(), strict=True):
                family.add_metric([str(quantile)], value)
        yield family
