"""What any agent can use: NablaToolSpec (verification, refinement, the sandbox), and `sandboxed` for its own code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from llama_index.core.tools.tool_spec.base import BaseToolSpec

from llama_index.llms.nabla.judging import judged, own_reward
from nabla_agents import NablaError, ProgramError

if TYPE_CHECKING:
    from llama_index.llms.nabla.base import NablaLLM
    from nabla_agents import Executor, Limits


class NablaToolSpec(BaseToolSpec):
    """`NablaToolSpec(llm).to_tool_list()` are the tools. What cannot be done is an answer that says why.

    Without an executor, `run_python` uses the best sandbox of this machine.
    """

    spec_functions = [  # noqa: RUF012 (an instance variable of the base class)
        "verify_answer",
        ("refine_answer", "arefine_answer"),
        "run_python",
    ]

    def __init__(self, llm: NablaLLM, *, executor: Executor | None = None) -> None:
        self.llm, self._executor = llm, executor

    def verify_answer(self, question: str, answer: str) -> dict[str, Any]:
        """Checks an answer to a question. Returns whether it is verified, its score, and an explanation."""
        try:
            reward = own_reward(self.llm.load())
        except NablaError as e:
            return {"verified": None, "score": None, "explanation": str(e)}
        if reward is None:
            return {"verified": None, "score": None, "explanation": "this model has no reward here to judge by"}
        score = judged(reward, question, answer)
        value = float(score.value) if score.judged else None
        verified = None if score.verified is None else bool(score.verified)
        return {"verified": verified, "score": value, "explanation": score.explanation}

    def refine_answer(self, question: str, draft: str) -> dict[str, Any]:
        """Improves a draft answer to a self-contained question. Returns the best answer, and whether it is verified."""
        try:
            response = self.llm.complete(question, **_options(draft))
        except NablaError as e:
            return _failed(draft, e)
        return _refined(response)

    def run_python(self, code: str) -> dict[str, Any]:
        """Runs Python code in a sandbox. Returns what it printed, or its error."""
        try:
            return _run(code, self._executor)
        except NablaError as e:
            return {"success": False, "output": "", "error": str(e), "status": "unavailable"}

    async def arefine_answer(self, question: str, draft: str) -> dict[str, Any]:
        """As `refine_answer`, off the event loop, where LlamaIndex itself runs the others."""
        try:
            response = await self.llm.acomplete(question, **_options(draft))
        except NablaError as e:
            return _failed(draft, e)
        return _refined(response)


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
        return await asyncio.to_thread(_run, code, executor, limits)

    return execute


def _run(code: str, executor: Executor | None = None, limits: Limits | None = None) -> dict[str, Any]:
    """What came of a program; see `sandboxed`."""
    from nabla_agents import Limits, Program

    try:
        program = Program(code)
    except ProgramError as e:
        return {"success": False, "output": "", "error": str(e), "status": "error"}
    execution = (executor or _shared()).run(program, limits or Limits())
    error = f"{execution.error_type}: {execution.error_message}" if execution.error_type else execution.detail
    if execution.line is not None and execution.error_type:
        error += f" (line {execution.line})"
    return {
        "success": execution.ok,
        "output": execution.stdout,
        "error": "" if execution.ok else error,
        "status": str(execution.status),
    }


@cache
def _shared() -> Executor:
    from nabla_agents import make_executor

    return make_executor()


def _options(draft: str) -> dict[str, Any]:
    return {"draft": draft, "refine_policy": "always"}


def _refined(response: Any) -> dict[str, Any]:
    summary = response.raw["nabla"]
    return {"answer": response.text, "verified": summary["verified"], "explanation": summary["explanation"]}


def _failed(draft: str, error: NablaError) -> dict[str, Any]:
    return {"answer": draft, "verified": None, "explanation": f"not refined: {error}"}
