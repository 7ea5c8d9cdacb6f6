"""ChatNabla: the engine as a LangChain chat model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import model_validator

from langchain_nabla import _answers, _convert, _structured
from langchain_nabla._engine import Cancellable, UntilEnough, asteps, on_worker, steps, turn
from langchain_nabla._messages import Replies, conversation
from langchain_nabla._progress import report
from langchain_nabla._settings import CONFIG, PER_CALL, EngineSettings
from langchain_nabla._tools import Constraints, ToolChoice, chosen_tool, constraints, told
from nabla_agents import CommittedText, Result

if TYPE_CHECKING:
    from nabla_agents import Engine, Prompt, Run

_REQUEST = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "draft", "enough")


class ChatNabla(EngineSettings, BaseChatModel):
    """A chat model whose answers are refined by gradients and rewards.

    `ChatNabla(model="tiny")` loads at first use, once per process for equal loading settings;
    `ChatNabla(engine=engine)` shares an engine, with its reward and strategy, and `ChatNabla(llm=llm)` that of a
    `NablaLLM`. Generation settings may also be given per call or by `bind`, and so may `model`, `tools`, `tool_choice`,
    `parallel_tool_calls`, `response_format` and `draft`, an answer from elsewhere to start from; with `enough`, a draft
    of that score or more is returned as it is. The same seed gives the same message on every path.

    Tool calls and structured answers are decoded under a grammar, so that they always are what was asked for as far as
    `max_tokens` reaches; the search refines the reasoning and the text around them. What was spent and found is in
    `response_metadata["nabla"]`.
    """

    model_config = CONFIG
    per_call: ClassVar[tuple[str, ...]] = (*PER_CALL, "logprobs", "model")

    streaming: bool = False
    """True makes `invoke` stream too, so that callbacks hear tokens."""
    logprobs: bool = False
    """True puts log π of each token of the answer, in nats, into `response_metadata["logprobs"]`."""

    @model_validator(mode="before")
    @classmethod
    def _of_llm(cls, values: Any) -> Any:
        """`llm=` gives the engine and the settings of a `NablaLLM`."""
        if not isinstance(values, Mapping) or "llm" not in values:
            return values
        rest = {name: value for name, value in values.items() if name != "llm"}
        shared = {name: getattr(values["llm"], name) for name in EngineSettings.model_fields if name != "name"}
        return {**shared, **rest}

    # ── generation ────────────────────────────────────────────────────────────────────────────────────────────────

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = _Request(self, messages, stop, kwargs)
        if request.call.n > 1:
            results = request.batch(request.call.strategy)
            return request.chat_result([_convert.check_not_interrupted(result) for result in results])
        run = request.run()
        for step in steps(request.engine, run):
            report(step)
        return request.chat_result([_convert.check_not_interrupted(run.result)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = await asyncio.to_thread(_Request, self, messages, stop, kwargs)
        if request.call.n > 1:
            return request.chat_result(await request.abatch())
        run = await on_worker(request.engine, request.run)
        async with aclosing(asteps(request.engine, run, report)) as computed:
            async for _ in computed:
                pass
        return request.chat_result([run.result])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = _Request(self, messages, stop, kwargs)
        if request.call.n > 1:  # only whole answers can be compared
            best = request.batch(request.call.strategy)[0]
            yield request.last_chunk(_convert.check_not_interrupted(best))
            return
        run, text = request.run(), CommittedText()
        for step in steps(request.engine, run):
            report(step)
            if step.done:
                yield request.last_chunk(_convert.check_not_interrupted(run.result))
            elif text.added_by(step) and (chunk := request.chunk(text.text)) is not None:
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        """As `_stream`. The next step is computed when it is asked for, so an abandoned stream costs nothing more."""
        request = await asyncio.to_thread(_Request, self, messages, stop, kwargs)
        if request.call.n > 1:
            yield request.last_chunk((await request.abatch())[0])
            return
        run, text = await on_worker(request.engine, request.run), CommittedText()
        async with aclosing(asteps(request.engine, run, report)) as computed:
            async for step in computed:
                if step.done:
                    yield request.last_chunk(run.result)
                elif text.added_by(step) and (chunk := request.chunk(text.text)) is not None:
                    yield chunk

    def _for_call(self, kwargs: Mapping[str, Any], stop: list[str] | None) -> ChatNabla:
        """This model with a call's options; another `model` is loaded by its name, without this one's engine."""
        options = {name: value for name, value in kwargs.items() if name not in _REQUEST}
        if options.get("model", self.model) != self.model:
            options["engine"] = None
            return type(self)(**{**self._fields(), **self._with({}, stop)._fields(), **options})
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
        formatted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        chosen_tool(tool_choice, formatted)
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
        call of one tool, `json_mode` as the answer without telling the model of the schema.
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
        asked = {name: kwargs[name] for name in _REQUEST if name in kwargs}
        return json.dumps([self._for_call(kwargs, stop)._identity(), asked], sort_keys=True, default=str)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop or None, **kwargs)
        params["ls_provider"] = "nabla"
        return params

    def _resolve_model_profile(self) -> Any:
        """What the model can do; its limits where it is loaded."""
        return _answers.profile(self.engine)

    # ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────

    def get_token_ids(self, text: str) -> list[int]:
        """Ids by the model's own tokenizer; loads the model."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.load().model.tokenizer.encode(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of the rendered conversation, the template's own included; loads the model."""
        offered = [convert_to_openai_tool(tool) for tool in tools] if tools else None
        return len(self.load().prompt(conversation(messages), tools=offered).ids)


class _Request:
    """One call: its model with the call's options, its prompt, and how its results become messages."""

    def __init__(
        self, model: ChatNabla, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> None:
        self.call = model._for_call(kwargs, stop)
        self.engine: Engine = self.call.load()
        thinks = "</think>" in str(self.engine.model.tokenizer.hf.chat_template)
        self._asked: Constraints = constraints(
            kwargs.get("tools"),
            kwargs.get("tool_choice"),
            kwargs.get("parallel_tool_calls"),
            kwargs.get("response_format"),
            reasoning=thinks,
        )
        told_of = None if (kwargs.get("response_format") or {}).get("type") == "json_object" else self._asked.schema
        turns = told(conversation(messages), told_of)
        self.prompt: Prompt = self.engine.prompt(turns, tools=self._asked.tools)
        self._draft, self._enough = kwargs.get("draft"), kwargs.get("enough")
        self._replies = Replies(self.prompt.text, self.call.seed, tools=bool(self._asked.tools))

    def run(self) -> Run:
        options = self.call._engine_options(self.engine, self._asked.grammar)
        if self._enough is not None:
            options["strategy"] = UntilEnough(options["strategy"] or self.engine.strategy, self._enough)
        return self.engine.steps(self.prompt, seed=self.call.seed, draft=self._draft, **options)

    def batch(self, strategy: Any) -> list[Result]:
        """`n` results, best first, from one batch."""
        options = self.call._engine_options(self.engine, self._asked.grammar)
        seeds = [self.call.seed + i for i in range(self.call.n)]
        with turn(self.engine):
            results = self.engine.generate_batch(
                [self.prompt] * self.call.n, seeds=seeds, **{**options, "strategy": strategy}
            )
        return _convert.best_first(results)

    async def abatch(self) -> list[Result]:
        strategy = Cancellable(self.call.strategy or self.engine.strategy)
        try:
            return await on_worker(self.engine, self.batch, strategy)
        finally:
            strategy.cancel()

    # ── messages ──────────────────────────────────────────────────────────────────────────────────────────────────

    def chat_result(self, results: Sequence[Result]) -> ChatResult:
        generations = [_answers.generation(self._replies.message(r.text), r, self._details(r)) for r in results]
        return _answers.chat_result(generations, results, self.call.model)

    def chunk(self, text: str) -> ChatGenerationChunk | None:
        """What the committed text adds to the message."""
        added = self._replies.grown(text)
        return None if added is None else ChatGenerationChunk(message=added)

    def last_chunk(self, result: Result) -> ChatGenerationChunk:
        return _answers.last_chunk(self._replies.ended(result.text), result, self._details(result))

    def _details(self, result: Result) -> _answers.Details:
        reply = self._replies.read(result.text)
        encode = self.engine.model.tokenizer.encode
        return _answers.Details(
            model=self.call.model,
            called=any(call.error is None for call in reply.tool_calls),
            reasoning_tokens=min(len(encode(reply.reasoning)), len(result.token_ids)) if reply.reasoning else 0,
            logprobs=self._logprobs(result) if self.call.logprobs else None,
        )

    def _logprobs(self, result: Result) -> dict[str, Any]:
        shown = self.engine.model.tokenizer.token_text
        pairs = zip(result.token_ids, result.log_probs, strict=False)
        return {"content": [{"token": shown(token), "logprob": value} for token, value in pairs]}
