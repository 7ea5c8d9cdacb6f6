"""sandboxed: the sandbox as what runs the code of LlamaIndex's agents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from nabla_agents import ProgramError

if TYPE_CHECKING:
    from nabla_agents import Execution, Executor, Limits


def sandboxed(
    executor: Executor | None = None, *, limits: Limits | None = None
) -> Callable[[str], Awaitable[dict[str, Any]]]:
    """A function for `CodeActAgent(code_execute_fn=...)`: it runs Python confined, off the event loop.

    Each run begins anew, without the variables of earlier ones and without the agent's tools. It returns `success`,
    `output` (what was printed), `error` and `status`, whatever the code does. Without an executor, the best sandbox of
    this machine is made at first use and shared.

    Raises:
        SandboxError: when code is run: nothing here contains untrusted code.
    """

    async def execute(code: str) -> dict[str, Any]:
        """Runs Python code in a sandbox and returns what it printed."""
        return await asyncio.to_thread(run_code, code, executor, limits)

    return execute


def run_code(code: str, executor: Executor | None = None, limits: Limits | None = None) -> dict[str, Any]:
    """What came of a program; see `sandboxed`."""
    from nabla_agents import Limits, Program

    try:
        program = Program(code)
    except ProgramError as e:
        return {"success": False, "output": "", "error": str(e), "status": "error"}
    return _told((executor or _shared()).run(program, limits or Limits()))


@cache
def _shared() -> Executor:
    from nabla_agents import make_executor

    return make_executor()


def _told(execution: Execution) -> dict[str, Any]:
    error = f"{execution.error_type}: {execution.error_message}" if execution.error_type else execution.detail
    if execution.line is not None and execution.error_type:
        error += f" (line {execution.line})"
    return {
        "success": execution.ok,
        "output": execution.stdout,
        "error": "" if execution.ok else error,
        "status": str(execution.status),
    }
