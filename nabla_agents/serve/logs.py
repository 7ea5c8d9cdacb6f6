"""Logs: one JSON object a line, on standard error. Prompts and answers are left out unless they are asked for."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Final

logger: Final = logging.getLogger("nabla_agents.serve")


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
    for name in ("nabla_agents.serve", "uvicorn"):
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
