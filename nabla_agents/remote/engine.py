"""RemoteEngine: the face of an `Engine` whose work a server does."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from nabla_agents.backends.http import Failure, HttpClient
from nabla_agents.base_engine import BaseEngine
from nabla_agents.errors import ConfigurationError, ContextOverflowError, NablaError, PromptError, RemoteError
from nabla_agents.registry import STRATEGIES
from nabla_agents.remote.model import RemoteModel
from nabla_agents.remote.received import Card, Cards, Rendered
from nabla_agents.remote.search import RemoteSearch
from nabla_agents.request import PromptLike, Request, read_messages
from nabla_agents.run import Run
from nabla_agents.serialization import PROMPT, message_fields, steps_fields
from nabla_agents.types import Budget, Message, Prompt

if TYPE_CHECKING:
    import httpx

_MOST: Final = 32  # searches that are asked for at a time


@dataclass(frozen=True)
class RemoteStrategy:
    """The server's strategy of this name, with some of its settings changed; None is the one it has for itself."""

    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @staticmethod
    def of(strategy: Any) -> RemoteStrategy:
        """The remote strategy that a local one, such as `BestOfN(n=4)`, stands for.

        Raises:
            ConfigurationError: one of your own; or it has settings that are objects, which are not sent.
        """
        if strategy is None or isinstance(strategy, RemoteStrategy):
            return strategy or RemoteStrategy()
        kind = type(strategy)
        registered = next((name for name, make in STRATEGIES.items() if type(make(1)) is kind), None)
        if registered is None:
            raise ConfigurationError(
                f"The strategy {strategy!r} runs only where its model is: on the server. Have the server offer it "
                "under a name, and ask for RemoteStrategy(name)."
            )
        fields = kind.model_fields
        settings = {name: value for name, value in strategy if value != fields[name].get_default()}
        for name, value in settings.items():
            value = settings[name] = getattr(value, "name", value)  # a direction, by its short name
            if not isinstance(value, str | int | float | None):
                raise ConfigurationError(
                    f"{kind.__name__}.{name} is {value!r}, which is not sent to a server. Have the server offer this "
                    "strategy under a name, and ask for RemoteStrategy(name)."
                )
        return RemoteStrategy(registered, settings)

    @property
    def wire(self) -> Any:
        """As the server takes it."""
        return self.name if not self.settings else {"name": self.name, **self.settings}


class RemoteEngine(BaseEngine):
    """Answers prompts by a server of `nabla serve`, as an `Engine` does; needs neither torch nor weights here.

    Nothing is asked before it is used. A request is tried again after a connection error, 408, 409, 425, 429 and 5xx,
    with random waits that grow; an answer that breaks off raises, and nothing is resumed. Threads may share one.

    Whatever a server sends, or does not, ends as an answer or as an error of ours: nothing is believed before it is
    checked, bodies and lines of more than 64 MiB and steps of more than 256 MiB are refused, and `deadline` ends all.

    Args:
        base_url: of the server, for example `http://127.0.0.1:8000/v1`.
        model: one of those served; the first of them if none is given.
        api_key: where the server wants one.
        reward: the name of a reward that the server offers, in place of its engine's own.
        strategy: a local strategy such as `BestOfN(n=4)`, or `RemoteStrategy(name)`; the server's own if none is given.
        budget: what one prompt may cost unless a call says otherwise; the server's own if none is given.
        timeout: seconds that an attempt may take; of a search, its beginning, and each sign of life after it.
        deadline: seconds that an answer may take in all, from the first attempt to its last word.
        attempts: how often a request is tried in all.

    Raises:
        ConfigurationError: a URL that is none, `attempts` below 1, or no seconds.
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
        deadline: float = 3600.0,
        attempts: int = 5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        url = base_url.rstrip("/").removesuffix("/v1")
        self._http = HttpClient(
            url,
            error=_remote_error,
            api_key=api_key,
            attempts=attempts,
            timeout=timeout,
            deadline=deadline,
            transport=transport,
        )
        self._name, self.reward = model, reward
        self.strategy = RemoteStrategy.of(strategy)
        self._budget = budget
        self._places = threading.Semaphore(_MOST)

    @property
    def base_url(self) -> str:
        return self._http.url

    @cached_property
    def model(self) -> RemoteModel:
        """The served model; asks the server once.

        Raises:
            ConfigurationError: it does not serve this one.
            RemoteError: it cannot be reached, or is no server of `nabla serve`.
        """
        if self._name is not None:
            card = self._http.get(f"/v1/models/{quote(self._name)}")
        else:
            card = Cards.read(self._http.get("/v1/models"), self.base_url).data[0]
        return RemoteModel(self._http, Card.read(card, self.base_url))

    @cached_property
    def budget(self) -> Budget:
        """What one prompt may cost unless a call says otherwise."""
        return self.model.budget if self._budget is None else self._budget

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

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
        if formatted and not isinstance(prompt, str):
            raise PromptError("formatted=True takes the prompt verbatim: expected one string, got messages.")
        body: dict[str, Any] = {"model": self.model.name, **({"tools": list(tools)} if tools else {})}
        messages: tuple[Message, ...] = ()
        if formatted:
            body["text"] = prompt
        else:
            messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(read_messages(prompt))
            body["messages"] = [message_fields(message) for message in messages]
        rendered = Rendered.read(self._http.post(PROMPT, body), self.base_url)
        return Prompt(messages, rendered.text, self.model.tokenizer.checked(rendered.ids))

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
        search = RemoteSearch(self._http, body, request, self.model, places=self._places)
        run = Run(request, search, on_demand=on_demand)
        search.serve(run)
        return run


def _remote_error(failure: Failure) -> NablaError:
    """The error of a request that failed."""
    url, message, status = failure.url, failure.message, failure.status
    if status is None:
        return RemoteError(
            f"{url} cannot be reached, tried {failure.attempts} times: {message}. Is `nabla serve` running there?"
        )
    if status == 200:
        return RemoteError(f"{url} gave {message}; is it a server of `nabla serve`?")
    if failure.may_pass:
        return RemoteError(f"{url} answered {status}, tried {failure.attempts} times: {message}")
    if failure.code == "context_length_exceeded":
        return ContextOverflowError(message)
    if failure.code == "invalid_prompt":
        return PromptError(message)
    if status in (400, 404, 422) and failure.code is not None:
        return ConfigurationError(f"{url}: {message}")
    return RemoteError(f"{url} answered {status}: {message}")
