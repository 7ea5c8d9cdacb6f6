"""ServerRollouts: completions sampled by an OpenAI-compatible server, while the local model has the gradient."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nabla_agents.backends.completions import Choice, complete, rollout_error
from nabla_agents.backends.formats import VLLM, ServerFormat
from nabla_agents.backends.handshake import Served, check_tokens, shake_hands
from nabla_agents.backends.http import HttpClient
from nabla_agents.backends.local import ending, log_probs
from nabla_agents.config import Sampling
from nabla_agents.errors import ConfigurationError, RolloutError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.rows import RolloutJob
from nabla_agents.types import FinishReason, Rollout, Usage

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class _Request:
    """Jobs that one request can answer: they go on from the same tokens in the same way."""

    context: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    jobs: tuple[int, ...]


@dataclass(frozen=True)
class _Sampled:
    """What the server gave a job, and what that cost it."""

    choice: Choice
    usage: Usage


class ServerRollouts:
    """A rollout backend for `Engine(rollouts=...)`: a server of the same model samples, in place of the local one.

    Jobs that go on from the same tokens are one request for several choices; requests are sent in the order of their
    tokens, `concurrency` at a time, so that a prefix cache finds what they share. What fails is tried again `attempts`
    times in all, choices that are missing are asked for anew, and what is still missing then is an error, never a
    shorter list. Jobs with a grammar run on the local model: no server takes one up in the middle of a completion.

    The first call asks for eight tokens more, to compare the server's vocabulary, text and log-probabilities with those
    of the local model; `tolerance_nats` is how far the latter may differ on average (quantised weights differ by about
    0.1). Log π of what the server did not sample, a changed token above all, is read by the local model. The ledger
    counts what the server computed as if it had run here, prompt tokens without those that it reports as cached; what
    was lost with a broken connection is not in it.

    Args:
        url: the address up to and including `/v1`.
        model: the local language model, with the same weights as the server's, up to their precision.
        served_model: its name there; may be left out where the server has only one.
        format: what differs between servers; `VLLM`, `SGLANG`, or a `ServerFormat` of your own.
        timeout_seconds: that an attempt may take in all, however slowly or endlessly the server sends.
        client: for proxies, certificates or headers of your own.

    Raises:
        ConfigurationError: settings that cannot work; httpx or tenacity is not installed.
        ModelMismatchError, VocabularyMismatchError: by the first call, where the server is not what was declared.
        RolloutError: the server refuses a request, or failed as often as was tried.
    """

    def __init__(
        self,
        url: str,
        model: LanguageModel,
        *,
        served_model: str | None = None,
        format: ServerFormat = VLLM,
        api_key: str | None = None,
        attempts: int = 5,
        timeout_seconds: float = 600.0,
        concurrency: int = 32,
        tolerance_nats: float = 0.5,
        client: httpx.Client | None = None,
    ) -> None:
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise ConfigurationError(f"concurrency is {concurrency!r}; expected a whole number of at least 1.")
        for name, limit in (("timeout_seconds", timeout_seconds), ("tolerance_nats", tolerance_nats)):
            if not isinstance(limit, int | float) or not limit > 0:
                raise ConfigurationError(f"{name} is {limit!r}; expected a number above 0.")
        self._http = HttpClient(
            url, error=rollout_error, api_key=api_key, attempts=attempts, timeout=timeout_seconds, client=client
        )
        self._model, self._format = model, format
        self._attempts, self._concurrency, self._tolerance = attempts, concurrency, tolerance_nats
        self._served_name, self._first = served_model, threading.Lock()
        self._served: Served | None = None

    def __enter__(self) -> ServerRollouts:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        """One rollout per job, in the order of the jobs."""
        rollouts: dict[int, Rollout] = {}
        with_grammar = [i for i, job in enumerate(jobs) if job.sampling.grammar is not None]
        if with_grammar:
            rollouts |= zip(with_grammar, self._model.rollout([jobs[i] for i in with_grammar]), strict=True)
        mine = [i for i in range(len(jobs)) if i not in rollouts]
        endings = {i: ending(self._model, jobs[i]) for i in mine}
        sampled = self._sample({i: jobs[i] for i in mine if endings[i].reason is None})
        endings |= {i: ending(self._model, jobs[i], sampled[i].choice) for i in sampled}
        judged = {i: s.choice for i, s in sampled.items() if self._format.usable(jobs[i].sampling)}
        read_here = log_probs(self._model, [(jobs[i], endings[i], judged.get(i)) for i in mine])
        for i, (likelihoods, usage) in zip(mine, read_here, strict=True):
            end, spent = endings[i], sampled[i].usage if i in sampled else Usage(rollouts=1)
            finish = end.reason or FinishReason.STOP
            rollouts[i] = Rollout(jobs[i].prompt, end.ids, end.text, likelihoods, finish, usage + spent)
        return [rollouts[i] for i in range(len(jobs))]

    def _greet(self, job: RolloutJob) -> tuple[Served, Usage]:
        """The served model, and what it cost to make sure of it, which only the first call pays."""
        with self._first:
            if self._served is not None:
                return self._served, Usage()
            self._served, usage = shake_hands(
                self._http,
                self._model,
                job,
                named=self._served_name,
                format=self._format,
                tolerance_nats=self._tolerance,
            )
            return self._served, usage

    def _sample(self, jobs: Mapping[int, RolloutJob]) -> dict[int, _Sampled]:
        """What the server samples for each job."""
        if not jobs:
            return {}
        first = next(iter(jobs))
        served, greeting = self._greet(jobs[first])
        requests = sorted(self._requests(jobs), key=lambda r: r.context)
        sampled: dict[int, _Sampled] = {}
        pool, stopped = ThreadPoolExecutor(min(self._concurrency, len(requests))), threading.Event()
        try:
            for choices in pool.map(lambda r: self._ask(served, r, jobs, stopped), requests):
                sampled |= choices
        finally:  # an error or an interrupt does not wait for what is under way
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return {**sampled, first: replace(sampled[first], usage=sampled[first].usage + greeting)}

    def _requests(self, jobs: Mapping[int, RolloutJob]) -> Iterator[_Request]:
        alike: defaultdict[tuple[tuple[int, ...], Sampling, int], list[int]] = defaultdict(list)
        for i, job in jobs.items():
            context = (*job.prompt.ids, *job.prefix_ids)
            alike[context, job.sampling, job.max_tokens - len(job.prefix_ids)].append(i)
        for (context, sampling, max_tokens), members in alike.items():
            size = len(members) if sampling.temperature == 0 else self._format.choices
            for at in range(0, len(members), size):
                yield _Request(context, sampling, max_tokens, tuple(members[at : at + size]))

    def _ask(
        self, served: Served, request: _Request, jobs: Mapping[int, RolloutJob], stopped: threading.Event
    ) -> dict[int, _Sampled]:
        """A choice for each job of a request; greedy jobs share one. What is missing is asked for anew, by seeds of the
        jobs that miss it: the same seed would give the choices that came.
        """
        greedy = request.sampling.temperature == 0
        missing, sampled, read = list(request.jobs), dict[int, _Sampled](), 0
        for _ in range(self._attempts):
            answer = complete(
                self._http,
                self._format.request(
                    served.name,
                    request.context,
                    request.sampling,
                    max_tokens=served.room(request.context, request.max_tokens),
                    n=1 if greedy else len(missing),
                    seed=seed_of(jobs[missing[0]]),
                    end_ids=self._model.eos_ids,
                ),
                stopped=stopped,
            )
            read += answer.read_tokens
            for choice in answer.choices:
                self._check(choice, request)
                for i in missing if greedy else missing[:1]:
                    sampled[i] = _Sampled(choice, self._usage(choice, read_tokens=read, shared=i != missing[0]))
                    read = 0
                missing = [i for i in missing if i not in sampled]
            if not missing:
                return sampled
        raise RolloutError(
            f"{self._http.url} gave {len(sampled)} whole completions for {len(request.jobs)} jobs in "
            f"{self._attempts} attempts; the others came broken off or without their log-probabilities."
        )

    def _check(self, choice: Choice, request: _Request) -> None:
        check_tokens(self._model, choice, self._http.url)
        if len(choice.ids) > request.max_tokens:
            raise RolloutError(
                f"{self._http.url} returned {len(choice.ids)} tokens; at most {request.max_tokens} were asked for."
            )

    def _usage(self, choice: Choice, *, read_tokens: int, shared: bool) -> Usage:
        """As if it had run here; what one choice gives to several greedy jobs is counted once."""
        if shared:
            return Usage(rollouts=1)
        tokens = len(choice.ids)
        ran = self._model.usage(prefill=max(read_tokens, 0), forward=max(tokens - 1, 0), rows=tokens)
        return ran + Usage(rollouts=1, generated_tokens=tokens)


def seed_of(job: RolloutJob) -> int:
    """What a job's own random numbers say, as a seed for a server: 48 bits, which every JSON reader keeps."""
    numbers = job.uniforms.double().cpu().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(numbers, digest_size=6).digest(), "big")
