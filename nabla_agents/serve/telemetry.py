"""What a server tells its operators: log lines as JSON, metrics for Prometheus, spans of OpenTelemetry.

Prompts and answers are left out unless they are asked for.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nabla_agents.errors import ConfigurationError
from nabla_agents.result import Result
from nabla_agents.types import Usage

logger: Final = logging.getLogger("nabla_agents.serve")
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SPENT: Final = {
    "prompt_tokens": "Tokens of prompts",
    "completion_tokens": "Tokens of returned completions",
    "generated_tokens": "Tokens generated, discarded ones included",
    "rollouts": "Completions sampled",
    "gradient_passes": "Gradient passes",
    "flops": "Floating-point operations",
}
_ATTRIBUTES: Final = {
    "status": "http.response.status_code",
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "finish": "gen_ai.response.finish_reasons",
    "rollouts": "nabla.rollouts",
    "gradient_passes": "nabla.gradient_passes",
    "caller": "nabla.caller",
    "reward": "nabla.reward",
    "answers": "nabla.answers",
}


# ── logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class JsonLines(logging.Formatter):
    """A record as a JSON object: time, level, event, and the fields given with `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str) -> None:
    """Sends the server's log, and uvicorn's, to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in (logger.name, "uvicorn"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level.upper())


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    logger.log(level, event, extra={"fields": {k: v for k, v in fields.items() if v is not None}})


def failure(error: BaseException) -> dict[str, Any]:
    """Where an error came from. Its message is left out, since it may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]],
        **({} if error.__cause__ is None else {"cause": type(error.__cause__).__name__}),
    }


def cost(results: Sequence[Result]) -> dict[str, Any]:
    """What the answers of one request took, for its log line and span."""
    spent = sum((result.usage for result in results), Usage())
    return {
        "finish": [str(result.finish_reason) for result in results],
        "prompt_tokens": max(result.prompt_tokens for result in results),
        "completion_tokens": sum(len(result.token_ids) for result in results),
        "rollouts": spent.rollouts,
        "gradient_passes": spent.gradient_passes,
    }


def became(draft: str, result: Result) -> str:
    """What became of the draft of an answer."""
    return "kept" if result.text.strip() == draft.strip() else "revised"


# ── metrics ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Metrics:
    """Counters and histograms, and gauges that ask when they are read; one registry per application, so that a process
    may have several.
    """

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
        self._drafts = Counter(
            "nabla_drafts", "Drafts by what became of them: revised, kept, passed.", ("became",), registry=registry
        )
        self._answers = Counter("nabla_answers", "Answers by finish reason.", ("model", "finish"), registry=registry)
        self._spent = {
            name: Counter(f"nabla_{name}", f"{text} of all answers.", ("model",), registry=registry)
            for name, text in _SPENT.items()
        }

    def gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def request(self, route: str, status: int, seconds: float, *, gone: bool) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._disconnects.inc(gone)

    def queued(self, seconds: float) -> None:
        self._queued.observe(seconds)

    def drafted(self, became: str) -> None:
        self._drafts.labels(became).inc()

    def answered(self, model: str, result: Result, *, draft: str | None = None) -> None:
        if draft is not None:
            self.drafted(became(draft, result))
        self._answers.labels(model, str(result.finish_reason)).inc()
        tokens = {"prompt_tokens": result.prompt_tokens, "completion_tokens": len(result.token_ids)}
        spent = {**result.usage.as_dict(), **tokens}
        for name, counter in self._spent.items():
            counter.labels(model).inc(spent[name])

    def text(self) -> bytes:
        return generate_latest(self.registry)


# ── spans ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Tracing:
    """One span per request, by the conventions for generative AI, on a tracer provider, the process's own if none is
    given; none at all where it is off.

    Raises:
        ConfigurationError: it is on, and OpenTelemetry is not installed.
    """

    def __init__(self, on: bool, provider: Any = None) -> None:
        self._tracer: Any = None
        if not on:
            return
        try:
            from opentelemetry import propagate, trace
        except ImportError as e:
            raise ConfigurationError(
                "tracing needs OpenTelemetry, which is not installed: pip install opentelemetry-sdk, and an exporter."
            ) from e
        self._extract, self._trace = propagate.extract, trace
        self._tracer = trace.get_tracer("nabla_agents.serve", tracer_provider=provider)

    @contextmanager
    def span(self, scope: Mapping[str, Any], headers: Mapping[str, str], facts: Mapping[str, Any]) -> Iterator[None]:
        """A span around a request, within the trace that its headers name; it has the facts that are known by its
        end.
        """
        if self._tracer is None:
            yield
            return
        operation = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}.get(scope["path"])
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        if operation is not None:
            attributes["gen_ai.operation.name"] = operation
        with self._tracer.start_as_current_span(
            operation or f"{scope['method']} {scope['path']}",
            context=self._extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            finally:
                for name, attribute in _ATTRIBUTES.items():
                    if facts.get(name) is not None:
                        span.set_attribute(attribute, facts[name])
                if facts.get("status", 0) >= 500:
                    span.set_status(self._trace.StatusCode.ERROR)
