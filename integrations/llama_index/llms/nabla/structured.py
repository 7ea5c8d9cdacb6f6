"""StructuredAnswers: objects of a pydantic class, decoded under its schema and searched by what its validators say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, Generic, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.program.streaming_utils import process_streaming_content_incremental
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError

from llama_index.llms.nabla.judging import judging_by_class, takes_rewards
from llama_index.llms.nabla.options import merged
from llama_index.llms.nabla.tools import ToolCalling
from nabla_agents import NablaError

dispatcher = get_dispatcher(__name__)
ModelT = TypeVar("ModelT", bound=BaseModel)


class StructuredAnswerError(NablaError, ValueError):
    """No attempt gave an object that the class accepts; the last reason is its cause."""


class StructuredAnswers(ToolCalling):
    """`structured_predict` and its family: the model is told the schema and cannot leave it; where a call is refined,
    the search looks for an answer that the validators of the class accept; and where they refuse what it found, the
    model is asked again, with the reason. Other modes than the default program are the core's.

    An engine on a server judges by its own rewards alone.
    """

    def structured_predict(
        self, output_cls: type[ModelT], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> ModelT:
        """An object of the class.

        Raises:
            StructuredAnswerError: none after `structured_retries` more attempts.
        """
        if self.pydantic_program_mode is not PydanticProgramMode.DEFAULT:
            return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        attempts = self._attempts(output_cls, prompt, llm_kwargs, prompt_args)
        llm = self._judging(output_cls)
        while not attempts.ended:
            attempts.take(llm.chat(attempts.messages, **attempts.options))
        return attempts.answer()

    async def astructured_predict(
        self, output_cls: type[ModelT], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> ModelT:
        """As `structured_predict`."""
        if self.pydantic_program_mode is not PydanticProgramMode.DEFAULT:
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        attempts = self._attempts(output_cls, prompt, llm_kwargs, prompt_args)
        llm = await asyncio.to_thread(self._judging, output_cls)
        while not attempts.ended:
            attempts.take(await llm.achat(attempts.messages, **attempts.options))
        return attempts.answer()

    def stream_structured_predict(
        self, output_cls: type[ModelT], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        """Objects with the fields known so far, and at last the whole one."""
        if self.pydantic_program_mode is not PydanticProgramMode.DEFAULT:
            yield from super().stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return
        attempts = self._attempts(output_cls, prompt, llm_kwargs, prompt_args)
        llm = self._judging(output_cls)
        while not attempts.ended:
            chunk = None
            for chunk in llm.stream_chat(attempts.messages, **attempts.options):
                if (partial := attempts.grown(chunk)) is not None:
                    yield partial
            attempts.take(chunk)
        yield attempts.answer()

    async def astream_structured_predict(
        self, output_cls: type[ModelT], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        """As `stream_structured_predict`."""
        if self.pydantic_program_mode is not PydanticProgramMode.DEFAULT:
            return await super().astream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        attempts = self._attempts(output_cls, prompt, llm_kwargs, prompt_args)

        async def objects() -> AsyncGenerator[Any, None]:
            llm = await asyncio.to_thread(self._judging, output_cls)
            while not attempts.ended:
                chunk = None
                async for chunk in await llm.astream_chat(attempts.messages, **attempts.options):
                    if (partial := attempts.grown(chunk)) is not None:
                        yield partial
                attempts.take(chunk)
            yield attempts.answer()

        return objects()

    def _judging(self, output_cls: type[BaseModel]) -> StructuredAnswers:
        """This model, judging by the class too; loads it."""
        engine = self.load()
        if not takes_rewards(engine):
            return self
        llm = self.with_engine(judging_by_class(engine, output_cls))
        return llm if llm.refine_constrained is not None else llm.with_options(refine_constrained=True)

    def _attempts(
        self,
        output_cls: type[ModelT],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> _Attempts[ModelT]:
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        options = dict(llm_kwargs or {})
        for tools_only in ("tool_choice", "tool_required"):  # programs pass them on to whatever model there is
            options.pop(tools_only, None)
        settings, _ = merged(options)
        seed = settings.get("seed", self.seed)
        return _Attempts(output_cls, self._get_messages(prompt, **prompt_args), options, seed, self.structured_retries)


class _Attempts(Generic[ModelT]):
    """The conversation until an answer is accepted."""

    def __init__(
        self,
        output_cls: type[ModelT],
        messages: Sequence[ChatMessage],
        options: dict[str, Any],
        seed: int,
        retries: int,
    ) -> None:
        schema = output_cls.model_json_schema()
        shape = {"type": "json_schema", "json_schema": {"name": output_cls.__name__, "schema": schema}}
        self.messages, self.options = list(messages), {**options, "response_format": shape, "seed": seed}
        self._class, self._left = output_cls, retries
        self._accepted: ModelT | None = None
        self._partial: Any = None
        self._refusal: Exception | None = None

    @property
    def ended(self) -> bool:
        return self._accepted is not None or self._left < 0

    def take(self, response: ChatResponse | None) -> None:
        """One attempt's answer: accepted, or the reason why not for the next attempt to read."""
        said = "" if response is None else response.message.content or ""
        try:
            self._accepted = self._class.model_validate_json(said)
        except Exception as e:  # a validator may raise anything
            self._refusal, self._left = e, self._left - 1
            why = _said(e) if isinstance(e, ValidationError) else f"{type(e).__name__}: {e}"
            self.messages += [
                ChatMessage(role=MessageRole.ASSISTANT, content=said),
                ChatMessage(role=MessageRole.USER, content=f"This is not valid: {why}. Answer again."),
            ]
            self.options = {**self.options, "seed": self.options["seed"] + 1}

    def grown(self, chunk: ChatResponse) -> Any:
        """The object as far as a growing answer tells it; None where that is not more than before."""
        before = self._partial
        self._partial = process_streaming_content_incremental(chunk, self._class, before)
        if before is not None and self._partial.model_dump() == before.model_dump():
            return None
        dispatcher.event(LLMStructuredPredictInProgressEvent(output=self._partial))
        return self._partial

    def answer(self) -> ModelT:
        """The accepted object.

        Raises:
            StructuredAnswerError: there is none.
        """
        if self._accepted is None:
            raise StructuredAnswerError(
                f"No answer was a valid {self._class.__name__} ({self._refusal}). Raise structured_retries or "
                "max_tokens, or loosen the class."
            ) from self._refusal
        dispatcher.event(LLMStructuredPredictEndEvent(output=self._accepted))
        return self._accepted


def _said(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the answer'}: {e['msg']}" for e in error.errors())
