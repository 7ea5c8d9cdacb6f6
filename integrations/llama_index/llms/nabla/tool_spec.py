"""NablaToolSpec: verification, refinement and the sandbox as tools of any agent, hosted models included."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from llama_index.core.tools.tool_spec.base import BaseToolSpec

from llama_index.llms.nabla.evaluation import judged
from llama_index.llms.nabla.judging import own_reward
from llama_index.llms.nabla.sandbox import run_code
from nabla_agents import NablaError

if TYPE_CHECKING:
    from llama_index.llms.nabla.base import NablaLLM
    from nabla_agents import Executor


class NablaToolSpec(BaseToolSpec):
    """`NablaToolSpec(llm).to_tool_list()` are the tools. What cannot be done is an answer that says why.

    Without an executor, `run_python` uses the best sandbox of this machine.
    """

    spec_functions = [  # noqa: RUF012 (an instance variable of the base class)
        ("verify_answer", "averify_answer"),
        ("refine_answer", "arefine_answer"),
        ("run_python", "arun_python"),
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
            return run_code(code, self._executor)
        except NablaError as e:
            return {"success": False, "output": "", "error": str(e), "status": "unavailable"}

    async def averify_answer(self, question: str, answer: str) -> dict[str, Any]:
        """As `verify_answer`, off the event loop."""
        return await asyncio.to_thread(self.verify_answer, question, answer)

    async def arefine_answer(self, question: str, draft: str) -> dict[str, Any]:
        """As `refine_answer`, off the event loop."""
        try:
            response = await self.llm.acomplete(question, **_options(draft))
        except NablaError as e:
            return _failed(draft, e)
        return _refined(response)

    async def arun_python(self, code: str) -> dict[str, Any]:
        """As `run_python`, off the event loop."""
        return await asyncio.to_thread(self.run_python, code)


def _options(draft: str) -> dict[str, Any]:
    return {"draft": draft, "refine_policy": "always"}


def _refined(response: Any) -> dict[str, Any]:
    found = response.raw["nabla"]
    return {"answer": response.text, "verified": found["verified"], "explanation": found["explanation"]}


def _failed(draft: str, error: NablaError) -> dict[str, Any]:
    return {"answer": draft, "verified": None, "explanation": f"not refined: {error}"}
