"""Refusals: every error a client sees, in OpenAI's form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.exceptions import HTTPException

from nabla_agents.errors import ConfigurationError, ContextOverflowError, NablaError, PromptError
from nabla_agents.search.search import Cancelled

# How pydantic names the member of a union that it tried, which is no part of the place.
_UNION: Final = re.compile(r"(str|int|float|bool|none|dict|list|constrained-\w+)(\[.*\])?$|[A-Z]|function-")


_LONGEST: Final = 2000  # characters of a message: what a client sent may be quoted in it


class Refusal(Exception):
    """An answer other than 200: status, message, and OpenAI's type, code and parameter."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        known = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return "server_error" if self.status >= 500 else known.get(self.status, "invalid_request_error")

    @property
    def body(self) -> dict[str, Any]:
        param = None if self.param is None else _writable(self.param)
        return {"error": {"message": _writable(self.message), "type": self.type, "param": param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.status == 401 else headers


class ClientGone(Exception):
    """The client left before its answer; nobody is there to be told."""


def invalid(message: str, param: str | None, *, code: str = "invalid_value") -> Refusal:
    """The refusal of a parameter."""
    return Refusal(400, message, code=code, param=param)


def shutting_down() -> Refusal:
    return Refusal(503, "The server is shutting down; ask again.", code="shutting_down", retry_after=5.0)


def _writable(text: str) -> str:
    """The text, or its beginning, without halves of surrogate pairs, which a client may have sent and UTF-8 has not."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    return text.encode("utf-8", "replace").decode("utf-8")


def refusal_of(error: BaseException) -> Refusal:
    """The refusal that an error is for a client. What went wrong within the server is not told, only logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextOverflowError):
        return invalid(str(error), "messages", code="context_length_exceeded")
    if isinstance(error, PromptError):
        return invalid(str(error), "messages", code="invalid_prompt")
    if isinstance(error, ConfigurationError):
        return invalid(str(error), None)
    if isinstance(error, Cancelled):
        return shutting_down()
    kind = type(error).__name__ if isinstance(error, NablaError) else "an internal error"
    return Refusal(500, f"The server had {kind} while it answered. Its log says more.", code="internal_error")


def unrouted(error: HTTPException, method: str, path: str) -> Refusal:
    """Of no such route, a method that it has not, a body that cannot be read."""
    if error.status_code == 404:
        return Refusal(404, f"Unknown request URL: {method} {path}.", code="unknown_url")
    if error.status_code == 405:
        return Refusal(405, f"Not allowed to {method} {path}.", code="method_not_allowed")
    message = "The body cannot be read: expected a JSON object in UTF-8."
    return Refusal(error.status_code, message, code="invalid_json")


def invalid_request(problems: Sequence[Any]) -> Refusal:
    """The first problem that validation found with a body, as OpenAI words it; of a union's, that of the member that
    came furthest.
    """
    first = problems[0]["loc"][:2]
    problem: Mapping[str, Any] = max((p for p in problems if p["loc"][:2] == first), key=lambda p: len(p["loc"]))
    kind, place = str(problem["type"]), [p for p in problem["loc"] if p != "body" and not _UNION.match(str(p))]
    if kind in ("json_invalid", "value_error.jsondecode"):
        reason = problem.get("ctx", {}).get("error", problem["msg"])
        return Refusal(400, f"The body is no JSON: {reason}. Expected a JSON object.", code="invalid_json")
    if kind == "too_many_names":
        name = dotted(place) or None
        return invalid(f"{name or 'The body'} {problem['msg']}.", name, code="unknown_parameter")
    if not place:
        return Refusal(400, "Expected a JSON object as body, with content type application/json.", code="invalid_body")
    name = dotted(place)
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{name}'.", name, code="unknown_parameter")
    if kind == "missing":
        return missing(name)
    if kind == "unsupported":
        return invalid(str(problem["msg"]), name, code="unsupported_parameter")
    what = "type" if kind.endswith(("_type", "_parsing")) else "value"
    return invalid(f"Invalid {what} for '{name}': {problem['msg']}.", name, code=f"invalid_{what}")


def missing(name: str) -> Refusal:
    return invalid(f"Missing required parameter: '{name}'.", name, code="missing_required_parameter")


def dotted(place: Sequence[str | int]) -> str:
    """A place in a body, as OpenAI writes it: `messages[0].content`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
