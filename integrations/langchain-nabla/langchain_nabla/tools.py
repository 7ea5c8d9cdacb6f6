"""NablaSolve: the hard, checkable step of an agent whose main model is elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Literal

from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field

from langchain_nabla._progress import report
from langchain_nabla._settings import CONFIG, PER_CALL, NablaSettings
from nabla_agents import NablaError, Request, Result


class Problem(BaseModel):
    """What the tool is asked."""

    problem: str = Field(description="The whole problem in plain words, with every number and condition it needs.")


class NablaSolve(NablaSettings, BaseTool):
    """A tool that solves one problem with a language model refined by gradients and checked by rewards.

    The agent reads the answer and the verdict on it; the artifact of the tool message has both, and the search step by
    step. A problem that cannot be solved is an answer that says why, so that the agent goes on. Progress goes to
    `astream_events` as the custom event `nabla_step`, and to LangGraph's stream mode `custom`.
    """

    model_config = CONFIG
    per_call: ClassVar[tuple[str, ...]] = tuple(name for name in PER_CALL if name != "n")

    name: str = "nabla_solve"
    description: str = (
        "Solves a self-contained problem that can be checked, such as a calculation, by searching for an answer and "
        "verifying it. Returns the worked answer and whether it was verified."
    )
    args_schema: Any = Problem
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"

    def _run(self, problem: str, run_manager: CallbackManagerForToolRun | None = None) -> tuple[str, dict[str, Any]]:
        try:
            return _solved(self.load().submit(self._request(problem)).drain(report))
        except NablaError as e:
            return _failed(e)

    async def _arun(
        self, problem: str, run_manager: AsyncCallbackManagerForToolRun | None = None
    ) -> tuple[str, dict[str, Any]]:
        try:
            request = await asyncio.to_thread(self._request, problem)
            return _solved(await self.load().submit(request).adrain(report))
        except NablaError as e:
            return _failed(e)

    def _request(self, problem: str) -> Request:
        engine = self.load()
        return self._requests(engine, [engine.prompt(problem)])[0]


def _solved(result: Result) -> tuple[str, dict[str, Any]]:
    summary = result.summary()
    artifact = {"answer": result.text, "nabla": summary, "trace": [step.summary() for step in result.trace]}
    return f"{result.text}\n\n({_verdict(summary)})", artifact


def _verdict(summary: dict[str, Any]) -> str:
    """What is known of the answer, for a reader that did not see the search."""
    verdict = {True: "Verified", False: "Refuted", None: "Not verified"}[summary["verified"]]
    if summary["score"] is None and summary["explanation"]:
        verdict = "Could not be judged"
    return f"{verdict}: {summary['explanation']}" if summary["explanation"] else f"{verdict}."


def _failed(error: NablaError) -> tuple[str, dict[str, Any]]:
    return f"This problem could not be solved: {error}", {"answer": None, "error": str(error), "trace": []}
