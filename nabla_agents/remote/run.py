"""RemoteRun: a search in progress on a server, with the face of `Run`."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import httpx

from nabla_agents.config import Sampling
from nabla_agents.errors import ConfigurationError, RemoteError
from nabla_agents.remote.endpoint import Endpoint
from nabla_agents.remote.model import RemoteTokenizer
from nabla_agents.remote.strategy import RemotePool, RemoteStrategy
from nabla_agents.result import Result
from nabla_agents.trace import Trace
from nabla_agents.types import Budget, FinishReason, Prompt, Step, Usage
from nabla_agents.wire import STEPS, SentResult, SentStep


class RemoteSearch:
    """What a strategy has of a search that runs elsewhere: its steps, its pool, and `cancel`, from any thread."""

    def __init__(
        self,
        endpoint: Endpoint,
        body: Mapping[str, Any],
        *,
        prompt: Prompt,
        sampling: Sampling,
        budget: Budget | None,
        seed: int,
        tokenizer: RemoteTokenizer,
    ) -> None:
        self.prompt, self.sampling, self.budget, self.seed = prompt, sampling, budget, seed
        self.pool = RemotePool()
        self.usage = Usage()
        self.last: Step | None = None
        self.result: SentResult | None = None
        self.cancelled = False
        self._endpoint, self._body, self._tokenizer = endpoint, body, tokenizer
        self._response: httpx.Response | None = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ConfigurationError(
            f"This strategy asks a search for {name!r}, which it has only where its model is: on the server. Have the "
            "server offer the strategy under a name, and ask for RemoteStrategy(name)."
        )

    def ask(self, strategy: RemoteStrategy) -> Iterator[Step]:
        """The steps that the server's strategy makes, as they come; the last one, of the whole answer, is kept.

        Raises:
            RemoteError: it broke off; and what `Endpoint.stream` raises.
        """
        wish = {**self._body["nabla"], **({} if strategy.name is None else {"strategy": strategy.wire})}
        if self.cancelled:
            return
        response = self._endpoint.stream(STEPS, {**self._body, "nabla": wish})
        with self._lock:
            self._response = response
        try:
            for item in self._items(response):
                if "step" in item:
                    step = SentStep.model_validate(item).step
                    self.usage = step.usage
                    if step.done:
                        self.last = step
                        continue
                    self.pool.add(step)
                    yield step
                else:
                    self.result = SentResult.model_validate(item["result"])
                    self._tokenizer.learn(self.result.token_ids, self.result.token_texts)
            if self.result is None and not self.cancelled:
                raise self._endpoint.broken("it ended before its result")
        finally:
            self.close()

    def _items(self, response: httpx.Response) -> Iterator[Any]:
        """The data of the events; ends where the search was cancelled."""
        try:
            for line in response.iter_lines():
                if self.cancelled:
                    return
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                item = json.loads(line.removeprefix("data: "))
                if "error" in item:
                    raise RemoteError(f"{self._endpoint.base_url}: {item['error'].get('message')}")
                yield item
        except (httpx.HTTPError, httpx.StreamError, ValueError) as e:
            if not self.cancelled:
                raise self._endpoint.broken(f"{type(e).__name__}: {e}") from e

    def cancel(self) -> None:
        """Ends the search: the server hears it at once, since the connection is shut."""
        self.cancelled = True
        with self._lock:
            response = self._response
        if response is not None and not response.is_closed:
            stream = response.extensions.get("network_stream")
            connection = None if stream is None else stream.get_extra_info("socket")
            if connection is not None:
                with suppress(OSError):  # gone already
                    connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for the next step

    def close(self) -> None:
        with self._lock:
            response, self._response = self._response, None
        if response is not None:
            response.close()


class RemoteRun(Iterator[Step]):
    """A search in progress on a server. The last step is of kind `commit`; `result` is the best so far.

    `cancel()`, from any thread, ends the search before its next operation.
    """

    def __init__(self, search: RemoteSearch, strategy: Any, tokenizer: RemoteTokenizer) -> None:
        self._search, self._strategy, self._tokenizer = search, strategy, tokenizer
        self._steps: Iterator[Step] = strategy.steps(search)
        self._trace: list[Step] = []
        self._finished = False
        self._ended: tuple[FinishReason, str] | None = None

    def __next__(self) -> Step:
        if self._finished:
            raise StopIteration
        try:
            step = next(self._steps, None)
        except KeyboardInterrupt:
            self.interrupt()
            step = None
        except BaseException as e:
            self._finished = True
            self._ended = (FinishReason.INTERRUPTED, f"{type(e).__name__}: {e}")
            self._search.cancel()
            raise
        if step is None:
            self._finished = True
            if self._search.result is None and not self._search.cancelled:  # what wraps the strategy has seen enough
                self._ended = (FinishReason.STOP, "good enough")
                self._search.cancel()
            step = self._search.last or self._last_step()
        self._trace.append(step)
        return step

    def cancel(self) -> None:
        self._search.cancel()

    def interrupt(self) -> None:
        """Ends the run here; `result` says that it was interrupted."""
        self._search.cancel()
        self._ended = (FinishReason.INTERRUPTED, "stopped by the caller")

    def drain(self) -> Result:
        """Runs to the end and returns the result."""
        for _ in self:
            pass
        return self.result

    @property
    def result(self) -> Result:
        trace = Trace(self._trace, question=self._search.prompt.question)
        if self._search.result is not None and self._ended is None:
            return self._search.result.with_trace(trace)
        best = self._search.pool.best()
        text = "" if best is None else best.text
        why = "stopped by the caller" if self._search.cancelled else "not run to its end"
        reason, detail = self._ended or (FinishReason.INTERRUPTED, why)
        return Result(
            text=text,
            token_ids=tuple(self._tokenizer.encode(text)) if text else (),
            score=None if best is None else best.score,
            finish_reason=reason,
            usage=self._search.usage,
            trace=trace,
            log_likelihood=float("nan") if best is None else best.log_likelihood,
            detail=detail,
            seed=self._search.seed,
            prompt_tokens=len(self._search.prompt.ids),
        )

    def _last_step(self) -> Step:
        best = self._search.pool.best()
        text = "" if best is None else best.text
        return Step(
            kind="commit",
            committed_text=text,
            accepted=True,
            log_likelihood=float("nan") if best is None else best.log_likelihood,
            score=None if best is None else best.score,
            text=text,
            usage=self._search.usage,
            done=True,
        )
