"""Tracing: one OpenTelemetry span per request, by the conventions for generative AI; without prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nabla_agents.errors import ConfigurationError

_ATTRIBUTES = {
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


class Span:
    """A request's span; does nothing where tracing is off."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def end(self, status: int, facts: Mapping[str, Any]) -> None:
        if self._span is None:
            return
        self._span.set_attribute("http.response.status_code", status)
        for name, attribute in _ATTRIBUTES.items():
            if facts.get(name) is not None:
                self._span.set_attribute(attribute, facts[name])
        if status >= 500:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)


class Tracing:
    """Makes spans on a tracer provider, the process's own if none is given; none at all where it is off.

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
        self._extract = propagate.extract
        self._kind = trace.SpanKind.SERVER
        self._tracer = trace.get_tracer("nabla_agents.serve", tracer_provider=provider)

    @contextmanager
    def span(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> Iterator[Span]:
        """A span around a request, within the trace that its headers name."""
        if self._tracer is None:
            yield Span()
            return
        operation = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}.get(scope["path"])
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        if operation is not None:
            attributes["gen_ai.operation.name"] = operation
        with self._tracer.start_as_current_span(
            operation or f"{scope['method']} {scope['path']}",
            context=self._extract(headers),
            kind=self._kind,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield Span(span)
