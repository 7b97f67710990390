"""The metrics of `/metrics`, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tsarank_requests", "HTTP requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("tsarank_request_seconds", "Seconds of a request", ["path"], registry=self.registry)
        self.documents = Counter("tsarank_documents", "Documents scored", ["model"], registry=self.registry)
        self.tokens = Counter("tsarank_tokens", "Tokens of scored prompts", ["model"], registry=self.registry)
        self.cut = Counter("tsarank_cut_documents", "Documents cut to the model's length", registry=self.registry)
        self.batched = Histogram(
            "tsarank_requests_per_call",
            "Requests in one call of the model",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.waiting = Gauge("tsarank_waiting_pairs", "Waiting pairs", ["model"], registry=self.registry)

    def page(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self.registry)
