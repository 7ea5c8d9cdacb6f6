"""Spans of OpenTelemetry: one per request, in the caller's trace, without what was said."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.serve.serving import asgi, chat


async def test_a_request_is_a_span_of_its_callers_trace(make_app: Callable[..., FastAPI]) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with asgi(make_app(tracing=True, tracer_provider=provider)) as client:
        headers = {"traceparent": f"00-{trace_id}-{parent}-01"}
        await client.post("/v1/chat/completions", json=chat("my secret", model="scripted"), headers=headers)
        await client.post("/v1/chat/completions", json=chat(model="gpt-4"))
    first, second = exporter.get_finished_spans()
    assert first.name == "chat"
    assert first.context is not None
    assert first.parent is not None
    assert format(first.context.trace_id, "032x") == trace_id
    assert format(first.parent.span_id, "016x") == parent
    attributes = dict(first.attributes or {})
    assert attributes["gen_ai.request.model"] == "scripted"
    assert attributes["http.response.status_code"] == 200
    assert attributes["nabla.rollouts"] == 1
    assert int(str(attributes["gen_ai.usage.output_tokens"])) > 0
    assert "secret" not in str(attributes)
    assert dict(second.attributes or {})["http.response.status_code"] == 404


async def test_without_the_setting_there_is_none(make_app: Callable[..., FastAPI]) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with asgi(make_app(tracer_provider=provider)) as client:
        await client.get("/v1/models")
    assert exporter.get_finished_spans() == ()
