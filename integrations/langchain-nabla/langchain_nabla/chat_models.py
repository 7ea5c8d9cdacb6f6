"""ChatNabla: the engine as a LangChain chat model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field, model_validator

from langchain_nabla import _structured
from langchain_nabla._call import Call
from langchain_nabla._messages import PROVIDER, MessageWriter, conversation
from langchain_nabla._settings import CONFIG, PER_CALL, NablaSettings
from nabla_agents import ChatAnswer, ChatOptions, Step

if TYPE_CHECKING:
    from nabla_agents import Engine

ToolChoice = str | bool | Mapping[str, Any] | None

_FORM: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
_NO_FIELDS: Final = (*_FORM, "accepted_by", "draft", "draft_cut", "enough")
"""Options that a call has and the model has not."""
_ABLE: Final = ("text_inputs", "text_outputs", "tool_calling", "tool_choice", "structured_output", "reasoning_output")
_UNABLE: Final = (
    *("image_inputs", "image_url_inputs", "pdf_inputs", "audio_inputs", "video_inputs"),
    *("image_tool_message", "pdf_tool_message", "image_outputs", "audio_outputs"),
)


class ChatNabla(NablaSettings, BaseChatModel):
    """A chat model whose answers are refined by gradients and rewards.

    `ChatNabla(model="tiny")` loads at first use, once per process for equal loading settings;
    `ChatNabla(engine=engine)` shares an engine, with its reward and strategy, and `ChatNabla(llm=llm)` that of a
    `NablaLLM`. Generation settings may also be given per call or by `bind`, and so may `model`, `tools`, `tool_choice`,
    `parallel_tool_calls`, `response_format` and `draft`, an answer from elsewhere to start from (`draft_cut=True` where
    a limit cut it); with `enough`, a draft of that score or more is returned as it is. The same seed gives the same
    message on every path.

    Tool calls and structured answers are decoded under a grammar, so that they always are what was asked for as far as
    `max_tokens` reaches; the search refines the reasoning and the text around them, and with `refine_constrained` them
    too. What was spent and found is in `response_metadata["nabla"]`.
    """

    model_config = CONFIG
    per_call: ClassVar[tuple[str, ...]] = (*PER_CALL, "logprobs", "top_logprobs", "refine_constrained", "model")

    streaming: bool = False
    """True makes `invoke` stream too, so that callbacks hear tokens."""
    logprobs: bool = False
    """True puts log π of each token of the answer, in nats, into `response_metadata["logprobs"]`."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    """How many of the likeliest tokens at each place `logprobs` has besides; costs one forward pass per answer."""

    refine_constrained: bool = False
    """True lets the search change tool calls and structured answers too, within their grammar."""

    @model_validator(mode="before")
    @classmethod
    def _of_llm(cls, values: Any) -> Any:
        """`llm=` gives the engine and the settings of a `NablaLLM`."""
        if not isinstance(values, Mapping) or "llm" not in values:
            return values
        return {**values["llm"]._shared(), **{name: value for name, value in values.items() if name != "llm"}}

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> ChatNabla:
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs is {self.top_logprobs}; it needs logprobs=True.")
        return self

    # ── generation ────────────────────────────────────────────────────────────────────────────────────────────────

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, writer = self._call(messages, stop, kwargs)
        return writer.chat_result(*call.results())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """As `_generate`, off the event loop, and in one batch with what else is searched."""
        call, writer = await asyncio.to_thread(self._call, messages, stop, kwargs)
        return writer.chat_result(*await call.aresults())

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from self._call(messages, stop, kwargs)[0].chunks()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call, _ = await asyncio.to_thread(self._call, messages, stop, kwargs)
        async with aclosing(call.achunks()) as chunks:
            async for chunk in chunks:
                yield chunk

    def _call(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[Call[ChatGenerationChunk], MessageWriter]:
        """One call, and what writes its messages; loads the model."""
        llm = self._for_call(kwargs, stop)
        engine = llm._load_for(kwargs.get("accepted_by"))
        tokenizer = engine.model.tokenizer
        form = {name: kwargs[name] for name in _FORM if name in kwargs}
        chat = ChatOptions.read(**form, reasoning=tokenizer.knows_reasoning, dialect=tokenizer.dialect)
        requests = llm._requests(
            engine,
            [engine.prompt(chat.with_schema(conversation(messages)), tools=chat.tools)],
            grammar=chat.grammar and replace(chat.grammar, refine=llm.refine_constrained),
            draft=kwargs.get("draft"),
            draft_cut=kwargs.get("draft_cut", False),
            until=_until(kwargs.get("enough")),
            top_logprobs=llm.top_logprobs,
        )
        writer = MessageWriter(llm, ChatAnswer(requests[0], tokenizer, tools=chat.tools))
        return Call(engine, requests, writer, n=llm.n), writer

    def _load_for(self, cls: type[BaseModel] | None) -> Engine:
        """The engine; one that looks for what a class accepts, where there is one and it judges here."""
        return (cls and self.load_accepting(cls)) or self.load()

    def _for_call(self, kwargs: Mapping[str, Any], stop: list[str] | None) -> ChatNabla:
        """This model with a call's options; another `model` is loaded by its name, without this one's engine."""
        options = {name: value for name, value in kwargs.items() if name not in _NO_FIELDS}
        if options.get("model", self.model) != self.model:
            return type(self)(**{**self._with({}, stop).settings(), **options, "engine": None})
        options.pop("model", None)
        return self._with(options, stop)

    # ── tools and structure ───────────────────────────────────────────────────────────────────────────────────────

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: ToolChoice = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[Any, AIMessage]:
        """This model with tools. `tool_choice` is auto, none, any, required, a tool's name, OpenAI's form or a bool,
        and is enforced; arguments always keep to their schema, strict or not.

        Raises:
            ConfigurationError: a choice of an unknown tool, or among none.
        """
        formatted = [_structured.openai_tool(tool, strict) for tool in tools]
        ChatOptions.read(tools=formatted, tool_choice=tool_choice)
        given = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        return self.bind(tools=formatted, **{k: v for k, v in given.items() if v is not None}, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[Any, Any]:
        """Answers as objects of a schema: a pydantic class (v1 too), a TypedDict, a JSON schema or an OpenAI function.

        Every method decodes under the schema: `json_schema` writes the object as the answer, `function_calling` as a
        call of one tool, `json_mode` as the answer without telling the model of the schema. What validators of a
        pydantic class refuse in an answer, the model is told (`Refine(keep=True)`), or a strategy of your own searches.
        """
        llm, parser = _structured.bound(self, schema, method=method, strict=strict, **kwargs)
        if not include_raw:
            return llm | parser
        assigned = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | assigned.with_fallbacks([failed], exception_key="parsing_error")

    # ── what identifies it ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _llm_type(self) -> str:
        return "chat-nabla"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return self._identity()

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The cache key: the model with the call's options, and what was asked for."""
        asked = {name: kwargs[name] for name in _NO_FIELDS if name in kwargs}
        return json.dumps([self._for_call(kwargs, stop)._identity(), asked], sort_keys=True, default=str)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop or None, **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    def _resolve_model_profile(self) -> Any:
        """What the model can do; its limits where an engine is given."""
        limits = {} if self.engine is None else {"max_input_tokens": self.engine.model.context_length}
        return {**dict.fromkeys(_ABLE, True), **dict.fromkeys(_UNABLE, False), "temperature": True, **limits}

    # ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────

    def get_token_ids(self, text: str) -> list[int]:
        """Ids by the model's own tokenizer; loads the model."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.load().model.tokenizer.encode(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of the rendered conversation, the template's own included; loads the model."""
        offered = [_structured.openai_tool(tool) for tool in tools] if tools else None
        return len(self.load().prompt(conversation(messages), tools=offered).ids)


def _until(enough: float | None) -> Callable[[Step], bool] | None:
    """Whether a completion's score is enough to end the search with it; None where that is not asked."""
    if enough is None:
        return None
    return lambda step: step.score is not None and step.score.value >= enough
