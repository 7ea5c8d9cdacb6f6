"""RemoteSearch: a search on a server, behind a `Run`: a thread reads its steps as they come."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

import httpx

from nabla_agents.backends.body import BodyError, Incoming
from nabla_agents.backends.deadline import Stop
from nabla_agents.backends.http import HttpClient
from nabla_agents.errors import NablaError, RemoteError
from nabla_agents.json_text import read_json
from nabla_agents.remote.model import RemoteModel
from nabla_agents.remote.received import read_result, read_step
from nabla_agents.request import Request
from nabla_agents.result import Result, Trace
from nabla_agents.run import Run
from nabla_agents.serialization import STEPS, SentResult
from nabla_agents.types import FinishReason, Step, Usage

_MOST_KEPT: Final = 1 << 28  # bytes of steps that a trace keeps


class RemoteSearch:
    """The `Progress` of a search that a server does; it is asked for with the first step that is wanted.

    Args:
        places: as many searches as this lets in are asked for at a time.
    """

    def __init__(
        self,
        http: HttpClient,
        body: Mapping[str, Any],
        request: Request,
        model: RemoteModel,
        *,
        places: threading.Semaphore,
    ) -> None:
        self._http, self._body, self._request = http, body, request
        self._model, self._places = model, places
        self._usage = Usage()
        self._best: Step | None = None  # the last one accepted
        self._ended: tuple[FinishReason, str] | None = None
        self._sent: SentResult | None = None
        self._cancelled, self._began = Stop(), False
        self._lock = threading.Lock()
        self._run: weakref.ref[Run] | None = None

    @property
    def doing(self) -> None:
        """What a server is at is not known."""

    def serve(self, run: Run) -> None:
        """The run that wants the steps, from now on."""
        self._run = weakref.ref(run)
        if run.wanted:
            self.wake()

    def wake(self) -> None:
        with self._lock:
            began, self._began = self._began, True
        if not began:
            threading.Thread(target=self._work, name="nabla-remote", daemon=True).start()

    def cancel(self) -> None:
        """Ends the search: the server hears it at once, since the connection is shut."""
        self._cancelled.set()  # wakes the thread that waits for the next step
        self.wake()

    def result(self, steps: Sequence[Step], *, ended: bool) -> Result:
        trace = Trace(steps, question=self._request.prompt.question)
        if self._sent is not None and self._ended is None:
            return self._sent.with_trace(trace)
        why = "stopped by the caller" if self._cancelled.is_set() else "not run to its end"
        reason, detail = self._ended or (FinishReason.INTERRUPTED, why)
        best = self._last_step()
        return Result(
            text=best.text,
            token_ids=self._ids(best.text) if ended else (),
            score=best.score,
            finish_reason=reason,
            usage=self._usage,
            trace=trace,
            log_likelihood=best.log_likelihood,
            detail=detail,
            seed=self._request.seed,
            prompt_tokens=len(self._request.prompt.ids),
        )

    def _last_step(self) -> Step:
        """The best so far, as the end of a search that the server did not end."""
        best = self._best
        text = "" if best is None else best.text
        return Step(
            kind="commit",
            committed_text=text,
            accepted=True,
            log_likelihood=math.nan if best is None else best.log_likelihood,
            score=None if best is None else best.score,
            text=text,
            usage=self._usage,
            done=True,
        )

    def _ids(self, text: str) -> tuple[int, ...]:
        """Of a text that the server did not send the ids of; none where it is not there any more."""
        try:
            return tuple(self._model.tokenizer.encode(text))
        except NablaError:
            return ()

    # ── on a thread of its own ────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            with self._places:
                last = self._read()
            self._put(last or self._last_step())
        except BaseException as e:
            error, self._ended = e, (FinishReason.INTERRUPTED, f"{type(e).__name__}: {e}")
        if self._run is not None and (run := self._run()) is not None:
            run.end(error)

    def _read(self) -> Step | None:
        """Hands on the steps that the server makes, as they come; returns the last one, of the whole answer.

        Raises:
            RemoteError: it broke off; and what `HttpClient.stream` raises.
        """
        if self._cancelled.is_set():
            return None
        try:
            incoming = self._http.stream(STEPS, self._body, stopped=self._cancelled)
        except NablaError:
            if self._cancelled.is_set():
                return None
            raise
        with closing(incoming):
            last = self._heed(self._items(incoming))
        if self._sent is None and self._ended is None and not self._cancelled.is_set():
            raise self._broken("it ended before its result")
        return last

    def _heed(self, items: Iterator[Any]) -> Step | None:
        """As `_read`, of what has come; ends before the last step where a text is good enough."""
        last, committed, url, until = None, "", self._http.url, self._request.until
        for item in items:
            if self._sent is not None or (last is not None and "step" in item):
                raise self._broken("it went on after its end")
            if "step" not in item:
                self._sent = self._result_of(item.get("result"))
                continue
            step = read_step(item, url)
            if not step.committed_text.startswith(committed):
                raise self._broken("it took back text that was committed")
            committed, self._usage = step.committed_text, step.usage
            if step.done:
                last = step
                continue
            if step.accepted or self._best is None:
                self._best = step
            self._put(step)
            if until is not None and step.kind != "token" and step.accepted and until(step):
                self._ended = (FinishReason.STOP, "good enough")
                return None
        return last

    def _result_of(self, item: Any) -> SentResult:
        seed, vocab_size = self._request.seed, self._model.vocab_size
        result = read_result(item, self._http.url, seed=seed, vocab_size=vocab_size)
        self._model.tokenizer.learn(result.token_ids, result.token_texts)
        return result

    def _put(self, step: Step) -> None:
        run = None if self._run is None else self._run()
        if run is not None:
            run.put(step)

    def _items(self, incoming: Incoming) -> Iterator[dict[str, Any]]:
        """The data of the events, up to the mark of their end; ends where the search was cancelled.

        Raises:
            RemoteError: it broke off before, or is no stream of events.
        """
        if incoming.content_type != "text/event-stream":
            raise RemoteError(f"{self._http.url} gave no stream of events; is it a server of `nabla serve`?")
        kept = 0
        try:
            for line in incoming.lines():
                if self._cancelled.is_set() or line == b"data: [DONE]":
                    return
                if not line.startswith(b"data: "):
                    continue
                item: Any = read_json(line.removeprefix(b"data: "), nan=True)
                if not isinstance(item, dict):
                    raise self._broken("an event is no JSON object")
                if "error" in item:
                    error: Any = item["error"]
                    message = error.get("message") if isinstance(error, dict) else error
                    raise RemoteError(f"{self._http.url}: {str(message)[:2000]}")
                kept += 0 if _is_token(item) else len(line)
                if kept > _MOST_KEPT:
                    raise self._broken(f"more than {_MOST_KEPT >> 20} MiB of steps")
                yield item
        except (httpx.HTTPError, httpx.StreamError, BodyError, ValueError) as e:
            if not self._cancelled.is_set():
                raise self._broken(f"{type(e).__name__}: {str(e)[:300]}") from e
        else:
            if not self._cancelled.is_set():
                raise self._broken("it ended without a mark of its end")

    def _broken(self, why: str) -> RemoteError:
        """The error of an answer that broke off."""
        return RemoteError(
            f"The answer of {self._http.url} broke off ({why}). Nothing was resumed; ask again: the same seed gives "
            "the same answer."
        )


def _is_token(item: dict[str, Any]) -> bool:
    """Whether an event is a step that no trace keeps."""
    step = item.get("step")
    return isinstance(step, dict) and step.get("kind") == "token"
