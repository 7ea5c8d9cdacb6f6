"""BaseEngine: what an engine is to whoever asks it, be it in this process or on a server."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from nabla_agents.config import Sampling
from nabla_agents.errors import ConfigurationError
from nabla_agents.request import PromptLike, Request
from nabla_agents.result import Result
from nabla_agents.run import LISTEN, Run
from nabla_agents.types import Budget, FinishReason, Prompt


class BaseEngine(ABC):
    """Renders prompts and answers requests; threads and event loops may share one. All else is said in these terms."""

    model: Any
    """Has `name`, `context_length`, `vocab_size` and `tokenizer`."""
    strategy: Any
    budget: Any
    """A `Budget`: what one prompt may cost unless a request says otherwise."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model.name!r}, strategy={type(self.strategy).__name__})"

    @abstractmethod
    def prompt(
        self, prompt: PromptLike, *, tools: Sequence[dict[str, Any]] | None = None, formatted: bool = False
    ) -> Prompt:
        """The prompt as the language model reads it; messages may be mappings with `role` and `content`."""

    @abstractmethod
    def submit(self, request: Request, *, on_demand: bool = False) -> Run:
        """Starts a search, which goes on beside others until it ends; with `on_demand`, one step further each time that
        a step is asked for. A run that nobody holds any more is cancelled.

        Raises:
            PromptError, ContextOverflowError, GrammarError, ConfigurationError: before anything is computed.
        """

    def _at_once(self) -> AbstractContextManager[Any]:
        """Within it, what is submitted begins together."""
        return nullcontext()

    def request(
        self,
        prompt: PromptLike,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        strategy: Any = None,
        tools: Sequence[dict[str, Any]] | None = None,
        formatted: bool = False,
        draft: str | None = None,
    ) -> Request:
        """What `submit` takes, with its prompt rendered. `formatted=True` takes a string verbatim instead of as a user
        turn; the rest is as in `Request`.
        """
        return Request(
            prompt=self.prompt(prompt, tools=tools, formatted=formatted),
            sampling=Sampling() if sampling is None else sampling,
            budget=budget,
            strategy=strategy,
            seed=seed,
            draft=draft,
        )

    def generate(
        self,
        prompt: PromptLike,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        strategy: Any = None,
        tools: Sequence[dict[str, Any]] | None = None,
        formatted: bool = False,
        draft: str | None = None,
    ) -> Result:
        """The best completion found within the budget; options as in `request`.

        Ctrl-C returns the best so far, which says that it was interrupted; where the search had just ended, it is
        raised.
        """
        request = self.request(
            prompt,
            budget=budget,
            seed=seed,
            sampling=sampling,
            strategy=strategy,
            tools=tools,
            formatted=formatted,
            draft=draft,
        )
        return self._drained([request], 1)[0]

    def steps(
        self,
        prompt: PromptLike,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        strategy: Any = None,
        tools: Sequence[dict[str, Any]] | None = None,
        formatted: bool = False,
        draft: str | None = None,
    ) -> Run:
        """An iterator over the search's steps, each computed when it is asked for; its `result` is the best so far at
        any time. Options as in `request`.
        """
        request = self.request(
            prompt,
            budget=budget,
            seed=seed,
            sampling=sampling,
            strategy=strategy,
            tools=tools,
            formatted=formatted,
            draft=draft,
        )
        return self.submit(request, on_demand=True)

    def generate_batch(
        self,
        prompts: Sequence[PromptLike],
        *,
        budget: Budget | None = None,
        seeds: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        strategy: Any = None,
        tools: Sequence[dict[str, Any]] | None = None,
        formatted: bool = False,
        max_batch: int = 32,
    ) -> list[Result]:
        """One result per prompt, in float32 that of `generate` for the same seed; in half precision what shares a batch
        may tip a token. What the prompts need is computed together, `max_batch` prompts at a time. Every prompt has the
        whole budget; seeds default to 0, 1, 2, ...
        `usage.seconds` is the batch's wall-clock shared out by FLOPs. Ctrl-C returns what each has by then; where all
        had just ended, it is raised.

        The first error of a prompt is raised when all have ended.
        """
        seeds = _seeds(prompts, seeds, max_batch)
        requests = [
            self.request(
                prompt,
                budget=budget,
                seed=seed,
                sampling=sampling,
                strategy=strategy,
                tools=tools,
                formatted=formatted,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        started = time.perf_counter()
        results = self._drained(requests, max_batch)
        seconds, flops = time.perf_counter() - started, sum(r.usage.flops for r in results)
        return [
            r.with_usage(replace(r.usage, seconds=seconds * (r.usage.flops / flops if flops else 1 / len(results))))
            for r in results
        ]

    def _drained(self, requests: Sequence[Request], max_batch: int) -> list[Result]:
        """The results of requests of which `max_batch` run at a time."""
        free, runs = threading.Semaphore(0), list[Run]()
        interrupt: KeyboardInterrupt | None = None

        def begin(request: Request) -> None:
            runs.append(self.submit(request))
            runs[-1].add_done_callback(lambda _: free.release())

        try:
            with self._at_once():
                for request in requests[:max_batch]:
                    begin(request)
            for request in requests[max_batch:]:
                free.acquire()
                begin(request)
            _wait_for(runs)
        except KeyboardInterrupt as e:
            interrupt = e
        if interrupt is not None:
            for request in requests[len(runs) :]:
                runs.append(self.submit(request, on_demand=True))
            for run in runs:
                run.cancel()
            _wait_for(runs)
        results = [run.drain() for run in runs]
        if interrupt is not None and all(r.finish_reason is not FinishReason.INTERRUPTED for r in results):
            raise interrupt  # else nobody would hear of it
        return results


def _wait_for(runs: Sequence[Run]) -> None:
    """Until all have ended, however they do."""
    for run in runs:
        ended = threading.Event()
        run.add_done_callback(lambda _, ended=ended: ended.set())
        while not ended.wait(LISTEN):
            pass


def _seeds(prompts: Any, seeds: Any, max_batch: Any) -> Sequence[int]:
    """One seed per prompt of a batch."""
    if not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 1:
        raise ConfigurationError(f"max_batch is {max_batch!r}; expected a whole number of at least 1.")
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise ConfigurationError(f"generate_batch got {prompts!r}; expected a list of prompts.")
    seeds = range(len(prompts)) if seeds is None else seeds
    if not isinstance(seeds, Sequence):
        raise ConfigurationError(f"seeds is {seeds!r}; expected a list of integers.")
    if len(seeds) != len(prompts):
        raise ConfigurationError(f"Got {len(seeds)} seeds for {len(prompts)} prompts; expected one each.")
    return seeds
