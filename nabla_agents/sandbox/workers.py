"""Warm workers, shared by threads: each runs one check at a time, a dead one is replaced."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from nabla_agents.errors import ProgramError, SandboxError
from nabla_agents.sandbox.execution import Execution, Status
from nabla_agents.sandbox.executor import Capabilities
from nabla_agents.sandbox.observation import Observation, execution
from nabla_agents.sandbox.program import Limits, Program

PROBE = Program("print(6 * 7)")


class Worker(Protocol):
    """One confined process that runs checks, one at a time."""

    @property
    def capabilities(self) -> Capabilities: ...

    def alive(self) -> bool: ...

    def check(self, request: bytes, limits: Limits) -> Observation:
        """What was seen of one run; raises nothing that the program could cause."""
        ...

    def stop(self) -> None: ...


class WorkerPool:
    """An Executor over up to `workers` workers made by `start`, which raises SandboxError where it cannot.

    A program whose worker was killed from outside is run once more. The first worker is started at once; another one,
    in the background, whenever a thread has to wait. The pool serves only the process that made it.
    """

    def __init__(self, start: Callable[[], Worker], *, workers: int | None = None) -> None:
        self._start = start
        self._workers = workers or min(4, os.cpu_count() or 1)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._closed = False
        self.restarts = 0
        self._idle = [start()]
        self._started = 1
        self._growth: list[threading.Thread] = []
        self._free = threading.Semaphore(1)  # one for each started worker that no thread has
        self._capabilities = self._idle[0].capabilities

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def run(self, program: Program, limits: Limits = Limits()) -> Execution:
        if not isinstance(program, Program):
            raise ProgramError(f"run() got {type(program).__name__}; expected a Program.")
        size = len(program.code.encode("utf-8", "surrogatepass"))
        if size > limits.source_bytes:
            message = f"source too long: {size} bytes, at most {limits.source_bytes}"
            return Execution(Status.ERROR, error_type="SourceTooLong", error_message=message, backend=self._backend)
        try:
            return self._run(program, limits)
        except (_NoWorker, OSError) as e:  # OSError: the host itself is out of files or memory
            return Execution(Status.UNAVAILABLE, detail=f"no worker can be started: {e}", backend=self._backend)

    def run_many(self, programs: Sequence[Program], limits: Limits = Limits()) -> list[Execution]:
        if len(programs) < 2:
            return [self.run(program, limits) for program in programs]
        with ThreadPoolExecutor(min(self._workers, len(programs))) as threads:
            return list(threads.map(lambda program: self.run(program, limits), programs))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.stop()
        for thread in self._growth:
            thread.join()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _backend(self) -> str:
        return self._capabilities.backend

    def _run(self, program: Program, limits: Limits) -> Execution:
        with self._worker() as worker:
            done = _checked(worker, program, limits)
        if done.status is Status.UNAVAILABLE:  # nobody's fault here: a second time it is told
            with self._worker() as worker:
                done = _checked(worker, program, limits)
            if done.status is Status.UNAVAILABLE:
                return replace(done, detail=f"{done.detail}, and so was the one before it")
        if done.status is not Status.CRASHED:
            return done
        with self._worker() as worker:  # the program's fault only if the sandbox still works
            sound = _checked(worker, PROBE, Limits()).stdout == "42\n"
        if sound:
            return done
        return Execution(Status.UNAVAILABLE, detail="a harmless program crashed too", backend=self._backend)

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        """A worker for one thread alone; it goes back to the others unless it died."""
        if self._owner != os.getpid():
            raise SandboxError("This executor was made in another process; make one in each process that needs one.")
        if not self._free.acquire(blocking=False):
            self._grow()
            self._free.acquire()
        try:
            worker = self._take()
            try:
                yield worker
            finally:
                self._give_back(worker)
        finally:
            self._free.release()

    def _grow(self) -> None:
        with self._lock:
            if self._started == self._workers or self._closed:
                return
            self._started += 1
            thread = threading.Thread(target=self._add, daemon=True)
            self._growth.append(thread)
            thread.start()

    def _add(self) -> None:
        try:
            worker = self._start()
        except SandboxError:  # the others go on; a thread that finds no worker will say why
            with self._lock:
                self._started -= 1
            return
        self._give_back(worker)
        self._free.release()

    def _take(self) -> Worker:
        with self._lock:
            if self._closed:
                raise SandboxError("This executor is closed; make a new one.")
            worker = self._idle.pop() if self._idle else None
        if worker is not None:
            if worker.alive():
                return worker
            worker.stop()
        try:
            worker = self._start()
        except SandboxError as e:
            raise _NoWorker(str(e)) from e
        self.restarts += 1
        return worker

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            keep = worker.alive() and not self._closed
            if keep:
                self._idle.append(worker)
        if not keep:
            worker.stop()


class _NoWorker(Exception):
    """A replacement worker could not be started."""


def _checked(worker: Worker, program: Program, limits: Limits) -> Execution:
    request = json.dumps({"value_bytes": limits.value_bytes, "output_bytes": limits.output_bytes})
    request = request[:-1] + ", " + program.as_json()[1:]
    seen = worker.check(request.encode("ascii"), limits)
    return execution(seen, limits, worker.capabilities, calls=len(program.calls))
