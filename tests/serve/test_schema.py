"""The OpenAPI schema against the server: whatever fits it or not, the answer is one that it declares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from nabla_agents import Budget, Engine, Greedy
from nabla_agents.serve import ServeSettings, create_app
from nabla_agents.testing import scripted_model

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)
ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/nabla/prompt"),
    ("POST", "/v1/nabla/tokens"),
    ("POST", "/v1/nabla/steps"),
    ("GET", "/ready"),
)


@pytest.fixture(scope="module")
def app() -> Iterator[FastAPI]:
    engine = Engine(model=scripted_model(lambda prompt: "Yes."), strategy=Greedy(), budget=Budget(rollouts=1))
    made = create_app({"m": engine}, ServeSettings(max_tokens=8, anonymous=True))
    yield made
    made.state.service.close()


def checked(app: FastAPI, method: str, path: str, examples: int, mode: Any) -> None:
    async def kept(scope: Any, receive: Any, send: Any) -> None:
        """The application for one client after another; each of them would start and end it."""
        if scope["type"] == "http":
            await app(scope, receive, send)
            return
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})

    schema = schemathesis.openapi.from_asgi("/openapi.json", kept)
    operation = schema[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        if isinstance(case.body, dict) and mode is schemathesis.GenerationMode.POSITIVE:
            case.body["model"] = "m"  # else all that is tried is an unknown model
        case.call_and_validate(checks=list(CHECKS))

    check()


# Where a thread that another test has left behind uses `random` meanwhile, hypothesis believes that it was we.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_requests_that_fit_the_schema(app: FastAPI, method: str, path: str) -> None:
    checked(app, method, path, 3, schemathesis.GenerationMode.POSITIVE)


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] == "POST"])
def test_requests_that_do_not(app: FastAPI, method: str, path: str) -> None:
    checked(app, method, path, 10, schemathesis.GenerationMode.NEGATIVE)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_many_requests(app: FastAPI, method: str, path: str) -> None:
    checked(app, method, path, 200, schemathesis.GenerationMode.POSITIVE)
    if method == "POST":
        checked(app, method, path, 200, schemathesis.GenerationMode.NEGATIVE)
