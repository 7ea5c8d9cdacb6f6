"""What a request may change of a strategy is a closed list, and what it asks for is bounded."""

from __future__ import annotations

import asyncio
import threading
import typing
from collections.abc import AsyncIterator, Callable
from typing import Any

import annotated_types
import httpx
import pytest
from fastapi import FastAPI

from nabla_agents import AdamDTO, Engine, Greedy, Nabla, Sampling
from nabla_agents.registry import STRATEGIES
from nabla_agents.search.directions import DIRECTIONS
from nabla_agents.search.pool import AcceptanceRule
from nabla_agents.serve import ServeSettings, create_app
from nabla_agents.serve.changes import CHANGEABLE, changed
from nabla_agents.serve.errors import Refusal
from nabla_agents.testing import scripted_model
from nabla_agents.types import Step
from tests.serve.serving import asgi, chat, refused, until

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "nabla", "dto": {"steps": 1_000_000_000, "stop_on_flip": False}},
        {"name": "nabla", "dto": {"steps": 20.0}},
        {"name": "nabla", "dto": {"steps": "20"}},
        {"name": "nabla", "dto": {"beta": 1e300}},
        {"name": "nabla", "openings": 1_000_000_000},
        {"name": "nabla", "openings": "1"},
        {"name": "nabla", "openings": True},
        {"name": "nabla", "stop_when_verified": 1},
        {"name": "nabla", "direction": "sideways"},
        {"name": "nabla", "resample": {"temperature": 1, "stop": ["x"]}},
        {"name": "nabla", "width": 2},
        {"name": "nabla-parallel", "width": 200_000_000},
        {"name": "nabla-parallel", "width": 2e8},
        {"name": "best-of-n", "n": 2e8},
        {"name": "best-of-n", "n": "200000000"},
        {"name": "best-of-n", "n": 2.0},
        {"name": "best-of-n", "temperature": 1e9},
        {"name": "self-consistency", "n": "3"},
        {"name": "self-consistency", "weighting": ["reward"]},
        {"name": "greedy", "steps": 5},
        {"name": "greedy", "x" * 500_000: 5},
    ],
)
async def test_what_is_not_on_the_list_is_refused_and_the_list_is_named(
    client: httpx.AsyncClient, strategy: dict[str, Any]
) -> None:
    response = await client.post(CHAT, json=chat(model="scripted", nabla={"strategy": strategy}))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "nabla.strategy"
    assert "at most 64" in error["message"] or "These can be changed: " in error["message"]
    assert len(error["message"]) < 1000


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_its_list_and_every_number_its_cap(name: str) -> None:
    strategy = STRATEGIES[name](8)
    body = CHANGEABLE[type(strategy)]
    assert set(body.model_fields) <= set(type(strategy).model_fields)  # pyright: ignore[reportAttributeAccessIssue]

    def uncapped(kind: type[Any]) -> list[str]:
        names: list[str] = []
        for field, hint in typing.get_type_hints(kind, include_extras=True).items():
            for part in [hint, *typing.get_args(hint)]:
                if hasattr(part, "model_fields"):
                    names += uncapped(part)
                elif {int, float} & {part, *typing.get_args(part)} and part is not bool:
                    bounds = getattr(part, "__metadata__", [typing.get_args(hint)[-1]])
                    names += [] if any(_upper(bound) for bound in bounds) else [field]
        return sorted(set(names))

    assert set(uncapped(body)) <= {"n", "openings", "width", "blocks"}  # whose cap is the server's


def _upper(bound: Any) -> bool:
    return any(isinstance(one, annotated_types.Le | annotated_types.Lt) for one in getattr(bound, "metadata", ()))


def test_what_is_on_the_list_is_changed_and_nothing_else() -> None:
    changes = {"direction": "none", "dto": {"steps": 5}, "resample": {"top_p": 0.9}, "openings": 3}
    got = changed("nabla", Nabla(temperature=0.3), changes, most_rollouts=4)
    assert isinstance(got, Nabla)
    assert got == Nabla(
        temperature=0.3,
        direction=got.direction,
        dto=AdamDTO(steps=5),
        resample=Sampling(top_p=0.9),
        openings=3,
    )
    with pytest.raises(Refusal, match="openings of the strategy is 5; at most 4"):
        changed("nabla", Nabla(), {"openings": 5}, most_rollouts=4)


def test_every_direction_that_has_a_name_may_be_asked_for() -> None:
    for name, direction in DIRECTIONS.items():
        got = changed("nabla", Nabla(), {"direction": name}, most_rollouts=4)
        assert isinstance(got, Nabla)
        assert got.direction == direction


class Hanging:
    """A strategy whose own work does not end before it is let go."""

    rule: AcceptanceRule = "objective"

    def __init__(self) -> None:
        self.began, self.released = threading.Event(), threading.Event()

    async def steps(self, search: Any) -> AsyncIterator[Step]:
        self.began.set()
        self.released.wait(30)
        async for step in Greedy().steps(search):
            yield step

    def select(self, pool: Any) -> Any:
        return pool.best()


async def test_health_fails_while_the_computing_thread_hangs(make_app: Callable[..., FastAPI]) -> None:
    hanging, engine = Hanging(), Engine(model=scripted_model(lambda prompt: "Yes."), strategy=Greedy())
    settings = ServeSettings(stall_seconds=0.2, shutdown_seconds=0.1)
    app = create_app({"m": engine}, settings, strategies={"hanging": hanging})
    async with asgi(app) as client:
        assert (await client.get("/health")).status_code == 200  # idle
        run = engine.submit(engine.request("Hi", strategy=hanging))
        hanging.began.wait(30)
        until(lambda: engine.busy_seconds > 0.2)
        refused(await client.get("/health"), 503, "stalled", "0.2 s")
        hanging.released.set()
        run.drain()
        until(lambda: engine.busy_seconds == 0)
        assert (await client.get("/health")).status_code == 200
    app.state.service.close()


async def test_a_drain_does_not_wait_for_what_heeds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nabla_agents.serve.service.CANCEL_SECONDS", 0.2)
    hanging, engine = Hanging(), Engine(model=scripted_model(lambda prompt: "Yes."), strategy=Greedy())
    app = create_app({"m": engine}, ServeSettings(), strategies={"hanging": hanging})
    service = app.state.service
    served = service.served("m")
    [queued] = service.submit(served, [engine.request("Hi", strategy=hanging)], "someone", None)
    waiting = asyncio.ensure_future(queued.result())
    while not hanging.began.is_set():
        await asyncio.sleep(0.005)
    for seconds in (0.1, 30.0):  # the second time, as the lifespan's end does, adds nothing
        async with asyncio.timeout(5):
            await service.drain(seconds)
    assert service.load == 1
    hanging.released.set()
    await asyncio.wait([waiting], timeout=30)
    service.close()
