"""NablaLLM: the engine as a LangChain text-completion model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models.llms import BaseLLM
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.outputs import GenerationChunk, LLMResult
from pydantic import ConfigDict, Field, field_validator, model_validator
from typing_extensions import override

from langchain_nabla import _convert
from langchain_nabla._engine import Cancellable, on_worker
from langchain_nabla._identity import described, described_engine
from nabla_agents import Budget, CommittedText, Result, Sampling, SharedEngine, Step, __version__, loaded

if TYPE_CHECKING:
    from nabla_agents import Engine, Run

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
_LOADING = ("revision", "dtype", "device_map", "trust_remote_code")
_PER_CALL = (*_SAMPLING, "seed", "n", "rollouts", "budget", "strategy", "formatted")
_FRAMEWORK = ("tags", "metadata", "run_name", "run_id")

# The model whose call is under way, and the same model with the call's own options: core asks for a cache key without
# them. Per context, so that concurrent calls keep theirs.
_call: ContextVar[tuple[NablaLLM, NablaLLM] | None] = ContextVar("nabla_llm_call", default=None)


class NablaLLM(BaseLLM):
    """A language model whose answers are refined by gradients and rewards, for chains that pass text.

    `NablaLLM(model="tiny")` loads at first use, once per process for equal loading settings; `NablaLLM(engine=engine)`
    shares an engine, with its reward and strategy. Generation settings may also be given per call or by `bind`. A
    prompt is one user turn of the chat template, if the model has one. The same seed gives the same text on every
    path: every prompt of a batch uses `seed`, and with n > 1 the answers use seed, seed + 1, ... and come best first.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str = "tiny"
    """A hub id, a folder, or `tiny` (embedded, with its process reward)."""
    engine: Any = Field(default=None, exclude=True, repr=False)
    """A `nabla_agents.Engine` to share, in place of `model` and the loading settings."""
    revision: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """0 is greedy, None the strategy's own."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of the answer at most; None is as long as the context allows."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end the answer and are not part of it. A call's own `stop` replaces them."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    n: Annotated[int, Field(ge=1)] = 1
    """Answers per prompt, each with the whole budget."""
    rollouts: Annotated[int, Field(ge=1)] | None = None
    """Completions that the search may sample per answer, in place of the budget's number."""
    budget: Budget | None = None
    """What one answer may cost; None is the engine's own."""
    strategy: Any = None
    """A strategy object such as `BestOfN(n=8)`; None is the engine's own."""
    formatted: bool = False
    """True takes prompts verbatim, without the chat template."""

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else [] if value is None else value

    @model_validator(mode="after")
    def _engine_fits(self) -> NablaLLM:
        if self.engine is not None:
            if not callable(getattr(self.engine, "generate_batch", None)):
                raise ValueError(f"engine is {self.engine!r}; expected a nabla_agents.Engine.")
            given = [name for name in _LOADING if getattr(self, name)]
            if given:
                raise ValueError(f"{', '.join(given)}: loading settings need a model name, got a loaded engine.")
            if "model" in self.model_fields_set and self.model != self.engine.model.name:
                raise ValueError(f"model is {self.model!r}, but the engine's is {self.engine.model.name!r}; give one.")
            self.model = self.engine.model.name
        self._add_version("nabla-agents", __version__)
        return self

    def load(self) -> Engine:
        """The engine; loads the weights now where that has not happened yet."""
        if self.engine is not None:
            return self.engine
        return loaded(self.model, **{name: v for name in _LOADING if (v := getattr(self, name))})

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
        for step in run:
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
        try:
            while (step := await on_worker(engine, _next, run)) is not None:
                if (chunk := _chunk(run, step, text)) is not None:
                    yield chunk
        finally:
            run.cancel()

    def _run(self, engine: Engine, prompt: str) -> Run:
        return engine.steps(prompt, seed=self.seed, **self._options(engine))

    def _options(self, engine: Engine) -> dict[str, Any]:
        """This model's settings as the engine takes them."""
        budget = engine.budget if self.budget is None else self.budget
        return {
            "sampling": Sampling(**{name: getattr(self, name) for name in _SAMPLING}),
            "budget": budget if self.rollouts is None else replace(budget, rollouts=self.rollouts),
            "strategy": self.strategy,
            "formatted": self.formatted or not engine.model.tokenizer.hf.chat_template,
        }

    # ── options of one call, and what identifies it ───────────────────────────────────────────────────────────────

    def _with(self, options: Mapping[str, Any], stop: list[str] | None = None) -> NablaLLM:
        """This model with a call's options, validated like its fields; an absent option leaves the field's value.

        Raises:
            TypeError: an option that is none of ours.
        """
        if unknown := [name for name in options if name not in _PER_CALL]:
            raise TypeError(
                f"NablaLLM got unknown call options: {', '.join(unknown)}. Known: {', '.join(_PER_CALL)}; other "
                "settings go to the constructor."
            )
        if stop is not None:
            options = {**options, "stop": stop}
        if not options:
            return self
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **options})

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
        model = call[1] if call is not None and call[0] is self else self
        return {
            "model_name": model.model,
            "engine": None if model.engine is None else described_engine(model.engine),
            "loading": {name: getattr(model, name) for name in _LOADING},
            # Not under the name `stop`: core overwrites that with the call's, None included.
            "settings": {name: described(getattr(model, name)) for name in _PER_CALL},
        }

    # ── tokens, copies, serialisation ─────────────────────────────────────────────────────────────────────────────

    def get_token_ids(self, text: str) -> list[int]:
        """Ids by the model's own tokenizer; loads the model."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.load().model.tokenizer.encode(text)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_attributes(self) -> dict[str, Any]:
        return {} if self.budget is None else {"budget": asdict(self.budget)}

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Constructor arguments; none for a given engine, which a reader could only replace by a different one."""
        return super().to_json() if self.engine is None else self.to_json_not_implemented()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> NablaLLM:
        memo = {} if memo is None else memo
        memo[id(self.engine)] = self.engine
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        if self.engine is None:
            return state
        return {**state, "__dict__": {**state["__dict__"], "engine": SharedEngine(self.engine)}}


def _next(run: Run) -> Step | None:
    return next(run, None)


def _chunk(run: Run, step: Step, text: CommittedText) -> GenerationChunk | None:
    """What a step adds to a stream: nothing, a piece of text, or the end."""
    added = text.added_by(step)
    if step.done:
        return _convert.chunk(added, run.result)
    return _convert.chunk(added) if added else None
