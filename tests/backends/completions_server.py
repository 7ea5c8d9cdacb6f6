"""A small server of the completions protocol with token ids, as vLLM speaks it, from a model of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from nabla_agents import FinishReason, LanguageModel, Prompt, Sampling
from nabla_agents.models.rows import RolloutJob

Fault = Callable[[dict[str, Any]], Any]  # of what would be answered: another body, or a whole Response


class CompletionsServer:
    """`/v1/models` and `/v1/completions` of one model. `faults` befall the next completion requests, one each (None
    for none); `seen` are the bodies that came, `keys` the authorisation of each.
    """

    url: str

    def __init__(self, model: LanguageModel) -> None:
        self._turn = threading.Lock()
        routes = [Route("/v1/models", self._models), Route("/v1/completions", self._complete, methods=["POST"])]
        self.app = Starlette(routes=routes)
        self.reset(model)

    def reset(self, model: LanguageModel) -> None:
        """As it is to begin with."""
        self.model, self.name, self.scaled, self.lists_models = model, "tiny", False, True
        self.faults: list[Fault | None] = []
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.max_model_len: int | None = model.context_length

    @contextmanager
    def running(self) -> Iterator[None]:
        """It runs, at `url`."""
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(timeout=20)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The requests after the greeting of the first call."""
        return [body for body in self.seen if body["temperature"] != 2.0]

    async def _models(self, _: Request) -> Response:
        if not self.lists_models:
            return refused(404, "Not Found")
        entry = {"id": self.name, "object": "model", "max_model_len": self.max_model_len}
        return JSONResponse({"object": "list", "data": [entry]})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.keys.append(request.headers.get("authorization"))
        self.seen.append(body)
        fault = self.faults.pop(0) if self.faults else None
        if body["model"] != self.name:
            return refused(404, f"The model `{body['model']}` does not exist.")
        if body["n"] > 1 and body["temperature"] == 0:
            return refused(400, "n must be 1 when using greedy sampling.")
        answer: Any = self.answer(body)
        answer = answer if fault is None else fault(answer)
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the model writes; the i-th choice by the seed and i."""
        sampling = Sampling(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=None if body["top_k"] == -1 else body["top_k"],
            min_p=body["min_p"],
            stop=body["stop"],
        )
        prompt, room = Prompt((), "", tuple(body["prompt"])), body["max_tokens"]
        jobs = [
            RolloutJob(prompt, (), sampling, room, torch.rand(room, generator=seeded(body["seed"] + i)))
            for i in range(body["n"])
        ]
        with self._turn:
            rollouts = self.model.rollout(jobs)
        scale = body["temperature"] if self.scaled and body["temperature"] else 1.0
        return {
            "object": "text_completion",
            "model": self.name,
            "choices": [
                {
                    "index": i,
                    "text": rollout.text,
                    "finish_reason": "stop" if rollout.finish_reason is FinishReason.STOP else "length",
                    "token_ids": list(rollout.completion_ids),
                    "prompt_token_ids": body["prompt"],
                    # Scaled ones are only near to those at the temperature, which is all that a test needs of them.
                    "logprobs": {"token_logprobs": [p / scale for p in rollout.log_probs.tolist()]},
                }
                for i, rollout in enumerate(rollouts)
            ],
            "usage": {"prompt_tokens": len(prompt.ids), "prompt_tokens_details": {"cached_tokens": 0}},
        }


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def refused(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": status}}, status_code=status, headers=headers)


# ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────


def busy(status: int, **headers: str) -> Fault:
    return lambda _: refused(status, "try later", **headers)


def garbage(_: dict[str, Any]) -> Response:
    return PlainTextResponse("<html>bad gateway</html>")


def broken_off(answer: dict[str, Any]) -> Response:
    """The connection is lost in the middle of the answer."""

    async def half() -> AsyncIterator[bytes]:
        yield b'{"choices": ['
        raise ConnectionResetError("lost")

    return StreamingResponse(half(), media_type="application/json")


def fewer(count: int) -> Fault:
    return lambda answer: {**answer, "choices": answer["choices"][: len(answer["choices"]) - count]}


def changed(**changes: Any) -> Fault:
    """Every choice with some fields changed."""
    return lambda answer: {**answer, "choices": [{**choice, **changes} for choice in answer["choices"]]}
