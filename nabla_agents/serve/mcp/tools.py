"""NablaTools: `solve` and `verify` of one engine; calls run side by side, tell their progress and can be cancelled."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import anyio
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.types import INVALID_PARAMS, CallToolRequestParams, CallToolResult, TextContent, Tool, ToolAnnotations
from pydantic import Field

from nabla_agents.config import Count, Sampling, Settings
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError, NablaError
from nabla_agents.request import Request
from nabla_agents.result import Result
from nabla_agents.rewards import Reward
from nabla_agents.search import Greedy, Strategy
from nabla_agents.serve.mcp.results import Solution, Verification, in_words
from nabla_agents.types import Budget, Message

_log = logging.getLogger(__name__)
_LONGEST: Final = 200_000  # characters of a question or an answer
_HINTS: Final = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

Text = Annotated[str, Field(max_length=_LONGEST)]


class Arguments(Settings):
    """What both tools are asked."""

    question: Annotated[Text, Field(min_length=1, description="What is to be answered.")]
    system: Text | None = Field(None, description="A system prompt.")
    reward: str | None = Field(None, description="What judges the answer; the server's own if left out.")

    @property
    def messages(self) -> list[Message]:
        return [*([Message("system", self.system)] if self.system else []), Message("user", self.question)]


class SolveArguments(Arguments):
    """What `solve` is asked."""

    strategy: str | None = Field(None, description="How to search; the server's own if left out.")
    rollouts: Count | None = Field(None, description="Completions that may be sampled.")
    max_tokens: Count | None = Field(None, description="Length limit of the answer in tokens.")
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = Field(0, description="The same seed gives the same answer.")


class VerifyArguments(Arguments):
    """What `verify` is asked."""

    question: Annotated[Text, Field(min_length=1, description="The question that the answer is to.")]
    answer: Text = Field(description="The whole answer to be judged.")


class NablaTools:
    """The tools of one engine. Calls run side by side, their operations joined in batches; `concurrent` at a time,
    `waiting` more wait, and further ones are told to come later. A cancelled call stops within one decode
    step.

    Args:
        rewards: what a call may choose as `reward`, by name; the engine's own judges if it chooses none.
        strategies: what a call may choose as `strategy`, by name; the engine's own searches if it chooses none.
        max_rollouts: the most that a call may ask for.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        rewards: Mapping[str, Reward] | None = None,
        strategies: Mapping[str, Strategy] | None = None,
        max_rollouts: int = 64,
        concurrent: int = 8,
        waiting: int = 64,
    ) -> None:
        limits = {"max_rollouts": (max_rollouts, 1), "concurrent": (concurrent, 1), "waiting": (waiting, 0)}
        for name, (value, least) in limits.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigurationError(f"{name} is {value!r}; expected a whole number of at least {least}.")
        self._engine = engine
        self._engines = {name: engine.with_reward(reward) for name, reward in (rewards or {}).items()}
        self._strategies = dict(strategies or {})
        self._max_rollouts, self._concurrent, self._most = max_rollouts, concurrent, concurrent + waiting
        self._calls = 0
        self._turns: anyio.Semaphore | None = None

    def listed(self) -> list[Tool]:
        """`solve` and `verify` with the schemas of what they take and return."""
        offered = {"reward": list(self._engines), "strategy": list(self._strategies)}
        return [
            Tool(
                name="solve",
                title="Solve by refinement",
                description="Answers a question, refined by the gradient of an objective and judged by tools and "
                "reward models; returns the answer with its verdict, what was changed, and what it cost.",
                input_schema=_schema(SolveArguments, offered, self._max_rollouts),
                output_schema=Solution.model_json_schema(),
                annotations=_HINTS,
            ),
            Tool(
                name="verify",
                title="Verify an answer",
                description="Judges an answer that was written elsewhere: what tools and reward models say of it, and "
                "where it is wrong. Nothing is sampled.",
                input_schema=_schema(VerifyArguments, offered, self._max_rollouts),
                output_schema=Verification.model_json_schema(),
                annotations=_HINTS,
            ),
        ]

    async def call(self, context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        """The result of one call; what was wrong with it is a result that says so, with `isError`."""
        tools = {"solve": self._solve, "verify": self._verify}
        if params.name not in tools:
            raise MCPError(code=INVALID_PARAMS, message=f"No tool {params.name!r}; there are solve and verify.")
        try:
            answer = await tools[params.name](context, params.arguments or {})
        except NablaError as e:
            return CallToolResult(content=[TextContent(text=f"{type(e).__name__}: {e}")], is_error=True)
        except Exception:  # what it says may be no business of the caller's
            _log.exception("%s failed", params.name)
            return CallToolResult(content=[TextContent(text=f"{params.name} failed; see the log.")], is_error=True)
        content = answer.model_dump(mode="json")
        return CallToolResult(content=[TextContent(text=json.dumps(content))], structured_content=content)

    async def _solve(self, context: ServerRequestContext[Any], arguments: Mapping[str, Any]) -> Solution:
        wanted = SolveArguments(**arguments)
        engine = self._judged_by(wanted.reward)
        request = engine.request(
            wanted.messages,
            seed=wanted.seed,
            strategy=None if wanted.strategy is None else _chosen(self._strategies, wanted.strategy, "strategy"),
            budget=self._budget(engine, wanted.rollouts),
            sampling=Sampling(max_tokens=wanted.max_tokens),
        )
        return Solution.of(await self._searched(context, engine, request))

    async def _verify(self, context: ServerRequestContext[Any], arguments: Mapping[str, Any]) -> Verification:
        wanted = VerifyArguments(**arguments)
        engine = self._judged_by(wanted.reward)
        if engine.objective.reward is None:
            known = _listed(self._engines)
            raise ConfigurationError(f"The server's engine has no reward, so name one: reward=... ; it offers {known}.")
        once: dict[str, Any] = {"strategy": Greedy(), "budget": Budget(rollouts=1)}
        request = engine.request(wanted.messages, draft=wanted.answer, **once)
        return Verification.of(await self._searched(context, engine, request))

    async def _searched(self, context: ServerRequestContext[Any], engine: Engine, request: Request) -> Result:
        """The result of a search, whose steps are told as progress; cancelled with the call."""
        if self._calls >= self._most:
            raise NablaError(f"The server is busy with {self._calls} calls; ask again later.")
        self._turns = self._turns or anyio.Semaphore(self._concurrent)
        self._calls += 1
        try:
            async with self._turns, engine.submit(request) as run:
                done = 0
                async for step in run.arounds():
                    done += 1
                    await context.session.report_progress(done, None, in_words(step))
                return run.result
        finally:
            self._calls -= 1

    def _judged_by(self, reward: str | None) -> Engine:
        return self._engine if reward is None else _chosen(self._engines, reward, "reward")

    def _budget(self, engine: Engine, rollouts: int | None) -> Budget:
        if rollouts is not None and rollouts > self._max_rollouts:
            raise ConfigurationError(f"rollouts is {rollouts}; this server allows at most {self._max_rollouts}.")
        own = engine.budget.rollouts
        most = rollouts or min(self._max_rollouts, self._max_rollouts if own is None else own)
        return Budget(**{**vars(engine.budget), "rollouts": most})


def _schema(arguments: type[Arguments], offered: Mapping[str, Sequence[str]], max_rollouts: int) -> dict[str, Any]:
    """The arguments' schema with the names that this server knows, and its cap."""
    schema = arguments.model_json_schema()
    properties = schema["properties"]
    for name in properties.keys() & offered.keys():
        if offered[name]:
            properties[name]["anyOf"] = [{"type": "string", "enum": offered[name]}, {"type": "null"}]
        else:
            del properties[name]
    if "rollouts" in properties:
        properties["rollouts"]["anyOf"][0]["maximum"] = max_rollouts
    return schema


def _chosen(offered: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in offered:
        raise ConfigurationError(f"Unknown {kind} {name!r}; the server offers {_listed(offered)}.")
    return offered[name]


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, names)) or "none"
