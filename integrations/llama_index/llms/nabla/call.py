"""Call: one call of the model, from what LlamaIndex passes to what it gets back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import default_completion_to_prompt

from llama_index.llms.nabla import policy
from llama_index.llms.nabla.callers import callers, is_final
from llama_index.llms.nabla.events import report_end, report_start, report_step
from llama_index.llms.nabla.options import SAMPLING, merged
from llama_index.llms.nabla.progress import tell
from llama_index.llms.nabla.prompts import chat_prompt, fitting, text_prompt
from llama_index.llms.nabla.recording import Recorded, record
from llama_index.llms.nabla.responses import Replies, log_probs, raw
from nabla_agents import Asked, Budget, Prompt, Request, Result, Run, Sampling, Step

if TYPE_CHECKING:
    from llama_index.llms.nabla.settings import NablaSettings
    from nabla_agents import Engine

Given = str | Sequence[ChatMessage]


class Call:
    """One call: its settings, policy and callers as they are when it is made; then its prompt, search and responses.

    Making one loads and computes nothing; `start` does.
    """

    def __init__(self, llm: NablaSettings, given: Given, formatted: bool, kwargs: Mapping[str, Any]) -> None:
        settings, self._options = merged(kwargs)
        self.llm = llm.with_options(**settings) if settings else llm
        self._given, self._formatted = given, formatted
        self._context = copy_context()  # a stream is consumed elsewhere; its events belong to this call
        around = callers()
        self._trace = around[-1].id if around else None
        text = given if isinstance(given, str) else "\n".join(message.content or "" for message in given)
        self._final = is_final(text, around) if self.llm.final is None else self.llm.final

    def start(self, *, on_demand: bool = False) -> Run:
        """The search, which goes on by itself or step by step as it is asked; loads the model.

        Raises:
            PromptError, ContextOverflowError, ConfigurationError: before anything is computed.
        """
        self.engine: Engine = self.llm.load()
        asked = dict(self._options)
        self._draft: str | None = asked.pop("draft", None)
        tokenizer = self.engine.model.tokenizer
        self._asked = Asked.read(**asked, reasoning=tokenizer.knows_reasoning, dialect=tokenizer.dialect)
        prompt = self._prompt()
        tools, chat = bool(self._asked.tools), not isinstance(self._given, str)
        offered, dialect = self._asked.tools, tokenizer.dialect
        self.replies = Replies(prompt, self.llm.seed, tools=offered, chat=chat, dialect=dialect)
        strategy, budget = self._search()
        grammar = self._asked.grammar and replace(self._asked.grammar, refine=bool(self.llm.refine_constrained))
        sampling = Sampling(**{name: getattr(self.llm, name) for name in SAMPLING}, grammar=grammar)
        said = {"seed": self.llm.seed, "refine_policy": self.llm.refine_policy, "refined": self._refined}
        self._context.run(report_start, **said)
        self._request = Request(
            prompt=prompt,
            seed=self.llm.seed,
            sampling=sampling,
            budget=budget,
            strategy=strategy,
            draft=self._draft,
            until=self._settled(tools),
        )
        return self._context.run(self.engine.submit, self._request, on_demand=on_demand)

    def followed(self, run: Run) -> Result:
        """The result of a run, each step of which is reported."""
        for step in run.rounds():
            self.report(step)
        return run.result

    async def afollowed(self, run: Run) -> Result:
        """As `followed`; cancelled with the task that awaits it."""
        async for step in run.arounds():
            self.report(step)
        return run.result

    def report(self, step: Step) -> None:
        """Tells of a step to those who watch this call."""
        if not step.done and step.kind != "token":
            self._context.run(report_step, step)
            self._context.run(tell, step)

    def finished(self, result: Result, **facts: Any) -> Any:
        """The whole response with `raw`, and with what else is said of it; charges the trace and reports the end."""
        if self._refined:
            policy.charge(self._trace, result)
        self._context.run(report_end, result)
        reply = self.replies.read(result.text)
        record(Recorded(self.llm, self._request.prompt, result))
        said = {"refine_policy": self.llm.refine_policy, "refined": self._refined, "unrefined_because": self._because}
        facts["raw"] = raw(result, called=bool(reply.tool_calls), policy=said)
        if self.llm.logprobs:
            facts["logprobs"] = log_probs(result, self.engine.model.tokenizer.token_text)
        if reply.reasoning:
            facts["additional_kwargs"] = {"thinking": reply.reasoning}
        return self.replies.ended(result.text, **facts)

    # ── what it runs ──────────────────────────────────────────────────────────────────────────────────────────────

    def _settled(self, tools: bool) -> Any:
        return policy.settled(self.llm.refine_policy, tools=tools, reply=self.replies.read) if self._refined else None

    def _search(self) -> tuple[Any, Budget]:
        """The strategy and budget that the policy gives this call."""
        llm, engine = self.llm, self.engine
        strategy = engine.strategy if llm.strategy is None else llm.strategy
        budget = llm.effective_budget(engine)
        self._because: str | None = None
        if llm.refine_policy == "never":
            self._because = "refine_policy is never"
        elif llm.refine_policy == "final_only" and not self._final and self._draft is None:
            self._because = "no final answer"
        elif (allowed := policy.granted(self._trace, llm.trace_budget, budget)) is None:
            self._because = "the trace's budget is spent"
        else:
            self._refined = True
            return strategy, allowed
        from nabla_agents import Greedy  # loads torch, which a model that is only constructed does not need

        self._refined = False
        return Greedy(), Budget(rollouts=1, generated_tokens=budget.generated_tokens, seconds=budget.seconds)

    # ── what it reads ─────────────────────────────────────────────────────────────────────────────────────────────

    def _prompt(self) -> Prompt:
        """What the language model reads. A rendering function of the user's goes before the chat template."""
        llm, engine = self.llm, self.engine
        llm.check_room(engine.model.context_length)
        given, own = self._given, None
        if isinstance(given, str):
            if llm.completion_to_prompt is not default_completion_to_prompt:
                own = llm.completion_to_prompt
            prompt = text_prompt(engine, given, self._asked, formatted=self._formatted, completion_to_prompt=own)
        else:
            if llm.messages_to_prompt is not generic_messages_to_prompt or not engine.model.tokenizer.has_template:
                own = llm.messages_to_prompt
            prompt = chat_prompt(engine, given, self._asked, messages_to_prompt=own)
        return fitting(prompt, llm.context_window)
