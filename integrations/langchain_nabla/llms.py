"""NablaLLM: the engine as a LangChain text-completion model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import GenerationChunk, LLMResult
from typing_extensions import override

from langchain_nabla import _convert
from langchain_nabla._engine import Cancellable, asteps, on_worker, steps, turn
from langchain_nabla._settings import CONFIG, PER_CALL, EngineSettings
from nabla_agents import CommittedText, Result

if TYPE_CHECKING:
    from langchain_nabla.chat_models import ChatNabla
    from nabla_agents import Engine, Run, Step

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
        groups = call._results(call.load(), prompts)
        for group in groups:
            for result in group:
                _convert.check_not_interrupted(result)
        return _convert.llm_result(groups, call.model)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call = self._with(kwargs, stop)
        return _convert.llm_result(await call._aresults(prompts), call.model)

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

    def _results(self, engine: Engine, prompts: Sequence[str], strategy: Any = None) -> list[list[Result]]:
        """`n` results per prompt, best first, all from one batch."""
        with turn(engine):
            results = engine.generate_batch(
                [prompt for prompt in prompts for _ in range(self.n)],
                seeds=[self.seed + i for _ in prompts for i in range(self.n)],
                **{**self._options(engine), "strategy": strategy or self.strategy},
            )
        return [_convert.best_first(results[i : i + self.n]) for i in range(0, len(results), self.n)]

    async def _aresults(self, prompts: Sequence[str]) -> list[list[Result]]:
        engine = await asyncio.to_thread(self.load)
        strategy = Cancellable(self.strategy or engine.strategy)
        try:
            return await on_worker(engine, self._results, engine, prompts, strategy)
        finally:
            strategy.cancel()

    def _chunks(self, prompt: str) -> Iterator[GenerationChunk]:
        engine = self.load()
        if self.n > 1:  # only whole answers can be compared
            best = self._results(engine, [prompt])[0][0]
            _convert.check_not_interrupted(best)
            yield _convert.chunk(best.text, best)
            return
        run, text = self._run(engine, prompt), CommittedText()
        for step in steps(engine, run):
            if step.done:
                _convert.check_not_interrupted(run.result)
            if (chunk := _chunk(run, step, text)) is not None:
                yield chunk

    async def _achunks(self, prompt: str) -> AsyncIterator[GenerationChunk]:
        """As `_chunks`. The next step is computed when it is asked for, so an abandoned stream costs nothing more."""
        if self.n > 1:
            best = (await self._aresults([prompt]))[0][0]
            yield _convert.chunk(best.text, best)
            return
        engine = await asyncio.to_thread(self.load)
        run, text = await on_worker(engine, self._run, engine, prompt), CommittedText()
        async with aclosing(asteps(engine, run)) as computed:
            async for step in computed:
                if (chunk := _chunk(run, step, text)) is not None:
                    yield chunk

    def _run(self, engine: Engine, prompt: str) -> Run:
        return engine.steps(prompt, seed=self.seed, **self._options(engine))

    def _options(self, engine: Engine) -> dict[str, Any]:
        formatted = self.formatted or not engine.model.tokenizer.hf.chat_template
        return {**self._engine_options(engine), "formatted": formatted}

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
