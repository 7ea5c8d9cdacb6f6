"""Responses: an answer is worked at as long as its client is there, and told whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from nabla_agents.request import Request
from nabla_agents.result import Result
from nabla_agents.serve.answers import Answer, StepsAnswer
from nabla_agents.serve.errors import ClientGone, refusal_of
from nabla_agents.serve.middleware import Caller
from nabla_agents.serve.service import Pending, QueuedRun, Served, Service
from nabla_agents.serve.telemetry import cost
from nabla_agents.types import Step

DONE: Final = "data: [DONE]\n\n"
ALIVE: Final = ": searching\n\n"  # a comment, which clients skip
HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def respond(
    http: HttpRequest, served: Served, requests: Sequence[Request], answer: Answer | StepsAnswer, *, stream: bool
) -> Response:
    """The answer to these requests, as one JSON object or as a stream of its pieces.

    Raises:
        Refusal: 429, or 503 while the server shuts down; and what a search raises.
        ClientGone: the client left.
    """
    service, caller, facts = Service.of(http), Caller.of(http), http.state.facts
    facts |= {"model": served.model, "reward": served.reward, "answers": len(requests)}
    if service.settings.log_prompts:
        facts["prompts"] = [request.prompt.text for request in requests]
    runs = service.submit(served, requests, caller.id, caller.key)
    if stream or isinstance(answer, StepsAnswer):
        return Stream(http, runs, _events(http, runs, answer), media_type="text/event-stream", headers=HEADERS)
    async with connected(http, runs):
        results = await asyncio.gather(*(run.result() for run in runs))
    return JSONResponse(answer.whole(results, _ended(http, runs, results)))


class Stream(StreamingResponse):
    """A response of what comes of these runs. An error is an event too, and then there is no other end."""

    def __init__(
        self, http: HttpRequest, runs: Sequence[Pending], pieces: AsyncIterator[str | bytes], **options: Any
    ) -> None:
        self._http, self._runs, self._pieces = http, runs, pieces
        super().__init__(self._lines(), **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._http.state.facts["gone"] = True  # unless the end is reached
        try:
            await super().__call__(scope, receive, send)
        finally:
            _cancel(self._runs)  # also where the client left before the first piece

    async def _lines(self) -> AsyncIterator[str | bytes]:
        facts = self._http.state.facts
        try:
            async with connected(self._http, self._runs):
                async for piece in self._pieces:
                    yield piece
        except ClientGone:
            return
        except Exception as e:
            facts["error"] = e
            yield f"\n\n{event(refusal_of(e).body)}"  # also where another event was begun
        facts["gone"] = False


async def _events(
    http: HttpRequest, runs: Sequence[QueuedRun], answer: Answer | StepsAnswer
) -> AsyncIterator[str | bytes]:
    for piece in answer.first():
        yield event(piece)
    results: dict[int, Result] = {}
    async for arrived in _merged(runs, Service.of(http).settings.heartbeat_seconds):
        if arrived is None:
            yield ALIVE
            continue
        index, item = arrived
        if isinstance(item, Result):
            results[index] = item
        for piece in answer.end(index, item) if isinstance(item, Result) else answer.step(index, item):
            yield event(piece)
    in_order = [results[i] for i in range(len(runs))]
    for piece in answer.last(in_order, _ended(http, runs, in_order)):
        yield event(piece)
    yield DONE


@asynccontextmanager
async def connected(http: HttpRequest, runs: Sequence[Pending]) -> AsyncIterator[None]:
    """Within, the runs go on as long as the client is there; they end where it leaves, or what is within fails.

    Raises:
        ClientGone: it left.
    """
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await http.receive())["type"] != "http.disconnect":
            pass
        gone = True
        _cancel(runs)

    watching = asyncio.create_task(watch())
    try:
        yield
    except BaseException as e:
        _cancel(runs)
        if gone and isinstance(e, Exception):
            raise ClientGone from e
        raise
    finally:
        watching.cancel()


async def _merged(runs: Sequence[QueuedRun], heartbeat: float) -> AsyncIterator[tuple[int, Step | Result] | None]:
    """What the runs yield, as it comes, until each has its result; None where nothing came for a while."""
    arrived: asyncio.Queue[tuple[int, Step | Result | Exception]] = asyncio.Queue()

    async def follow(index: int, run: QueuedRun) -> None:
        try:
            async for item in run.steps():
                arrived.put_nowait((index, item))
        except Exception as e:
            arrived.put_nowait((index, e))

    following = [asyncio.create_task(follow(i, run)) for i, run in enumerate(runs)]
    left = len(following)
    try:
        while left:
            try:
                index, item = await asyncio.wait_for(arrived.get(), heartbeat)
            except TimeoutError:
                yield None
                continue
            if isinstance(item, Exception):
                raise item
            left -= isinstance(item, Result)
            yield index, item
    finally:
        for task in following:
            task.cancel()


def _cancel(runs: Sequence[Pending]) -> None:
    for run in runs:
        run.cancel()


def _ended(http: HttpRequest, runs: Sequence[QueuedRun], results: Sequence[Result]) -> float:
    """Notes what the answer took; the seconds that its first run waited."""
    http.state.facts |= cost(results)
    if Service.of(http).settings.log_prompts:
        http.state.facts["texts"] = [result.text for result in results]
    return min(run.queued_seconds for run in runs)


def event(piece: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(piece, ensure_ascii=False)}\n\n"
