"""NablaLLM: the engine as a LangChain text-completion model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from typing_extensions import override

from langchain_nabla._call import Call, summed
from langchain_nabla._settings import CONFIG, PER_CALL, NablaSettings
from nabla_agents import NablaError, Result, Step, StreamedText, Usage

if TYPE_CHECKING:
    from langchain_nabla.chat_models import ChatNabla

_FRAMEWORK = ("tags", "metadata", "run_name", "run_id")

# The model whose call is under way, and the same model with the call's own options: core asks for a cache key without
# them. Per context, so that concurrent calls keep theirs.
_call: ContextVar[tuple[NablaLLM, NablaLLM] | None] = ContextVar("nabla_llm_call", default=None)


class NablaLLM(NablaSettings, BaseLLM):
    """A language model whose answers are refined by gradients and rewards, for chains that pass text.

    `NablaLLM(model="tiny")` loads at first use, once per process for equal loading settings; `NablaLLM(engine=engine)`
    shares an engine, with its reward and strategy. Generation settings may also be given per call or by `bind`. A
    prompt is one user turn of the chat template, if the model has one. The same seed gives the same text on every
    path: every prompt of a batch uses `seed`, and with n > 1 the answers use seed, seed + 1, ... and come best first.

    In agents and graphs use `ChatNabla`, or `as_chat()`: LangChain traces tokens and streams of chat models only.
    """

    model_config = CONFIG
    per_call: ClassVar[tuple[str, ...]] = (*PER_CALL, "formatted")

    formatted: bool = False
    """True takes prompts verbatim, without the chat template."""

    def as_chat(self, **settings: Any) -> ChatNabla:
        """A chat model on the same engine with this model's settings; `settings` replaces some."""
        from langchain_nabla.chat_models import ChatNabla

        return ChatNabla(**{**self._shared(), **settings})

    # ── generation ────────────────────────────────────────────────────────────────────────────────────────────────

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return _llm_result(self._searches(prompts, stop, kwargs).results(), self.model)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `_generate`, off the event loop, and in one batch with what else is searched."""
        call = await asyncio.to_thread(self._searches, prompts, stop, kwargs)
        return _llm_result(await call.aresults(), self.model)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for chunk in self._searches([prompt], stop, kwargs).chunks():
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        call = await asyncio.to_thread(self._searches, [prompt], stop, kwargs)
        async with aclosing(call.achunks()) as chunks:
            async for chunk in chunks:
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _searches(
        self, prompts: Sequence[str], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> Call[GenerationChunk]:
        """One call; loads the model."""
        llm = self._with(kwargs, stop)
        engine = llm.load()
        formatted = llm.formatted or not engine.model.tokenizer.has_template
        rendered = [engine.prompt(prompt, formatted=formatted) for prompt in prompts]
        return Call(engine, llm._requests(engine, rendered), _TextWriter(), n=llm.n)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """One batch of the engine. With `return_exceptions`, a prompt that cannot be answered fails alone."""
        if not return_exceptions:
            return super().batch(inputs, config, **kwargs)
        refused, configs = self._refused(inputs, kwargs), get_config_list(config, len(inputs))
        good = [i for i in range(len(inputs)) if i not in refused]
        answers = super().batch([inputs[i] for i in good], [configs[i] for i in good], return_exceptions=True, **kwargs)
        return _in_place(refused, good, answers)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """As `batch`."""
        if not return_exceptions:
            return await super().abatch(inputs, config, **kwargs)
        refused = await asyncio.to_thread(self._refused, inputs, kwargs)
        configs, good = get_config_list(config, len(inputs)), [i for i in range(len(inputs)) if i not in refused]
        chosen = [inputs[i] for i in good], [configs[i] for i in good]
        return _in_place(refused, good, await super().abatch(*chosen, return_exceptions=True, **kwargs))

    def _refused(self, inputs: Sequence[LanguageModelInput], kwargs: Mapping[str, Any]) -> dict[int, Exception]:
        """Why prompts cannot be answered, by their place; loads the model."""
        options, refused = dict(kwargs), {}
        stop = options.pop("stop", None)
        for i, given in enumerate(inputs):
            try:
                self._searches([self._convert_input(given).to_string()], stop, options)
            except (NablaError, ValueError) as e:
                refused[i] = e
        return refused

    # ── what identifies a call ────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _calling(self, kwargs: Mapping[str, Any], stop: list[str] | None) -> Iterator[None]:
        options = {name: value for name, value in kwargs.items() if name not in _FRAMEWORK}
        token = _call.set((self, self._with(options, stop)))
        try:
            yield
        finally:
            _call.reset(token)

    @override
    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        with self._calling(kwargs, stop):
            return super().generate(prompts, stop, callbacks, **kwargs)

    @override
    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        with self._calling(kwargs, stop):
            return await super().agenerate(prompts, stop, callbacks, **kwargs)

    @property
    def _llm_type(self) -> str:
        return "nabla-llm"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        call = _call.get()
        return (call[1] if call is not None and call[0] is self else self)._identity()

    def get_token_ids(self, text: str) -> list[int]:
        """Ids by the model's own tokenizer; loads the model."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.load().model.tokenizer.encode(text)


class _TextWriter:
    """Writes an answer as pieces of text, the last of which has the metadata."""

    def __init__(self) -> None:
        self._text = StreamedText()

    def grown(self, step: Step) -> Iterator[GenerationChunk]:
        if not step.done and (added := self._text.added_by(step)):
            yield GenerationChunk(text=added)

    def end(self, result: Result) -> Iterator[GenerationChunk]:
        yield GenerationChunk(text=self._text.added(result.text), generation_info=_info(result))


def _llm_result(by_prompt: Sequence[Sequence[Result]], model: str) -> LLMResult:
    """One list of generations per prompt; each carries its own usage, and the result carries the sums."""
    results = [result for group in by_prompt for result in group]
    spent = sum((result.usage for result in results), Usage()).as_dict()
    generations = [[Generation(text=r.text, generation_info=_info(r)) for r in group] for group in by_prompt]
    return LLMResult(generations=generations, llm_output={**summed(results, model), "nabla": {"usage": spent}})


def _info(result: Result) -> dict[str, Any]:
    """Finish reason, tokens, and the search in a few numbers; native JSON types only."""
    reason = "length" if result.truncated else "stop"
    return {"finish_reason": reason, "token_usage": result.token_usage, "nabla": result.summary()}


def _in_place(refused: Mapping[int, Exception], good: Sequence[int], answers: Sequence[str]) -> list[str]:
    """Answers and refusals in the order of the prompts; core types a batch of both as texts."""
    outcomes: dict[int, Any] = {**refused, **dict(zip(good, answers, strict=True))}
    return [outcomes[i] for i in sorted(outcomes)]
