"""What LlamaIndex's other local integrations do, by running them.

    pip install llama-index-llms-huggingface llama-index-llms-ollama llama-index-llms-llama-cpp llama-index-llms-vllm
    python benchmarks/llama_index_peers.py

HuggingFaceLLM runs the embedded model. The back ends of the others, a server and two compiled packages, are not needed
for what the source of their classes says: bases, whether async methods call blocking ones, whether streams are there.
Those that are not installed are left out.
"""

import ast
import asyncio
import importlib.util
import inspect
import sys
import textwrap
import time
import types
from collections.abc import Callable
from typing import Any

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index_instrumentation import get_dispatcher
from pydantic import Field

from llama_index.llms.nabla import NablaLLM
from nabla_agents import Engine

PEERS = {
    "nabla": ("llama_index.llms.nabla", "NablaLLM"),
    "huggingface": ("llama_index.llms.huggingface", "HuggingFaceLLM"),
    "vllm": ("llama_index.llms.vllm", "Vllm"),
    "llama-cpp": ("llama_index.llms.llama_cpp", "LlamaCPP"),
    "ollama": ("llama_index.llms.ollama", "Ollama"),
}
ASYNC = ("achat", "acomplete", "astream_chat", "astream_complete")
MESSAGES = [ChatMessage(role="user", content="What is 3 + 4?")]


class Events(BaseEventHandler):
    """How many chats and completions were said to begin."""

    begun: list[str] = Field(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        if type(event).__name__ in ("LLMChatStartEvent", "LLMCompletionStartEvent"):
            self.begun.append(type(event).__name__)


def main() -> None:
    for compiled in ("llama_cpp", "vllm"):
        if importlib.util.find_spec(compiled) is None:
            sys.modules[compiled] = types.ModuleType(compiled)
            sys.modules[compiled].Llama = object  # type: ignore[attr-defined]
    for name, (module, cls) in PEERS.items():
        try:
            kind = getattr(importlib.import_module(module), cls)
        except ImportError as e:
            print(f"{name}: not installed ({e})")
            continue
        print(f"{name}: " + "; ".join(f"{what} {how}" for what, how in of_class(kind).items()))
    engine = Engine.tiny()
    built: dict[str, Callable[[], LLM]] = {"nabla": lambda: NablaLLM(engine=engine, max_tokens=40)}
    built["huggingface"] = lambda: huggingface(engine)
    for name, make in built.items():
        try:
            facts = asyncio.run(of_object(make()))
        except ImportError:
            continue
        print(f"\n{name}, run with the embedded model")
        for what, how in facts.items():
            print(f"    {what}: {how}")


def of_class(kind: type[LLM]) -> dict[str, str]:
    base = next(b.__name__ for b in kind.__mro__[1:] if b in (FunctionCallingLLM, CustomLLM, LLM))
    free = [name for name in ASYNC if works(kind, name, blocking=("chat", "complete"))]
    streams = [name for name in ("stream_chat", "stream_complete") if works(kind, name)]
    return {"base": base, "async methods that do not block": f"{len(free)} of 4", "streams": f"{len(streams)} of 2"}


def works(kind: type[LLM], name: str, blocking: tuple[str, ...] = ()) -> bool:
    """Whether a class outside LlamaIndex's core has a method of this name that neither refuses nor calls those."""
    for base in kind.__mro__:
        if base.__module__.startswith("llama_index.core"):
            return not blocking and base is CustomLLM and name == "stream_chat"  # by way of stream_complete
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                calls = [ast.unparse(c.func) for c in ast.walk(node) if isinstance(c, ast.Call)]
                refuses = any(isinstance(statement, ast.Raise) for statement in node.body)
                return not refuses and not any(f"self.{sync}" in calls for sync in blocking)
    return False


def huggingface(engine: Engine) -> LLM:
    from llama_index.llms.huggingface import HuggingFaceLLM

    hf, module = engine.model.tokenizer.hf, engine.model.transformer.module
    return HuggingFaceLLM(model=module, tokenizer=hf, max_new_tokens=40, context_window=2048)


async def of_object(llm: LLM) -> dict[str, Any]:
    handler = Events()
    get_dispatcher().add_event_handler(handler)
    answer = llm.chat(MESSAGES)
    events = list(handler.begun)
    ticks, seconds = await ticks_during(llm.achat(MESSAGES))
    get_dispatcher().event_handlers.remove(handler)
    try:
        cut = llm.chat(MESSAGES, stop=[str(answer.message.content)[1:3]]).message.content
        stopped = "honoured" if len(cut or "") < len(answer.message.content or "") else "ignored"
    except Exception as e:
        stopped = f"{type(e).__name__}: {e}"[:90]
    try:
        llm.chat(MESSAGES, temprature=3)
        typo = "ignored"
    except Exception as e:
        typo = f"{type(e).__name__}"
    raw: Any = answer.raw
    return {
        "start events of one chat": events,
        "event loop while awaiting achat": f"{ticks} ticks of 5 ms in {seconds:.2f} s",
        "stop= of a call": stopped,
        "unknown option of a call": typo,
        "usage in raw": raw.get("usage") if isinstance(raw, dict) else type(raw).__name__,
        "logprobs": "yes" if logprobs(llm) else "no",
        "metadata": llm.metadata.model_dump(include={"context_window", "num_output", "is_function_calling_model"}),
    }


def logprobs(llm: LLM) -> bool:
    try:
        return bool(llm.chat(MESSAGES, logprobs=True).logprobs)
    except Exception:
        return False


async def ticks_during(awaitable: Any) -> tuple[int, float]:
    ticks, started = 0, time.perf_counter()

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await awaitable
    ticker.cancel()
    return ticks, time.perf_counter() - started


if __name__ == "__main__":
    main()
