"""StructuredAnswer: objects of a pydantic class, decoded under its schema and searched by what its validators say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.program.streaming_utils import process_streaming_content_incremental
from llama_index.core.prompts import BasePromptTemplate
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError

from llama_index.llms.nabla.scopes import merged
from nabla_agents import NablaError

if TYPE_CHECKING:
    from llama_index.llms.nabla.base import NablaLLM

dispatcher = get_dispatcher(__name__)
ModelT = TypeVar("ModelT", bound=BaseModel)


class StructuredAnswerError(NablaError, ValueError):
    """No attempt gave an object that the class accepts; the last reason is its cause."""


class StructuredAnswer(Generic[ModelT]):
    """`structured_predict` and its family: the conversation until an answer is accepted.

    The model is told the schema and cannot leave it; where a call is refined, the search looks for an answer that the
    validators of the class accept; and where they refuse what it found, the model is asked again, with the reason. An
    engine on a server judges by its own rewards alone.
    """

    def __init__(
        self,
        llm: NablaLLM,
        output_cls: type[ModelT],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> None:
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        options = dict(llm_kwargs or {})
        for tools_only in ("tool_choice", "tool_required"):  # programs pass them on to whatever model there is
            options.pop(tools_only, None)
        settings, _ = merged(options)
        schema = {"name": output_cls.__name__, "schema": output_cls.model_json_schema()}
        shape = {"type": "json_schema", "json_schema": schema}
        self.options = {**options, "response_format": shape, "seed": settings.get("seed", llm.seed)}
        self.messages = llm._get_messages(prompt, **prompt_args)
        self._llm, self._class, self._left = llm, output_cls, llm.structured_retries
        self._accepted: ModelT | None = None
        self._partial: Any = None
        self._refusal: Exception | None = None

    def find(self) -> ModelT:
        """The object.

        Raises:
            StructuredAnswerError: none after as many attempts as are allowed.
        """
        llm = self._judging()
        while not self.ended:
            self.take(llm.chat(self.messages, **self.options))
        return self.answer()

    async def afind(self) -> ModelT:
        """As `find`."""
        llm = await asyncio.to_thread(self._judging)
        while not self.ended:
            self.take(await llm.achat(self.messages, **self.options))
        return self.answer()

    def stream(self) -> Generator[Any, None, None]:
        """Objects with the fields known so far, and at last the whole one."""
        llm = self._judging()
        while not self.ended:
            chunk = None
            for chunk in llm.stream_chat(self.messages, **self.options):
                if (partial := self.grown(chunk)) is not None:
                    yield partial
            self.take(chunk)
        yield self.answer()

    async def astream(self) -> AsyncGenerator[Any, None]:
        """As `stream`."""
        llm = await asyncio.to_thread(self._judging)
        while not self.ended:
            chunk = None
            async for chunk in await llm.astream_chat(self.messages, **self.options):
                if (partial := self.grown(chunk)) is not None:
                    yield partial
            self.take(chunk)
        yield self.answer()

    def _judging(self) -> NablaLLM:
        """The model, judging by the class too; loads it."""
        verbatim = self._llm.messages_to_prompt is not generic_messages_to_prompt
        if (engine := self._llm.load_accepting(self._class, verbatim=verbatim)) is None:
            return self._llm
        llm = self._llm.with_engine(engine)
        return llm if llm.refine_constrained is not None else llm.with_options(refine_constrained=True)

    @property
    def ended(self) -> bool:
        return self._accepted is not None or self._left < 0

    def take(self, response: ChatResponse | None) -> None:
        """One attempt's answer: accepted, or the reason why not for the next attempt to read."""
        text = "" if response is None else response.message.content or ""
        try:
            self._accepted = self._class.model_validate_json(text)
        except Exception as e:  # a validator may raise anything
            self._refusal, self._left = e, self._left - 1
            why = _problems(e) if isinstance(e, ValidationError) else f"{type(e).__name__}: {e}"
            self.messages += [
                ChatMessage(role=MessageRole.ASSISTANT, content=text),
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


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the answer'}: {e['msg']}" for e in error.errors())
