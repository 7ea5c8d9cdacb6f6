"""NablaTools: `solve` and `verify` of one engine; calls run side by side, tell their progress and can be cancelled."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.types import INVALID_PARAMS, CallToolRequestParams, CallToolResult, TextContent, Tool, ToolAnnotations

from nabla_agents.config import Sampling
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError, NablaError
from nabla_agents.mcp_server.arguments import SolveArguments, VerifyArguments, messages_of, schema_of
from nabla_agents.mcp_server.results import Solution, Verification, solution, told, verification
from nabla_agents.request import Request
from nabla_agents.result import Result
from nabla_agents.rewards import Reward
from nabla_agents.search import Greedy, Strategy
from nabla_agents.types import Budget

_log = logging.getLogger(__name__)


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
        for name, value, least in (
            ("max_rollouts", max_rollouts, 1),
            ("concurrent", concurrent, 1),
            ("waiting", waiting, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigurationError(f"{name} is {value!r}; expected a whole number of at least {least}.")
        self._engines = {None: engine, **{name: engine.with_reward(r) for name, r in (rewards or {}).items()}}
        self._strategies = dict(strategies or {})
        self._max_rollouts, self._concurrent, self._most = max_rollouts, concurrent, concurrent + waiting
        self._calls = 0
        self._turns: anyio.Semaphore | None = None

    def listed(self) -> list[Tool]:
        """`solve` and `verify` with the schemas of what they take and return."""
        rewards, strategies = [r for r in self._engines if r is not None], list(self._strategies)
        hints = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
        return [
            Tool(
                name="solve",
                title="Solve by refinement",
                description="Answers a question, refined by the gradient of an objective and judged by tools and "
                "reward models; returns the answer with its verdict, what was changed, and what it cost.",
                input_schema=schema_of(
                    SolveArguments, reward=rewards, strategy=strategies, rollouts=self._max_rollouts
                ),
                output_schema=Solution.model_json_schema(),
                annotations=hints,
            ),
            Tool(
                name="verify",
                title="Verify an answer",
                description="Judges an answer that was written elsewhere: what tools and reward models say of it, and "
                "where it is wrong. Nothing is sampled.",
                input_schema=schema_of(VerifyArguments, reward=rewards),
                output_schema=Verification.model_json_schema(),
                annotations=hints,
            ),
        ]

    async def call(self, context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        """The result of one call; what was wrong with it is a result that says so, with `isError`."""
        tools = {"solve": self._solve, "verify": self._verify}
        if params.name not in tools:
            raise MCPError(code=INVALID_PARAMS, message=f"No tool {params.name!r}; there are solve and verify.")
        try:
            found = await tools[params.name](context, params.arguments or {})
        except NablaError as e:
            return CallToolResult(content=[TextContent(text=f"{type(e).__name__}: {e}")], is_error=True)
        except Exception:  # what it says may be no business of the caller's
            _log.exception("%s failed", params.name)
            return CallToolResult(content=[TextContent(text=f"{params.name} failed; see the log.")], is_error=True)
        content = found.model_dump(mode="json")
        return CallToolResult(content=[TextContent(text=json.dumps(content))], structured_content=content)

    async def _solve(self, context: ServerRequestContext[Any], given: Mapping[str, Any]) -> Solution:
        asked = SolveArguments(**given)
        engine = self._chosen(asked.reward)
        request = engine.request(
            messages_of(asked.system, asked.question),
            seed=asked.seed,
            strategy=None if asked.strategy is None else self._strategy(asked.strategy),
            budget=self._budget(engine, asked.rollouts),
            sampling=Sampling(max_tokens=asked.max_tokens),
        )
        return solution(await self._followed(context, engine, request))

    async def _verify(self, context: ServerRequestContext[Any], given: Mapping[str, Any]) -> Verification:
        asked = VerifyArguments(**given)
        engine = self._chosen(asked.reward)
        if engine.objective.reward is None:
            known = ", ".join(repr(r) for r in self._engines if r is not None) or "none"
            raise ConfigurationError(f"The server's engine has no reward, so name one: reward=... ; it offers {known}.")
        request = engine.request(
            messages_of(asked.system, asked.question),
            draft=asked.answer,
            strategy=Greedy(),
            budget=Budget(rollouts=1),
        )
        return verification(await self._followed(context, engine, request))

    async def _followed(self, context: ServerRequestContext[Any], engine: Engine, request: Request) -> Result:
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
                    await context.session.report_progress(done, None, told(step))
                return run.result
        finally:
            self._calls -= 1

    def _chosen(self, reward: str | None) -> Engine:
        if reward not in self._engines:
            known = ", ".join(repr(r) for r in self._engines if r is not None) or "none"
            raise ConfigurationError(f"Unknown reward {reward!r}; the server offers {known}.")
        return self._engines[reward]

    def _strategy(self, name: str) -> Strategy:
        if name not in self._strategies:
            known = ", ".join(map(repr, self._strategies)) or "none"
            raise ConfigurationError(f"Unknown strategy {name!r}; the server offers {known}.")
        return self._strategies[name]

    def _budget(self, engine: Engine, rollouts: int | None) -> Budget:
        if rollouts is not None and rollouts > self._max_rollouts:
            raise ConfigurationError(f"rollouts is {rollouts}; this server allows at most {self._max_rollouts}.")
        own = engine.budget.rollouts
        most = rollouts or min(self._max_rollouts, self._max_rollouts if own is None else own)
        return Budget(**{**vars(engine.budget), "rollouts": most})
