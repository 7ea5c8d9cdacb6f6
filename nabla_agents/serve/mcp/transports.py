"""The server over stdio, for one client, and over streamable HTTP, for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import anyio
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import ListToolsResult, PaginatedRequestParams
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

import nabla_agents
from nabla_agents.errors import ConfigurationError
from nabla_agents.serve.keys import ApiKey, digest, find
from nabla_agents.serve.mcp.tools import NablaTools

_LOCAL: Final = ("127.0.0.1", "localhost", "::1")
_SHORTEST_KEY: Final = 16


def mcp_server(tools: NablaTools) -> Server[Any]:
    """An MCP server of these tools, for any transport of the SDK: `run(...)`, `streamable_http_app(...)`."""

    async def on_list_tools(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=tools.listed())

    return Server(
        "nabla-agents",
        version=nabla_agents.__version__,
        instructions="solve answers a question with a search that is steered by gradients and judged by tools; verify "
        "judges an answer. Both report progress and can be cancelled.",
        on_list_tools=on_list_tools,
        on_call_tool=tools.call,
    )


def run_stdio(tools: NablaTools) -> None:
    """Serves one client on standard input and output until it closes them."""

    async def serve() -> None:
        server = mcp_server(tools)
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    anyio.run(serve)


def http_app(tools: NablaTools, *, host: str = "127.0.0.1", keys: Sequence[str] = ()) -> ASGIApp:
    """The ASGI application of streamable HTTP, at `/mcp`. On loopback requests from other origins are refused;
    elsewhere every request needs one of the `keys` as its bearer token.

    Raises:
        ConfigurationError: another host than loopback, and no keys; or a short key.
    """
    check_keys(host, keys)
    app = mcp_server(tools).streamable_http_app(host=host)
    return _WithKeys(app, keys) if keys else app


def check_keys(host: str, keys: Sequence[str]) -> None:
    """Raises ConfigurationError where anyone could call the server, or a key can be guessed."""
    if host not in _LOCAL and not keys:
        raise ConfigurationError(
            f"host {host} can be reached from other machines, which needs a key: set NABLA_MCP_KEY to at least 16 "
            "characters, or listen on 127.0.0.1."
        )
    if any(len(key) < _SHORTEST_KEY for key in keys):
        raise ConfigurationError("A key has less than 16 characters; expected a long random one.")


def run_http(tools: NablaTools, *, host: str = "127.0.0.1", port: int = 8001, keys: Sequence[str] = ()) -> None:
    """Serves any number of clients until it is stopped; see `http_app`."""
    import uvicorn

    app = http_app(tools, host=host, keys=keys)
    uvicorn.run(app, host=host, port=port, log_level="warning", ws="none", timeout_graceful_shutdown=10)


class _WithKeys:
    """An application that answers only requests with a known bearer token."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [ApiKey(id="mcp", sha256=digest(key)) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or find(self._keys, token) is None:
                refusal = JSONResponse({"error": "a key is needed: Authorization: Bearer ..."}, 401)
                refusal.headers["WWW-Authenticate"] = "Bearer"
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
