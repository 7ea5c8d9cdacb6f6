"""Streams: server-sent events of one answer, which end when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import StreamingResponse

from nabla_agents.result import Result
from nabla_agents.serve.errors import refusal_of
from nabla_agents.serve.service import Searching
from nabla_agents.types import Step

DONE: Final = "data: [DONE]\n\n"
ALIVE: Final = ": searching\n\n"  # a comment, which clients skip
HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class ClientGone(Exception):
    """The client left before its answer; nobody is there to be told."""


@asynccontextmanager
async def connected(request: Request, searches: Sequence[Searching]) -> AsyncIterator[None]:
    """Within, the searches run as long as the client is there; after, none of them does.

    Raises:
        ClientGone: it left.
    """
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        for search in searches:
            search.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except Exception as e:
        if gone:
            raise ClientGone from e
        raise
    finally:
        watching.cancel()
        for search in searches:
            search.cancel()


async def results(request: Request, searches: Sequence[Searching]) -> list[Result]:
    """All results, in order.

    Raises:
        ClientGone: the client left.
    """
    async with connected(request, searches):
        return list(await asyncio.gather(*(search.result() for search in searches)))


def events(
    request: Request,
    searches: Sequence[Searching],
    pieces: Callable[[int, Step | Result], Sequence[Mapping[str, Any]]],
    *,
    first: Sequence[Mapping[str, Any]] = (),
    last: Callable[[list[Result]], Sequence[Mapping[str, Any]]] = lambda _: (),
    heartbeat: float,
) -> StreamingResponse:
    """A response of events: what `first` has, what `pieces` makes of each step and result of a search, what `last`
    makes of all results, and the end. An error is an event too, and then there is no other end.
    """

    async def written() -> AsyncIterator[str]:
        found: dict[int, Result] = {}
        try:
            async with connected(request, searches):
                for piece in first:
                    yield event(piece)
                async for item in _merged(searches, heartbeat):
                    if item is None:
                        yield ALIVE
                        continue
                    index, arrived = item
                    if isinstance(arrived, Result):
                        found[index] = arrived
                    for piece in pieces(index, arrived):
                        yield event(piece)
                for piece in last([found[i] for i in range(len(searches))]):
                    yield event(piece)
                yield DONE
        except ClientGone:
            request.state.facts["gone"] = True
        except (asyncio.CancelledError, GeneratorExit):  # how the framework says the same
            request.state.facts["gone"] = True
            raise
        except Exception as e:
            request.state.facts["error"] = e
            yield event(refusal_of(e).body)
        finally:
            for search in searches:
                search.cancel()

    return StreamingResponse(written(), media_type="text/event-stream", headers=HEADERS)


def event(piece: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(piece, ensure_ascii=False)}\n\n"


async def _merged(searches: Sequence[Searching], heartbeat: float) -> AsyncIterator[tuple[int, Step | Result] | None]:
    """What the searches yield, as it comes; None where nothing came for a while."""
    arrived: asyncio.Queue[tuple[int, Step | Result | BaseException | None]] = asyncio.Queue()

    async def follow(index: int, search: Searching) -> None:
        try:
            async for item in search.steps():
                arrived.put_nowait((index, item))
            arrived.put_nowait((index, None))
        except Exception as e:
            arrived.put_nowait((index, e))

    following = [asyncio.create_task(follow(i, search)) for i, search in enumerate(searches)]
    left = len(following)
    try:
        while left:
            try:
                index, item = await asyncio.wait_for(arrived.get(), heartbeat)
            except TimeoutError:
                yield None
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield index, item
    finally:
        for task in following:
            task.cancel()
