"""RemoteEngine: the face of an `Engine` whose work a server does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote

import httpx

from nabla_agents.base_engine import BaseEngine
from nabla_agents.errors import ConfigurationError, PromptError, RemoteError
from nabla_agents.remote.endpoint import Endpoint
from nabla_agents.remote.model import RemoteModel
from nabla_agents.remote.search import RemoteSearch
from nabla_agents.remote.strategy import RemoteStrategy
from nabla_agents.request import PromptLike, Request, read_messages
from nabla_agents.run import Run
from nabla_agents.types import Budget, Message, Prompt
from nabla_agents.wire import PROMPT, message_fields, steps_fields

_MOST: Final = 32  # searches that are asked for at a time


class RemoteEngine(BaseEngine):
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
        self.strategy = RemoteStrategy.of(strategy)
        self._budget = budget
        self._places = threading.Semaphore(_MOST)

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
            messages = tuple(read_messages(prompt))
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

    def submit(self, request: Request, *, on_demand: bool = False) -> Run:
        """Has the server search, as `Engine.submit`; with `on_demand` it begins with the first step asked for, and goes
        on by itself.

        Raises:
            ConfigurationError: what a server does not do. What it refuses itself is raised where steps are awaited.
        """
        if request.top_logprobs:
            raise ConfigurationError(
                f"top_logprobs is {request.top_logprobs}, which a remote engine has not: set it to 0, or ask the "
                "server by an OpenAI client."
            )
        strategy = self.strategy if request.strategy is None else RemoteStrategy.of(request.strategy)
        body = steps_fields(
            request,
            model=self.model.name,
            budget=request.budget or self._budget,
            strategy=None if strategy.name is None else strategy.wire,
            reward=self.reward,
        )
        search = RemoteSearch(self._endpoint, body, request, self.model.tokenizer, places=self._places)
        run = Run(request, search, on_demand=on_demand)
        search.serve(run)
        return run
