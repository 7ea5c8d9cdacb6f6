"""Call: one call of the model, from what LlamaIndex passes to what it gets back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import default_completion_to_prompt

from llama_index.llms.nabla import policy
from llama_index.llms.nabla.callers import callers, is_final
from llama_index.llms.nabla.events import report_end, report_start, report_step
from llama_index.llms.nabla.messages import ResponseWriter, conversation
from llama_index.llms.nabla.scopes import merged, record, tell
from nabla_agents import ChatAnswer, ChatOptions, ContextOverflowError, Message, Prompt, Request, Result, Run, Step

if TYPE_CHECKING:
    from llama_index.llms.nabla.base import NablaLLM
    from nabla_agents import Engine


class Call:
    """One call: its settings, policy and callers as they are when it is made; then its prompt, search and responses.

    Making one loads and computes nothing.
    """

    def __init__(
        self,
        llm: NablaLLM,
        question: str | Sequence[ChatMessage],
        kwargs: Mapping[str, Any],
        *,
        formatted: bool = False,
    ) -> None:
        settings, self._options = merged(kwargs)
        self._llm = llm.with_options(**settings) if settings else llm
        self._question, self._formatted = question, formatted
        self._context = copy_context()  # a stream is consumed elsewhere; its events belong to this call
        around = callers()
        self._trace = around[-1].id if around else None
        text = question if isinstance(question, str) else "\n".join(message.content or "" for message in question)
        self._final = is_final(text, around) if self._llm.final is None else self._llm.final

    def answer(self) -> Any:
        """The response."""
        return answers([self])[0]

    async def aanswer(self) -> Any:
        """As `answer`, off the event loop, and in one batch with what else is searched."""
        run = await asyncio.to_thread(self.start)
        return self.finished(await run.adrain(self.report))

    def stream(self) -> Generator[Any, None, None]:
        """The response as it grows, and at last the whole one."""
        with self.start(on_demand=True) as run:
            for step in run:
                self.report(step)
                if (response := self._writer.grown(step)) is not None:
                    yield response
            yield from self._last(run.result)

    async def astream(self) -> AsyncGenerator[Any, None]:
        """As `stream`. The next step is computed when it is asked for, so an abandoned stream costs nothing more."""
        async with await asyncio.to_thread(self.start, on_demand=True) as run:
            async for step in run:
                self.report(step)
                if (response := self._writer.grown(step)) is not None:
                    yield response
            for response in self._last(run.result):
                yield response

    def _last(self, result: Result) -> Generator[Any, None, None]:
        if (response := self._writer.rest(result)) is not None:
            yield response
        yield self.finished(result, delta="")

    # ── its search ────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, *, on_demand: bool = False) -> Run:
        """The search, which goes on by itself or step by step as it is asked; loads the model.

        Raises:
            PromptError, ContextOverflowError, ConfigurationError: before anything is computed.
        """
        llm, options = self._llm, dict(self._options)
        engine = llm.load()
        tokenizer = engine.model.tokenizer
        draft: str | None = options.pop("draft", None)
        cut: bool = options.pop("draft_cut", False)
        chat = ChatOptions.read(**options, reasoning=tokenizer.knows_reasoning, dialect=tokenizer.dialect)
        prompt = self._prompt(engine, chat)
        self._grant = policy.grant(llm, engine, trace=self._trace, final=self._final or draft is not None)
        grammar = chat.grammar and replace(chat.grammar, refine=bool(llm.refine_constrained))
        request = Request(
            prompt=prompt,
            seed=llm.seed,
            sampling=llm.sampling(grammar),
            budget=self._grant.budget,
            strategy=self._grant.strategy,
            draft=draft,
            draft_cut=cut,
        )
        answer = ChatAnswer(request, tokenizer, tools=chat.tools)
        self._writer = ResponseWriter(answer, chat=not isinstance(self._question, str), logprobs=llm.logprobs)
        if self._grant.refined:
            until = policy.settled(llm.refine_policy, tools=bool(chat.tools), reply=answer.read)
            request = replace(request, until=until)
        self._request = request
        self._context.run(report_start, llm.seed, llm.refine_policy, self._grant.refined)
        return self._context.run(engine.submit, request, on_demand=on_demand)

    def report(self, step: Step) -> None:
        """Tells of a step to those who watch this call."""
        if not step.done and step.kind != "token":
            self._context.run(report_step, step)
            self._context.run(tell, step)

    def finished(self, result: Result, **facts: Any) -> Any:
        """The whole response; charges the trace and reports the end."""
        grant, llm = self._grant, self._llm
        if grant.refined:
            policy.charge(self._trace, result)
        self._context.run(report_end, result)
        record(llm, self._request.prompt, result)
        decision = {"refine_policy": llm.refine_policy, "refined": grant.refined, "unrefined_because": grant.because}
        return self._writer.whole(result, decision, **facts)

    def _prompt(self, engine: Engine, chat: ChatOptions) -> Prompt:
        """What the language model reads."""
        llm, question = self._llm, self._question
        llm.check_room(engine.model.context_length)
        if (text := self._rendered(templated=engine.model.tokenizer.has_template)) is not None:
            prompt = engine.prompt(text, formatted=True)
        else:
            messages = [Message("user", question)] if isinstance(question, str) else conversation(question)
            prompt = engine.prompt(chat.with_schema(messages), tools=chat.tools)
        if llm.context_window is not None and len(prompt.ids) >= llm.context_window:
            raise ContextOverflowError(
                f"The prompt has {len(prompt.ids)} tokens, but context_window is {llm.context_window} tokens and must "
                "also hold the answer. Shorten the prompt or raise context_window."
            )
        return prompt

    def _rendered(self, *, templated: bool) -> str | None:
        """The text of a question that is formatted, or that a function of the user's renders; None where the chat
        template does.
        """
        render: Any
        if not isinstance(self._question, str):
            render, default = self._llm.messages_to_prompt, generic_messages_to_prompt
        elif self._formatted:
            return self._question
        else:
            render, default = self._llm.completion_to_prompt, default_completion_to_prompt
        return None if templated and render is default else render(self._question)


def answers(calls: Sequence[Call]) -> list[Any]:
    """One response per call; their searches run side by side."""
    runs = [call.start() for call in calls]
    return [call.finished(run.drain(call.report)) for call, run in zip(calls, runs, strict=True)]
