"""What /metrics shows, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What /metrics shows, in a registry of its own so that several apps can live in a process."""

    def __init__(self, engine_depth: Callable[[], int], conversations: Callable[[], int]):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "reasonseg_requests_total",
            "requests by path and status",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "reasonseg_request_seconds",
            "from first byte to last",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "reasonseg_batch_size",
            "questions answered together",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.wait = Histogram(
            "reasonseg_queue_seconds",
            "waiting for the model",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.work = Histogram(
            "reasonseg_model_seconds", "a batch took", buckets=SECONDS, registry=self.registry
        )
        for name, help_, read in (
            ("reasonseg_queue_depth", "requests that wait", engine_depth),
            ("reasonseg_conversations", "conversations kept", conversations),
        ):
            Gauge(name, help_, registry=self.registry).set_function(read)

    def observe(self, event: str, value: float) -> None:
        """For the engine."""
        getattr(self, event).observe(value)
