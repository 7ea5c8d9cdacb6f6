"""Request: what is asked of an engine for one answer. It is checked here, once, and travels as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nabla_agents.config import Sampling
from nabla_agents.errors import ConfigurationError, PromptError
from nabla_agents.types import Budget, Message, Prompt, Step

PromptLike = str | Prompt | Sequence[Message] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer that is wanted. `Engine.request` makes one from a question; `Engine.submit` takes it.

    Args:
        prompt: what the language model reads, by `Engine.prompt`.
        budget: what the answer may cost; None is the engine's own.
        strategy: an object with `steps(search)`, `select(pool)` and `rule`, such as `BestOfN(n=4)`; None is the
            engine's own.
        seed: a 64-bit integer. The same seed gives the same text, in any order, on any thread and in any batch: in
            float32, whose roundings hardly ever decide a token. In bfloat16 and float16 they may, where rows are
            computed beside others.
        draft: an answer from elsewhere, which the search starts from in place of its own first completion.
        draft_cut: whether a limit cut the draft, not its writer ended it: then it is never verified, and any whole
            answer is better.
        until: is asked of each accepted step whether its text is good enough; if so, the search ends with it.
        top_logprobs: how many of the likeliest tokens the result has for each of its places; one forward pass more.

    Raises:
        ConfigurationError, PromptError: a field that is not what it should be.
    """

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    budget: Budget | None = None
    strategy: Any = None
    seed: int = 0
    draft: str | None = None
    draft_cut: bool = False
    until: Callable[[Step], bool] | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, Prompt):
            raise PromptError(f"The prompt of a request is {self.prompt!r}; expected what Engine.prompt makes.")
        if not isinstance(self.sampling, Sampling):
            raise ConfigurationError(f"sampling is {self.sampling!r}; expected for example Sampling(temperature=0.7).")
        if self.budget is not None:
            check_budget(self.budget)
        if not _whole(self.seed) or not -(1 << 63) <= self.seed < 1 << 64:
            raise ConfigurationError(f"seed is {self.seed!r}; expected a 64-bit integer.")
        if self.draft is not None and not isinstance(self.draft, str):
            raise PromptError(f"draft is {self.draft!r}; expected the text of an answer.")
        if not _whole(self.top_logprobs) or self.top_logprobs < 0:
            raise ConfigurationError(f"top_logprobs is {self.top_logprobs!r}; expected a whole number of at least 0.")


def check_budget(budget: object) -> None:
    """Raises ConfigurationError for what is no budget."""
    if not isinstance(budget, Budget):
        raise ConfigurationError(f"budget is {budget!r}; expected for example Budget(rollouts=8).")


def check_strategy(strategy: Any) -> None:
    """Raises ConfigurationError for what is no strategy."""
    if isinstance(strategy, type) or not all(hasattr(strategy, name) for name in ("steps", "select", "rule")):
        raise ConfigurationError(
            f"strategy is {strategy!r}; expected a strategy object such as Nabla() or BestOfN(n=8)."
        )
    if inspect.isgeneratorfunction(strategy.steps):
        raise ConfigurationError(
            f"strategy is {strategy!r}, whose steps are a plain generator; expected `async def steps(self, search)`, "
            "which awaits the search's operations: `await search.roll(...)`."
        )


def read_messages(conversation: object) -> list[Message]:
    """A conversation's messages; each may be a mapping with `role` and `content`.

    Raises:
        PromptError: it is none.
    """
    if isinstance(conversation, Message | Mapping | bytes) or not isinstance(conversation, Sequence):
        raise PromptError(f"The prompt is {conversation!r}; expected a string or a list of messages.")
    return [m if isinstance(m, Message) else _message(m) for m in conversation]


def _message(message: Any) -> Message:
    if not isinstance(message, Mapping) or "role" not in message:
        raise PromptError(f"A message is {message!r}; expected Message(role, content) or a mapping with both.")
    extra = {k: v for k, v in message.items() if k not in ("role", "content")}
    content = message.get("content")
    return Message(message["role"], "" if content is None else content, extra)  # tool calls have no content


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
