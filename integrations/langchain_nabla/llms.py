"""NablaLLM: the engine as a LangChain text-completion model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from typing_extensions import override

from langchain_nabla import _convert
from langchain_nabla._settings import CONFIG, PER_CALL, EngineSettings
from nabla_agents import CommittedText, NablaError, Request, Result, Run

if TYPE_CHECKING:
    from langchain_nabla.chat_models import ChatNabla
    from nabla_agents import Step

_FRAMEWORK = ("tags", "metadata", "run_name", "run_id")

# The model whose call is under way, and the same model with the call's own options: core asks for a cache key without
# them. Per context, so that concurrent calls keep theirs.
_call: ContextVar[tuple[NablaLLM, NablaLLM] | None] = ContextVar("nabla_llm_call", default=None)


class NablaLLM(EngineSettings, BaseLLM):
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

        shared = {name: getattr(self, name) for name in EngineSettings.model_fields if name != "name"}
        return ChatNabla(**{**shared, **settings})

    # ── generation ────────────────────────────────────────────────────────────────────────────────────────────────

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call = self._with(kwargs, stop)
        runs = [call.load().submit(request) for request in call._requests(prompts)]
        return _convert.llm_result(call._grouped([run.drain() for run in runs]), call.model)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `_generate`, off the event loop, and in one batch with what else is searched."""
        call = self._with(kwargs, stop)
        requests = await asyncio.to_thread(call._requests, prompts)
        results = await asyncio.gather(*map(call.load().submit, requests))
        return _convert.llm_result(call._grouped(results), call.model)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for chunk in self._with(kwargs, stop)._chunks(prompt):
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
        async for chunk in self._with(kwargs, stop)._achunks(prompt):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

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
        call = self._with({n: v for n, v in kwargs.items() if n != "stop"}, kwargs.get("stop"))
        found: dict[int, Exception] = {}
        for i, given in enumerate(inputs):
            try:
                call._requests([self._convert_input(given).to_string()])
            except (NablaError, ValueError) as e:
                found[i] = e
        return found

    def _requests(self, prompts: Sequence[str]) -> list[Request]:
        """`n` requests per prompt; loads the model."""
        engine = self.load()
        formatted = self.formatted or not engine.model.tokenizer.has_template
        options = self._engine_options(engine)
        rendered = [engine.prompt(prompt, formatted=formatted) for prompt in prompts]
        seeds = range(self.seed, self.seed + self.n)
        return [Request(prompt=prompt, seed=seed, **options) for prompt in rendered for seed in seeds]

    def _grouped(self, results: Sequence[Result]) -> list[list[Result]]:
        """`n` results per prompt, best first."""
        return [_convert.best_first(results[i : i + self.n]) for i in range(0, len(results), self.n)]

    def _chunks(self, prompt: str) -> Iterator[GenerationChunk]:
        engine, text = self.load(), CommittedText()
        requests = self._requests([prompt])
        if self.n > 1:  # only whole answers can be compared
            best = _convert.best_first([run.drain() for run in [engine.submit(r) for r in requests]])[0]
            yield _convert.chunk(best.text, best)
            return
        with engine.submit(requests[0], on_demand=True) as run:
            for step in run:
                if (chunk := _chunk(run, step, text)) is not None:
                    yield chunk

    async def _achunks(self, prompt: str) -> AsyncIterator[GenerationChunk]:
        """As `_chunks`. The next step is computed when it is asked for, so an abandoned stream costs nothing more."""
        requests = await asyncio.to_thread(self._requests, [prompt])
        engine, text = self.load(), CommittedText()
        if self.n > 1:
            best = _convert.best_first(await asyncio.gather(*map(engine.submit, requests)))[0]
            yield _convert.chunk(best.text, best)
            return
        async with engine.submit(requests[0], on_demand=True) as run:
            async for step in run:
                if (chunk := _chunk(run, step, text)) is not None:
                    yield chunk

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


def _chunk(run: Run, step: Step, text: CommittedText) -> GenerationChunk | None:
    """What a step adds to a stream: nothing, a piece of text, or the end."""
    added = text.added_by(step)
    if step.done:
        return _convert.chunk(added, run.result)
    return _convert.chunk(added) if added else None


def _in_place(refused: Mapping[int, Exception], good: Sequence[int], answers: Sequence[str]) -> list[str]:
    """Answers and refusals in the order of the prompts; core types a batch of both as texts."""
    found: dict[int, Any] = {**refused, **dict(zip(good, answers, strict=True))}
    return [found[i] for i in sorted(found)]
