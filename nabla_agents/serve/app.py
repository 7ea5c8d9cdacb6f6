"""create_app: engines behind an OpenAI-compatible API, as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

import nabla_agents
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError, NablaError
from nabla_agents.registry import STRATEGIES
from nabla_agents.rewards import Reward
from nabla_agents.search import Strategy
from nabla_agents.serve.errors import Refusal, invalid_request, refusal_of, unrouted
from nabla_agents.serve.middleware import Middleware
from nabla_agents.serve.routes import router
from nabla_agents.serve.service import OFFERED, Service
from nabla_agents.serve.settings import ServeSettings
from nabla_agents.serve.telemetry import Metrics, Tracing

_ROLLOUTS = 8  # of a strategy that draws a number of completions
_KEY = HTTPBearer(auto_error=False, description="An API key; not needed on the server's own machine.")


def create_app(
    engines: Engine | Mapping[str, Engine],
    settings: ServeSettings | None = None,
    *,
    rewards: Mapping[str, Reward] | None = None,
    strategies: Mapping[str, Strategy] | None = None,
    tracer_provider: Any = None,
) -> FastAPI:
    """An application that answers by these engines; make it in the process that serves it.

    Args:
        engines: by the model's name; one engine is served under its model's own.
        settings: limits, keys and caps.
        rewards: what a request may be judged by instead of the engine's own reward, by name.
        strategies: what a request may be searched by, by name; the usual ones if none are given.
        tracer_provider: of OpenTelemetry, where `settings.tracing` is on; the process's own if none is given.

    Concurrent searches of one engine are joined into one batch. `app.state.service` tells its `load` and can `drain`.

    Raises:
        ConfigurationError: no engine, or something else in its place.
    """
    if isinstance(engines, Engine):
        engines = {engines.model.name: engines}
    if (
        not isinstance(engines, Mapping)
        or not engines
        or not all(isinstance(engine, Engine) for engine in engines.values())
    ):
        raise ConfigurationError(f"engines is {engines!r}; expected an Engine, or a mapping of names to engines.")
    settings = ServeSettings() if settings is None else settings
    metrics = Metrics()
    service = Service(
        engines,
        settings,
        rewards=rewards or {},
        strategies={name: STRATEGIES[name](_ROLLOUTS) for name in OFFERED} if strategies is None else strategies,
        metrics=metrics,
    )
    metrics.gauge("nabla_running", "Answers that are searched.").set_function(lambda: service.admission.running)
    metrics.gauge("nabla_waiting", "Answers that wait.").set_function(lambda: service.admission.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.drain(settings.shutdown_seconds)
        service.close()
        if settings.upstream is not None:
            app.state.upstream.close()

    app = FastAPI(
        title="nabla-agents",
        version=nabla_agents.__version__,
        description="Answers refined by gradients, behind OpenAI's API.",
        lifespan=lifespan,
        dependencies=[Depends(_KEY)],
    )
    app.state.service = service
    if settings.upstream is not None:
        from nabla_agents.serve import proxy, upstream  # needs httpx

        app.state.upstream = upstream.Upstream(settings)
        app.include_router(proxy.router)  # goes before the routes of the same paths
    app.include_router(router)
    tracing = Tracing(settings.tracing, tracer_provider)
    app.add_middleware(Middleware, settings=settings, metrics=metrics, tracing=tracing)
    for kind in (RequestValidationError, HTTPException, Refusal, NablaError):
        app.add_exception_handler(kind, _refused)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        refusal = invalid_request(error.errors())
    elif isinstance(error, HTTPException):
        refusal = unrouted(error, request.method, request.url.path)
    else:
        refusal, request.state.facts["error"] = refusal_of(error), error
    return JSONResponse(refusal.body, refusal.status, {**(getattr(error, "headers", None) or {}), **refusal.headers})
