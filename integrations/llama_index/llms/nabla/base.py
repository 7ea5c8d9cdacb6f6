"""NablaLLM: the engine as a LlamaIndex language model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_validator
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt

from llama_index.llms.nabla.options import NO_TOOLS, SAMPLING, check_known, merged
from llama_index.llms.nabla.prompts import chat_prompt, fitting, has_template, text_prompt
from llama_index.llms.nabla.responses import (
    chat_event,
    chat_response,
    completed,
    completion_event,
    completion_response,
)
from nabla_agents import Budget, CommittedText, ConfigurationError, Result, Sampling, SharedEngine, loaded

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

    from nabla_agents import Engine, Prompt, Run

ResponseT = TypeVar("ResponseT", ChatResponse, CompletionResponse)

_LOADING = ("revision", "dtype", "device_map", "trust_remote_code")
Given = str | Sequence[ChatMessage]


class NablaLLM(FunctionCallingLLM):
    """A language model whose answers are refined by gradients and rewards.

    `NablaLLM(model="tiny")` loads at first use, once per process for equal loading settings; `NablaLLM(engine=engine)`
    shares an engine, with its reward and strategy. Options may be given per call, by `with_options` or by the scope
    `nabla_options`; the nearer goes first. The same seed gives the same text from each of the eight methods.

    A prompt for `complete` is one user turn of the chat template, if the model has one, and verbatim with
    `formatted=True` or a `completion_to_prompt` of your own. As in every LlamaIndex model, `system_prompt` is added by
    `predict`, query engines and chat engines, not by direct calls of these methods.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str = Field(default="tiny", description="A hub id, a folder, or `tiny` (embedded, with its process reward).")
    revision: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    context_window: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Tokens of prompt and answer together, where that is to be less than the model's own."
    )

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="0 is greedy, None the strategy's own."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = Field(default=256, description="Tokens of the answer at most.")
    stop: list[str] = Field(default=[], description="Strings that end the answer and are not part of it.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    rollouts: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Completions that the search may sample per answer, in place of the budget's number."
    )
    budget: Budget | None = Field(default=None, description="What one answer may cost; None is the engine's own.")
    strategy: Any = Field(
        default=None, exclude=True, description="A strategy object such as BestOfN(n=8); None is the engine's own."
    )

    _engine: Any = PrivateAttr(default=None)

    def __init__(self, *, engine: Engine | None = None, **settings: Any) -> None:
        settings.pop("class_name", None)
        if engine is not None:
            if given := [name for name in _LOADING if settings.get(name)]:
                raise ConfigurationError(
                    f"{', '.join(given)}: loading settings need a model name, got a loaded engine."
                )
            if settings.setdefault("model", engine.model.name) != engine.model.name:
                raise ConfigurationError(
                    f"model is {settings['model']!r}, but the engine's is {engine.model.name!r}; give one of the two."
                )
        super().__init__(**settings)
        self._engine = engine
        known = [self.context_window, engine.model.context_length if engine else None]
        self._check_room(min((n for n in known if n), default=None))

    @classmethod
    def class_name(cls) -> str:
        return "NablaLLM"

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else [] if value is None else value

    def load(self) -> Engine:
        """The engine; loads the weights now where that has not happened yet."""
        if self._engine is not None:
            return self._engine
        return loaded(self.model, **{name: v for name in _LOADING if (v := getattr(self, name))})

    @property
    def metadata(self) -> LLMMetadata:
        """What the model can do; loads it."""
        engine = self.load()
        limit = engine.model.context_length
        window = min(self.context_window or limit, limit)
        self._check_room(window)
        return LLMMetadata(
            context_window=window,
            num_output=self.max_tokens,
            is_chat_model=has_template(engine),
            is_function_calling_model=False,
            model_name=self.model,
        )

    def to_payload(self) -> dict[str, Any]:
        """Settings for events; unlike `metadata`, loads nothing."""
        settings = {name: getattr(self, name) for name in (*SAMPLING, "seed", "rollouts")}
        return {"class_name": self.class_name(), "model_name": self.model, **settings}

    def with_options(self, **options: Any) -> NablaLLM:
        """A copy with other options, validated like fields; it shares the engine and the callback manager.

        Raises:
            TypeError: an unknown option.
        """
        check_known(options)
        settings = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(engine=self._engine, **{**settings, **options})

    # ── the eight methods: decorated once, none through another ───────────────────────────────────────────────────

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        result = self._call(kwargs)._result(messages)
        return chat_response(result.text, result=result)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        result = self._call(kwargs)._result(prompt, formatted)
        return completion_response(result.text, result=result)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._call(kwargs)._stream(chat_response, messages)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return self._call(kwargs)._stream(completion_response, prompt, formatted)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        result = await self._call(kwargs)._aresult(messages)
        return chat_response(result.text, result=result)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        result = await self._call(kwargs)._aresult(prompt, formatted)
        return completion_response(result.text, result=result)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return self._call(kwargs)._astream(chat_response, messages)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        return self._call(kwargs)._astream(completion_response, prompt, formatted)

    # ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────

    def chat_batch(self, conversations: Sequence[Sequence[ChatMessage]], **kwargs: Any) -> list[ChatResponse]:
        """One response per conversation, as `chat` gives it, from one batch. Events are sent when all have ended."""
        results = self._call(kwargs)._batch(conversations)
        return [
            chat_event(self, messages, chat_response(result.text, result=result))
            for messages, result in zip(conversations, results, strict=True)
        ]

    def complete_batch(
        self, prompts: Sequence[str], formatted: bool = False, **kwargs: Any
    ) -> list[CompletionResponse]:
        """One response per prompt, as `complete` gives it, from one batch. Events are sent when all have ended."""
        results = self._call(kwargs)._batch(prompts, formatted)
        return [
            completion_event(self, prompt, completion_response(result.text, result=result))
            for prompt, result in zip(prompts, results, strict=True)
        ]

    # ── the only way to the engine ────────────────────────────────────────────────────────────────────────────────

    def _call(self, kwargs: Mapping[str, Any]) -> NablaLLM:
        """This model with the options of the scope and of one call."""
        options = merged(kwargs)
        return self.with_options(**options) if options else self

    def _run(self, given: Given, formatted: bool = False) -> Run:
        engine = self.load()
        prompt = self._prompt(engine, given, formatted)
        return engine.steps(prompt, seed=self.seed, **self._engine_options(engine))

    def _result(self, given: Given, formatted: bool = False) -> Result:
        return completed(self._run(given, formatted).drain())

    async def _aresult(self, given: Given, formatted: bool = False) -> Result:
        run = await asyncio.to_thread(self._run, given, formatted)
        try:
            return await asyncio.to_thread(run.drain)
        finally:
            run.cancel()

    def _stream(
        self, respond: Callable[..., ResponseT], given: Given, formatted: bool = False
    ) -> Generator[ResponseT, None, None]:
        run, text = self._run(given, formatted), CommittedText()
        for step in run:
            if added := text.added_by(step):
                yield respond(text.text, delta=added)
        yield respond(text.text, delta="", result=completed(run.result))

    async def _astream(
        self, respond: Callable[..., ResponseT], given: Given, formatted: bool = False
    ) -> AsyncGenerator[ResponseT, None]:
        """As `_stream`. The next step is computed when it is asked for, so an abandoned stream costs nothing more."""
        run, text = await asyncio.to_thread(self._run, given, formatted), CommittedText()
        try:
            while (step := await asyncio.to_thread(next, run, None)) is not None:
                if added := text.added_by(step):
                    yield respond(text.text, delta=added)
            yield respond(text.text, delta="", result=run.result)
        finally:
            run.cancel()

    def _batch(self, given: Sequence[Given], formatted: bool = False) -> list[Result]:
        engine = self.load()
        prompts = [self._prompt(engine, one, formatted) for one in given]
        results = engine.generate_batch(prompts, seeds=[self.seed] * len(prompts), **self._engine_options(engine))
        return [completed(result) for result in results]

    def _engine_options(self, engine: Engine) -> dict[str, Any]:
        budget = engine.budget if self.budget is None else self.budget
        return {
            "sampling": Sampling(**{name: getattr(self, name) for name in SAMPLING}),
            "budget": budget if self.rollouts is None else replace(budget, rollouts=self.rollouts),
            "strategy": self.strategy,
        }

    # ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _prompt(self, engine: Engine, given: Given, formatted: bool) -> Prompt:
        """What the language model reads. A rendering function of the user's goes before the chat template."""
        self._check_room(engine.model.context_length)
        if isinstance(given, str):
            own = self.completion_to_prompt
            own = None if own is default_completion_to_prompt else own
            prompt = text_prompt(engine, given, formatted=formatted, completion_to_prompt=own)
        else:
            own = self.messages_to_prompt
            own = None if own is generic_messages_to_prompt and has_template(engine) else own
            prompt = chat_prompt(engine, given, messages_to_prompt=own)
        return fitting(prompt, self.context_window)

    def _check_room(self, window: int | None) -> None:
        if window is not None and self.max_tokens >= window:
            raise ConfigurationError(
                f"max_tokens is {self.max_tokens}, but the context is {window} tokens and must also hold the prompt. "
                "Lower max_tokens."
            )

    # ── tools ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> NoReturn:
        raise NotImplementedError(NO_TOOLS)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        raise NotImplementedError(NO_TOOLS)

    # ── copies ────────────────────────────────────────────────────────────────────────────────────────────────────

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> NablaLLM:
        memo = {} if memo is None else memo
        memo[id(self._engine)] = self._engine
        return super().__deepcopy__(memo)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles settings, not weights; callbacks and the rate limiter stay behind."""
        names = type(self).model_fields.keys() - {"callback_manager", "rate_limiter"}
        engine = None if self._engine is None else SharedEngine(self._engine)
        return _rebuilt, (type(self), engine, {name: getattr(self, name) for name in names})


def _rebuilt(cls: type[NablaLLM], engine: Engine | None, settings: dict[str, Any]) -> NablaLLM:
    return cls(engine=engine, **settings)
