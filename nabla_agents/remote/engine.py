"""RemoteEngine: the face of an `Engine` whose work a server does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any
from urllib.parse import quote

import httpx

from nabla_agents.config import Sampling
from nabla_agents.errors import ConfigurationError, PromptError, RemoteError
from nabla_agents.remote.endpoint import Endpoint
from nabla_agents.remote.model import RemoteModel
from nabla_agents.remote.run import RemoteRun, RemoteSearch
from nabla_agents.remote.strategy import RemoteStrategy
from nabla_agents.result import Result
from nabla_agents.types import Budget, Message, Prompt
from nabla_agents.wire import PROMPT, message_fields, sampling_fields

PromptLike = str | Prompt | Sequence[Message] | Sequence[Mapping[str, Any]]


class RemoteEngine:
    """Answers prompts by a server of `nabla serve`, as an `Engine` does; needs neither torch nor weights here.

    Nothing is asked before it is used. A request is tried again after a connection error, 429 and 5xx, with random
    waits that grow; an answer that breaks off raises, and nothing is resumed. Threads may share one.

    Args:
        base_url: of the server, for example `http://127.0.0.1:8000/v1`.
        model: one of those served; the first of them if none is given.
        api_key: where the server wants one.
        reward: the name of a reward that the server offers, in place of its engine's own.
        strategy: a local strategy such as `BestOfN(n=4)`, or `RemoteStrategy(name)`; the server's own if none is given.
        budget: what one prompt may cost unless a call says otherwise; the server's own if none is given.
        timeout: seconds that a sign of life may take.
        attempts: how often a request is tried in all.

    Raises:
        ConfigurationError: a URL that is none, or `attempts` below 1.
    """

    takes_turns = False
    has_alternatives = False  # the server sends no other tokens than those it chose

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        reward: str | None = None,
        strategy: Any = None,
        budget: Budget | None = None,
        timeout: float = 60.0,
        attempts: int = 5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if attempts < 1:
            raise ConfigurationError(f"attempts is {attempts!r}; expected a whole number of at least 1.")
        self._endpoint = Endpoint(base_url, api_key=api_key, timeout=timeout, attempts=attempts, transport=transport)
        self._name, self.reward = model, reward
        self.strategy: Any = self.strategy_of(strategy)
        self._budget = budget

    @property
    def base_url(self) -> str:
        return self._endpoint.base_url

    @cached_property
    def model(self) -> RemoteModel:
        """The served model; asks the server once.

        Raises:
            ConfigurationError: it does not serve this one.
            RemoteError: it cannot be reached, or is no server of `nabla serve`.
        """
        if self._name is not None:
            card = self._endpoint.get(f"/v1/models/{quote(self._name)}")
        else:
            [card, *_] = self._endpoint.get("/v1/models").get("data") or [{}]
        try:
            return RemoteModel(self._endpoint, card)
        except (KeyError, TypeError) as e:
            raise RemoteError(f"{self.base_url} is no server of `nabla serve`: it knows no {e}.") from e

    @cached_property
    def budget(self) -> Budget:
        """What one prompt may cost unless a call says otherwise."""
        return Budget(**self.model.budget) if self._budget is None else self._budget

    def strategy_of(self, strategy: Any) -> Any:
        """The strategy as this engine runs it; without one, its own."""
        return getattr(self, "strategy", RemoteStrategy()) if strategy is None else RemoteStrategy.of(strategy)

    def close(self) -> None:
        """Closes the connections."""
        self._endpoint.close()

    def prompt(
        self, prompt: PromptLike, *, tools: Sequence[dict[str, Any]] | None = None, formatted: bool = False
    ) -> Prompt:
        """The prompt as the language model reads it, rendered by the server.

        Raises:
            PromptError, ContextOverflowError: as `Engine.prompt`.
        """
        if isinstance(prompt, Prompt):
            if tools or formatted:
                raise PromptError("A Prompt is rendered already: give tools and formatted to prompt instead.")
            return prompt
        if isinstance(prompt, str):
            messages = () if formatted else (Message("user", prompt),)
        else:
            messages = tuple(m if isinstance(m, Message) else _message(m) for m in prompt)
        body: dict[str, Any] = {"model": self.model.name}
        if formatted:
            if not isinstance(prompt, str):
                raise PromptError("formatted=True takes the prompt verbatim: expected one string, got messages.")
            body["text"] = prompt
        else:
            body["messages"] = [message_fields(message) for message in messages]
        if tools:
            body["tools"] = list(tools)
        found = self._endpoint.post(PROMPT, body)
        return Prompt(messages, found["text"], tuple(found["ids"]))

    def steps(
        self,
        prompt: PromptLike,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        strategy: Any = None,
        tools: Sequence[dict[str, Any]] | None = None,
        formatted: bool = False,
        draft: str | None = None,
    ) -> RemoteRun:
        """An iterator over the search's steps, as `Engine.steps`; the server begins with the first one.

        Raises:
            PromptError, ContextOverflowError, ConfigurationError, RemoteError: what the server refuses to render now,
                what it refuses to search with the first step.
        """
        rendered = self.prompt(prompt, tools=tools, formatted=formatted)
        sampling = Sampling() if sampling is None else sampling
        limits = budget or self._budget
        wish: dict[str, Any] = {"reward": self.reward, "draft": draft}
        if limits is not None:
            wish["budget"] = {name: value for name, value in vars(limits).items() if value is not None}
        body = {
            "model": self.model.name,
            "prompt": {"messages": [message_fields(m) for m in rendered.messages], "text": rendered.text},
            "seed": seed,
            "sampling": sampling_fields(sampling),
            "nabla": {name: value for name, value in wish.items() if value is not None},
        }
        search = RemoteSearch(
            self._endpoint,
            body,
            prompt=rendered,
            sampling=sampling,
            budget=limits,
            seed=seed,
            tokenizer=self.model.tokenizer,
        )
        return RemoteRun(search, self.strategy_of(strategy), self.model.tokenizer)

    def generate(self, prompt: PromptLike, **options: Any) -> Result:
        """The best completion found within the budget; options as in `steps`. Ctrl-C returns the best so far."""
        run = self.steps(prompt, **options)
        try:
            return run.drain()
        except KeyboardInterrupt:
            run.interrupt()
        return run.result

    def generate_batch(
        self,
        prompts: Sequence[PromptLike],
        *,
        budget: Budget | None = None,
        seeds: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        strategy: Any = None,
        tools: Sequence[dict[str, Any]] | None = None,
        formatted: bool = False,
        max_batch: int = 32,
    ) -> list[Result]:
        """One result per prompt, in order; the server joins what `max_batch` requests at a time ask for.

        Raises:
            ConfigurationError: not one seed per prompt. The first error of a prompt is raised when all have ended.
        """
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ConfigurationError(f"Got {len(seeds)} seeds for {len(prompts)} prompts; expected one each.")
        options = {"budget": budget, "sampling": sampling, "strategy": strategy, "tools": tools, "formatted": formatted}
        runs = [self.steps(p, seed=seed, **options) for p, seed in zip(prompts, seeds, strict=True)]
        drains: list[Callable[[], Result]] = [run.drain for run in runs]
        if len(drains) <= 1:
            return [drain() for drain in drains]
        with ThreadPoolExecutor(max_batch, "nabla-remote") as threads:
            try:
                waiting = [threads.submit(drain) for drain in drains]
                return [done.result() for done in waiting]
            except BaseException:
                for run in runs:
                    run.cancel()
                raise


def _message(given: Any) -> Message:
    if not isinstance(given, Mapping) or "role" not in given:
        raise PromptError(f"A message is {given!r}; expected Message(role, content) or a mapping with both.")
    extra = {k: v for k, v in given.items() if k not in ("role", "content")}
    content = given.get("content")
    return Message(given["role"], "" if content is None else content, extra)
