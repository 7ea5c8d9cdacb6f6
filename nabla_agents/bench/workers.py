"""Measures jobs, here or in several processes, and keeps what is measured."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from nabla_agents.bench.records import Record, Store
from nabla_agents.bench.run import Bench, Job, Measured
from nabla_agents.errors import ConfigurationError
from nabla_agents.models.cores import Cores

Recipe = Callable[[], Bench]

_bench: Bench | None = None  # of this process, if it is a worker


def run(bench: Bench, out: Path | None = None, *, recipe: Recipe | None = None) -> Iterator[Record]:
    """Every record of the bench; those already in `out` come first and cost nothing.

    New ones are appended to `out/records.jsonl` before they are yielded. An interrupt is raised as KeyboardInterrupt
    after the finished records of its jobs have been yielded. With several workers, `recipe` makes the bench anew in
    each process: a function that can be pickled.

    Raises:
        ConfigurationError: `out` holds results of other settings, or several workers have no recipe.
    """
    store = None if out is None else Store(out, bench.described())
    done: set[tuple[str, int, int]] = set()
    for record in [] if store is None else store.read():
        if record.arm in bench.arms and record.problem < len(bench.questions.get(record.seed, ())):
            done.add(record.key)
            yield record
    jobs = list(bench.jobs(done))
    workers = min(bench.settings.workers, len(jobs))
    if workers > 1 and recipe is None:
        raise ConfigurationError(f"{workers} workers need a recipe that makes the bench in their processes.")
    measured = map(bench.measure, jobs) if workers < 2 or recipe is None else _in_processes(recipe, jobs, workers)
    for each in measured:
        for record in each.records:
            if store is not None:
                store.append(record)
            yield record
        if each.interrupted:
            raise KeyboardInterrupt


def _in_processes(recipe: Recipe, jobs: Sequence[Job], workers: int) -> Iterator[Measured]:
    """As `map(bench.measure, jobs)`, in the order of the jobs. An interrupt ends what runs; what is finished comes."""
    context = _context()
    threads = max(1, Cores.of_process().usable // workers)
    pool = ProcessPoolExecutor(workers, context, _prepare, (recipe, threads))
    waiting: deque[Future[Measured]] = deque(pool.submit(_measure, job) for job in jobs)
    try:
        while waiting:
            measured = waiting[0].result()
            if measured.interrupted:
                raise KeyboardInterrupt
            waiting.popleft()
            yield measured
    except KeyboardInterrupt:
        for future in waiting:
            future.cancel()
        rest = [future.result() for future in waiting if not future.cancelled() and future.exception() is None]
        yield Measured(tuple(record for each in rest for record in each.records), interrupted=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> Any:
    """Where processes can be copied from one that has loaded all libraries, these are loaded once, not by each."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nabla_agents.bench"])
    return context


def _prepare(recipe: Recipe, threads: int) -> None:
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between jobs: the parent ends them
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _bench = recipe()


def _measure(job: Job) -> Measured:
    if _bench is None:
        raise RuntimeError("a worker measures before it is prepared")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _bench.measure(job)
    except KeyboardInterrupt:
        return Measured((), interrupted=True)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
