"""The probes that take more than a line."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import pickle
import time
from collections.abc import Callable
from typing import Any

from asking import ASYNC, QUESTION, Failing, Heard, Peer, listening, outcome, responses, said, user, which, works
from backends import CALLER, WINDOW
from llama_index.core import PromptTemplate
from llama_index.core.agent import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import FunctionTool
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, field_validator

SLOW = 0.5  # seconds that a slow back end takes


# ── methods, prompts, options ─────────────────────────────────────────────────────────────────────────────────────────


def base(peer: Peer) -> str:
    return next(kind.__name__ for kind in (FunctionCallingLLM, CustomLLM, LLM) if isinstance(peer.llm(), kind))


def counted(peer: Peer) -> tuple[int, int]:
    counter = TokenCountingHandler(tokenizer=str.split)
    heard = peer.events(peer.llm(callback_manager=CallbackManager([counter])))
    return len(heard.of("LLMChatStartEvent", "LLMCompletionStartEvent")), len(counter.llm_token_counts)


def formatted(peer: Peer) -> int:
    llm, right = peer.llm(completion_to_prompt="Q: {}".format), 0
    for method in ("complete", "stream_complete", "acomplete", "astream_complete"):
        for verbatim, expected in ((False, f"Q: {QUESTION}"), (True, QUESTION)):
            peer.backend.prompts.clear()
            came = works(peer.ask, method, llm, formatted=verbatim)
            right += came and peer.backend.prompts[0].replace("<s>", "").strip() == expected
    return right


def template(peer: Peer) -> tuple[str, str]:
    def own(messages: Any) -> str:
        return f"<|im_start|>{messages}"

    ways: dict[str, dict[str, Any]] = {"yes": {}, "with `is_chat_model=True`": {"is_chat_model": True}}
    ways["with your function"] = {"messages_to_prompt": own, "completion_to_prompt": own}

    def templated(asked: Callable[[Any], Any]) -> str:
        return which(ways, lambda given: [asked(peer.llm(**given)), "<|im_start|>" in peer.backend.prompts[-1]][1])

    return templated(lambda llm: llm.chat(user())), templated(lambda llm: llm.predict(PromptTemplate(QUESTION)))


def overflow(peer: Peer) -> str:
    try:
        peer.ask("complete", text="word " * 2 * WINDOW)
    except Exception as e:
        return f"{type(e).__name__}, {'both numbers' if str(WINDOW) in str(e) else 'no numbers'}"
    return "sent on"


def metadata(peer: Peer) -> tuple[str, bool, bool]:
    found = peer.llm(tokens=17).metadata
    return f"{found.context_window}, {found.num_output}", found.is_chat_model, found.is_function_calling_model


def image(peer: Peer) -> str:
    blocks = [TextBlock(text="What?"), ImageBlock(image=b"GIF89a", image_mimetype="image/gif")]
    peer.llm().chat([ChatMessage(role="user", blocks=blocks)])
    return "sent on" if "images" in str(peer.backend.options[-1]) else "dropped"


def kept_out(peer: Peer) -> bool:
    peer.llm().chat(user(secret="leaks"))
    return "leaks" not in peer.backend.prompts[0]


def thoughts(peer: Peer) -> bool:
    message = peer.last().message
    return any(isinstance(block, ThinkingBlock) for block in message.blocks) and message.content.strip() == "7"


def settings(peer: Peer) -> str:
    standing: dict[str, Any] = {"top_k": 7, "stop": ["#"], "seed": 17}
    places: dict[str, dict[str, Any]] = {
        "vllm": {"top_k": 7, "stop": ["#"], "vllm_kwargs": {"seed": 17}},
        "llama-cpp": {"generate_kwargs": dict(standing)},
        "ollama": {"additional_kwargs": standing},
    }
    heard = peer.heard(peer.llm(**places.get(peer.name, standing)))
    return ", ".join(name for name, value in standing.items() if heard.get(name) in (value, ("#",)))


def copies(peer: Peer) -> tuple[bool, bool]:
    llm = peer.llm()
    change = getattr(llm, "with_options", lambda **options: llm.model_copy(update=options))
    return model_of(change(temperature=0.5)) is model_of(llm), not works(change, temprature=3)


def model_of(llm: Any) -> Any:
    return next(getattr(llm, name) for name in ("_engine", "_model", "_client") if name in llm.__private_attributes__)


def scope(peer: Peer) -> bool:
    from llama_index.llms.nabla import nabla_options

    llm = peer.llm(seed=1)
    with listening() as heard, nabla_options(seed=2):
        llm.predict(PromptTemplate(QUESTION))
        peer.ask(llm=llm, seed=3)
    return [event.response.raw["nabla"]["seed"] for event in heard.of("LLMChatEndEvent")] == [2, 3]


def policy(peer: Peer) -> bool:
    peer.ask(refine_policy="never")
    without = len(peer.backend.prompts)
    peer.ask(refine_policy="always")
    return without == 1 < len(peer.backend.prompts) - without


# ── async, streams, events ────────────────────────────────────────────────────────────────────────────────────────────


def slow(peer: Peer) -> Any:
    """A model that has loaded what it loads at first use, and is slow from now on."""
    llm = peer.llm()
    peer.ask(llm=llm)
    peer.backend.seconds = SLOW
    return llm


def free(peer: Peer) -> int:
    llm = slow(peer)

    async def is_free(method: str) -> bool:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.create_task(tick())
        try:
            await responses(llm, method)
        except ValueError:  # not implemented
            return False
        finally:
            ticker.cancel()
        return ticks > SLOW / 0.01 / 4

    return sum(asyncio.run(is_free(method)) for method in ASYNC)


def context(peer: Peer) -> bool:
    """Whether events or the back end see the caller's variables when a stream is computed."""

    class Noting(Heard):
        def handle(self, event: Any, **kwargs: Any) -> None:
            self.events.append(CALLER.get() if "Refine" in type(event).__name__ else "")

    CALLER.set("me")
    with listening(Noting()) as heard:
        peer.ask("stream_chat")
    return "me" in heard.events + peer.backend.callers


def timeout(peer: Peer) -> tuple[str, int]:
    llm = slow(peer)

    async def wait() -> tuple[str, int]:
        began = time.perf_counter()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(llm.achat(user()), 0.1)
        fired, calls = time.perf_counter() - began < SLOW - 0.1, len(peer.backend.prompts)
        await asyncio.sleep(3 * SLOW)
        return "in time" if fired else "late", len(peer.backend.prompts) - calls

    return asyncio.run(wait())


def batch(peer: Peer) -> tuple[bool, str]:
    llm = slow(peer)

    async def seconds(n: int) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(llm.achat(user()) for _ in range(n)))
        return time.perf_counter() - began

    together = asyncio.run(seconds(4)) < 3 * asyncio.run(seconds(1))
    return hasattr(llm, "chat_batch"), "together" if together else "one by one"


def unchanged(peer: Peer) -> bool:
    llm = peer.llm()
    before = json.dumps(llm.to_dict(), default=str)
    for method in ("chat", "stream_chat"):
        works(peer.ask, method, llm)
    return json.dumps(llm.to_dict(), default=str) == before


def stream(peer: Peer) -> bool:
    llm, so_far = peer.llm(), ""
    for chunk in peer.ask("stream_chat", llm):
        so_far += chunk.delta or ""
        if said(chunk) != so_far:
            return False
    return so_far == said(peer.last(llm=llm))


def progress(peer: Peer) -> bool:
    heard = peer.events()
    steps = heard.of("NablaRefineStartEvent", "NablaRefineStepEvent", "NablaRefineEndEvent")
    return len(steps) > 2 and {step.span_id for step in steps} == {heard.of("LLMChatStartEvent")[0].span_id}


def usage(peer: Peer, method: str) -> bool:
    raw = peer.last(method).raw
    return isinstance(raw, dict) and bool(raw.get("usage"))


def spans(peer: Peer) -> int:
    handler, handlers, llm = SimpleSpanHandler(), get_dispatcher().span_handlers, peer.llm()
    handlers.append(handler)
    peer.ask(llm=llm)
    handlers.remove(handler)
    return len(handler.completed_spans)


def failing(peer: Peer) -> bool:
    with listening(Failing()):
        return bool(peer.ask())


def pickled(peer: Peer) -> str:
    llm = peer.llm()
    peer.ask(llm=llm)
    return outcome(lambda: peer.ask(llm=pickle.loads(pickle.dumps(llm))), good="yes")


def secrets(peer: Peer) -> bool:
    places: dict[str, dict[str, Any]] = {
        "huggingface": {"model_kwargs": {"token": "secret"}},
        "vllm": {"vllm_kwargs": {"hf_token": "secret"}},
        "llama-cpp": {"model_kwargs": {"token": "secret"}},
        "ollama": {"headers": {"Authorization": "secret"}},
    }
    llm = peer.llm(**places.get(peer.name, {}))
    if peer.name == "nabla":
        llm.api_key = "secret"
    return "secret" not in str([vars(event) for event in peer.events(llm).events])


def lazy(peer: Peer) -> str:
    if peer.name == "nabla":
        from llama_index.llms.nabla import NablaLLM

        return outcome(NablaLLM, model="no such model", good="nothing")
    peer.llm()
    return "nothing" if peer.backend.loaded is None else "weights"


# ── tools, agents, structured answers ─────────────────────────────────────────────────────────────────────────────────


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers."""
    return a * b


TOOL = FunctionTool.from_defaults(multiply)
CALL: dict[str, Any] = {"name": "multiply", "arguments": {"a": 6, "b": 7}}


def calls(peer: Peer, **options: Any) -> list[Any]:
    llm = peer.llm(tokens=200)
    return llm.get_tool_calls_from_response(llm.chat_with_tools([TOOL], QUESTION, **options))


def history(peer: Peer) -> bool:
    given = user("Hello")
    peer.llm().chat_with_tools([TOOL], QUESTION, chat_history=given)
    return len(given) == 1


def malformed(peer: Peer) -> str:
    llm = peer.llm()
    response = peer.last(llm=llm)
    response.message.blocks = [ToolCallBlock(tool_name="multiply", tool_kwargs='{"a": 6, "b": 7')]
    [call] = llm.get_tool_calls_from_response(response)
    return "repaired" if call.tool_kwargs == CALL["arguments"] else str(call.tool_kwargs)


def unfit(peer: Peer) -> str:
    [call] = calls(peer)
    return "not sampled" if {type(value) for value in call.tool_kwargs.values()} == {int} else "passed on"


def react(peer: Peer) -> str:
    without = {"nabla": {"is_function_calling": False}, "ollama": {"is_function_calling_model": False}}
    llm = peer.llm(window=4096, tokens=200, **without.get(peer.name, {}))
    given = {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser()}
    ways = {"yes": {}, "with a formatter and parser given": given}
    return which(ways, lambda more: "42" in str(llm.predict_and_call([TOOL], user_msg=QUESTION, **more)))


def agents(peer: Peer) -> str:
    shared: dict[str, Any] = {"tools": [multiply], "llm": peer.llm(window=4096, tokens=200)}

    def execute(code: str) -> str:
        return code

    made: dict[str, Callable[..., Any]] = {
        "Function": lambda **more: FunctionAgent(**shared, **more),
        "ReAct": lambda **more: ReActAgent(**shared, **more),
        "CodeAct": lambda **more: CodeActAgent(code_execute_fn=execute, **shared, **more),
        "Workflow": lambda **_: AgentWorkflow.from_tools_or_functions([multiply], llm=shared["llm"]),
    }

    async def run(make: Callable[..., Any], more: dict[str, Any]) -> bool:
        return "42" in str(await make(**more).run(QUESTION))

    ways: dict[str, dict[str, Any]] = {"": {}, " without streaming": {"streaming": False}}
    found = {name: which(ways, lambda more, make=make: asyncio.run(run(make, more))) for name, make in made.items()}
    return ", ".join(name + how for name, how in found.items() if how != "no") or "none"


class Plain(BaseModel):
    name: str
    age: int


class Person(Plain):
    @field_validator("name")
    @classmethod
    def _is_capital(cls, value: str) -> str:
        if not value[:1].isupper():
            raise ValueError("a name begins with a capital letter")
        return value


def structured(peer: Peer, cls: type[Plain] = Plain, **fields: Any) -> Plain:
    llm = peer.llm(window=2048, tokens=200, **fields)
    return llm.structured_predict(cls, PromptTemplate("Who is {who}?"), who="she")


def schema(peer: Peer) -> str:
    structured(peer)
    asked = peer.backend.prompts[0]
    told = "with doubled braces" if "{{" in asked else "as it is" if '"age"' in asked else ""
    return told or ("as `format`" if peer.backend.options[0].get("format") else "none")


def system(peer: Peer) -> str:
    def kept(fields: dict[str, Any]) -> bool:
        structured(peer, system_prompt="Be brief.", **fields)
        return "Be brief." in peer.backend.prompts[-1]

    return which({"yes": {}, "with `is_chat_model=True`": {"is_chat_model": True}}, kept)


def structured_events(peer: Peer) -> tuple[int, int]:
    with listening() as heard:
        structured(peer)
    return len(heard.of("LLMStructuredPredictStartEvent")), len(heard.of("LLMStructuredPredictEndEvent"))


def deep_copy(peer: Peer) -> bool:
    llm = peer.llm()
    return model_of(copy.deepcopy(llm)) is model_of(llm)


def companions(peer: Peer) -> bool:
    import llama_index.llms.nabla as package

    names = ("NablaEvaluator", "NablaQueryEngine", "RefineWorkflow", "NablaToolSpec", "sandboxed")
    return all(hasattr(package, name) for name in names)
