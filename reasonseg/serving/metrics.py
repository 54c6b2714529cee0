"""The metrics of a server in Prometheus format, for /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one app, in their own registry, so that a process can hold several apps."""

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
            "time from the first byte of a request to the last byte of its answer",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.turns = Counter(
            "reasonseg_turns_total",
            "turns of conversations by status; their HTTP status is 200 before they are answered",
            ["status"],
            registry=self.registry,
        )
        self.batch = Histogram(
            "reasonseg_batch_size",
            "questions answered in one batch",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.wait = Histogram(
            "reasonseg_queue_seconds",
            "time that a request waits for the model",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.work = Histogram(
            "reasonseg_model_seconds",
            "time that the model needs for a batch",
            buckets=SECONDS,
            registry=self.registry,
        )
        for name, help_, read in (
            ("reasonseg_queue_depth", "requests that wait for the model", engine_depth),
            ("reasonseg_conversations", "open conversations", conversations),
        ):
            Gauge(name, help_, registry=self.registry).set_function(read)

    def observe(self, event: str, value: float) -> None:
        """Records an event of the engine: `batch`, `wait` or `work`."""
        getattr(self, event).observe(value)
