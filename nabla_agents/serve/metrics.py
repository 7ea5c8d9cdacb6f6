"""Metrics: what a server counts, for Prometheus. One registry per application, so that a process may have several."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nabla_agents.result import Result

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters and histograms, and gauges that ask when they are read."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "nabla_requests", "Requests by route and status.", ("route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "nabla_request_seconds", "Seconds from head to last byte.", ("route",), buckets=_SECONDS, registry=registry
        )
        self._queued = Histogram(
            "nabla_queue_seconds", "Seconds that an answer waited for its turn.", buckets=_SECONDS, registry=registry
        )
        self._disconnects = Counter("nabla_disconnects", "Clients that left before their answer.", registry=registry)
        self._answers = Counter("nabla_answers", "Answers by finish reason.", ("model", "finish"), registry=registry)
        self._spent = {
            name: Counter(f"nabla_{name}", f"{text} of all answers.", ("model",), registry=registry)
            for name, text in (
                ("prompt_tokens", "Tokens of prompts"),
                ("completion_tokens", "Tokens of returned completions"),
                ("generated_tokens", "Tokens generated, discarded ones included"),
                ("rollouts", "Completions sampled"),
                ("gradient_passes", "Gradient passes"),
                ("flops", "Floating-point operations"),
            )
        }

    def gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def queued(self, seconds: float) -> None:
        self._queued.observe(seconds)

    def disconnect(self) -> None:
        self._disconnects.inc()

    def answered(self, model: str, result: Result) -> None:
        self._answers.labels(model, str(result.finish_reason)).inc()
        spent = {
            **result.usage.as_dict(),
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": len(result.token_ids),
        }
        for name, counter in self._spent.items():
            counter.labels(model).inc(spent[name])

    def text(self) -> bytes:
        return generate_latest(self.registry)
