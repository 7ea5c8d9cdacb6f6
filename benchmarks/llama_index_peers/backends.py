"""LlamaIndex's local integrations, each over a back end that keeps what it was asked.

What runs is the integration's own code. NablaLLM and HuggingFaceLLM have the embedded model, or, where a probe needs
certain words, its tokenizer and template with a script. Ollama has its own client, whose HTTP requests are answered
here; vLLM and llama.cpp, compiled code that is not needed, have stand-ins of the few methods that are called.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from llama_index.llms.nabla import NablaLLM
from nabla_agents import Budget, Engine, ImplicitReward
from nabla_agents.testing import scripted_model

WINDOW = 512
ROLLOUTS = 3  # that NablaLLM may spend on an answer
CALLER: ContextVar[str] = ContextVar("CALLER", default="nobody")
Make = Callable[..., Any]


@dataclass
class Backend:
    """What answers: a script, or, without `says` and `calls`, the embedded model (where it cannot run: "It is 7.")."""

    says: str = ""
    heeds: dict[str, str] = field(default_factory=dict)  # what it says instead, by a part of the prompt
    thinks: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None
    loaded: dict[str, Any] | None = None  # the options that it was loaded with
    prompts: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)

    @property
    def scripted(self) -> bool:
        return bool(self.says or self.calls or self.thinks)

    def hear(self, prompt: str, options: dict[str, Any]) -> None:
        self.prompts.append(prompt)
        self.options.append(options)
        self.callers.append(CALLER.get())
        if self.error is not None:
            raise self.error

    def text(self, prompt: str, stop: Any = None) -> str:
        said = next((said for part, said in self.heeds.items() if part in prompt), self.says or "It is 7.")
        return said.partition(stop[0])[0] if stop else said

    def marked(self, prompt: str, stop: Any = None) -> str:
        """The answer with thoughts and calls as a chat template marks them."""
        thought = f"<think>{self.thinks}</think>\n" if self.thinks else ""
        calls = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in self.calls)
        return thought + (calls or self.text(prompt, stop))


# ── nabla and huggingface: the embedded model ─────────────────────────────────────────────────────────────────────────


@cache
def _tiny() -> tuple[Any, Any]:
    """The embedded language model and reward, read once."""
    return Engine.tiny().model, ImplicitReward.from_pretrained("tiny")


@dataclass
class _Rollouts:
    backend: Backend
    model: Any

    def rollout(self, jobs: Any) -> Any:
        for job in jobs:
            self.backend.hear(job.prompt.text, vars(job.sampling))
        time.sleep(self.backend.seconds)
        return self.model.rollout(jobs)


def nabla(backend: Backend, *, tokens: int = 30, window: int = WINDOW, **fields: Any) -> NablaLLM:
    (model, reward), rollouts = _tiny(), ROLLOUTS
    if backend.scripted:
        model, reward, rollouts = scripted_model(backend.marked), None, 1
    engine = Engine(model=model, reward=reward, rollouts=_Rollouts(backend, model), budget=Budget(rollouts=rollouts))
    return NablaLLM(engine=engine, max_tokens=tokens, context_window=window, **fields)


@dataclass
class _Generate:
    backend: Backend
    module: Any
    tokenizer: Any

    def __call__(self, input_ids: Any, streamer: Any = None, **options: Any) -> Any:
        prompt = self.tokenizer.decode(input_ids[0])
        self.backend.hear(prompt, options)
        time.sleep(self.backend.seconds)
        if not self.backend.scripted:
            return type(self.module).generate(self.module, input_ids, streamer=streamer, **options)
        said = torch.tensor([self.tokenizer.encode(self.backend.marked(prompt), add_special_tokens=False)])
        if streamer is not None:
            for tokens in (input_ids, *said[0, :, None]):
                streamer.put(tokens)
            streamer.end()
        return torch.cat([input_ids, said], 1)


def huggingface(backend: Backend, *, tokens: int = 30, window: int = WINDOW, **fields: Any) -> Any:
    from llama_index.llms.huggingface import HuggingFaceLLM

    model, _ = _tiny()
    module, tokenizer = model.transformer.module, model.tokenizer.hf
    module.generate = _Generate(backend, module, tokenizer)
    given = {"generate_kwargs": {"do_sample": False}, **fields}
    return HuggingFaceLLM(model=module, tokenizer=tokenizer, max_new_tokens=tokens, context_window=window, **given)


# ── vllm and llama-cpp: stand-ins of compiled packages ────────────────────────────────────────────────────────────────

_VLLM_KNOWS = {
    *("n", "best_of", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "logprobs", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "structured_outputs"),
}


def vllm(backend: Backend, *, tokens: int = 30, window: int = WINDOW, **fields: Any) -> Any:
    def sampling_params(**options: Any) -> dict[str, Any]:
        if unknown := options.keys() - _VLLM_KNOWS:
            raise TypeError(f"unexpected keyword arguments {unknown}")
        return options

    class Model:
        def __init__(self, **options: Any) -> None:
            backend.loaded = options

        def generate(self, prompts: list[str], options: dict[str, Any]) -> Any:
            backend.hear(prompts[0], options)
            time.sleep(backend.seconds)
            return [SimpleNamespace(outputs=[SimpleNamespace(text=backend.marked(prompts[0], options["stop"]))])]

    sys.modules["vllm"] = _module(LLM=Model, SamplingParams=sampling_params)
    from llama_index.llms.vllm import Vllm

    return Vllm(max_new_tokens=tokens, **{"vllm_kwargs": {"max_model_len": window}, **fields})


@dataclass
class _Llama:
    """Is copied and pickled, as llama-cpp-python's is: by being loaded again."""

    backend: Backend
    n: int

    @property
    def context_params(self) -> Any:
        return SimpleNamespace(n_ctx=self.n)

    def n_ctx(self) -> int:
        return self.n

    def __call__(self, prompt: str, **options: Any) -> Any:
        self.backend.hear(prompt, options)
        time.sleep(self.backend.seconds)
        text = self.backend.marked(prompt, options.get("stop"))
        if options["stream"]:
            return ({"choices": [{"text": part}]} for part in _parts(text))
        return {"choices": [{"text": text}], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}


def llama_cpp(backend: Backend, *, tokens: int = 30, window: int = WINDOW, **fields: Any) -> Any:
    def load(n_ctx: int, **options: Any) -> _Llama:
        backend.loaded = options
        return _Llama(backend, n_ctx)

    sys.modules["llama_cpp"] = _module(Llama=load)
    import llama_index.llms.llama_cpp.base as module

    module.Llama = load
    return module.LlamaCPP(model_path=__file__, max_new_tokens=tokens, context_window=window, verbose=False, **fields)


def _module(**parts: Any) -> Any:
    module: Any = types.ModuleType("stand-in")
    vars(module).update(parts)
    return module


def _parts(text: str) -> Iterator[str]:
    yield text[: len(text) // 2]
    yield text[len(text) // 2 :]


# ── ollama: its client, with the server's answers ─────────────────────────────────────────────────────────────────────


def ollama(backend: Backend, *, tokens: int = 30, window: int = WINDOW, **fields: Any) -> Any:
    import asyncio

    import httpx
    from llama_index.llms.ollama import Ollama
    from ollama import AsyncClient, Client

    def answer(request: Any) -> Any:
        asked = json.loads(request.content)
        prompt = "\n".join(str(message["content"]) for message in asked["messages"])
        backend.hear(prompt, asked)
        text = backend.text(prompt, asked["options"].get("stop"))
        parts: list[dict[str, Any]] = [{"content": part} for part in (_parts(text) if asked["stream"] else [text])]
        parts[-1].update(thinking=backend.thinks or None, tool_calls=[{"function": call} for call in backend.calls])
        lines: list[dict[str, Any]] = [{"message": {"role": "assistant", **part}} for part in parts]
        lines[-1].update(done=True, prompt_eval_count=5, eval_count=3)
        return httpx.Response(200, text="\n".join(map(json.dumps, lines)))

    def soon(request: Any) -> Any:
        time.sleep(backend.seconds)
        return answer(request)

    async def later(request: Any) -> Any:
        await asyncio.sleep(backend.seconds)
        return answer(request)

    llm = Ollama(model="m", context_window=window, **{"additional_kwargs": {"num_predict": tokens}, **fields})
    llm._client = Client(transport=httpx.MockTransport(soon))
    llm._async_client = AsyncClient(transport=httpx.MockTransport(later))
    return llm


MAKERS: dict[str, Make] = {
    "nabla": nabla,
    "huggingface": huggingface,
    "vllm": vllm,
    "llama-cpp": llama_cpp,
    "ollama": ollama,
}


def installed() -> dict[str, Make]:
    """Those whose package is there."""
    there = {}
    for name, make in MAKERS.items():
        with contextlib.suppress(ImportError):
            make(Backend())
            there[name] = make
    return there
