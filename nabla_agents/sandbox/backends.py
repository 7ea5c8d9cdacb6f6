"""Which sandbox this machine gets: the best one that passes its own self-test. There is no unsafe fallback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nabla_agents.errors import SandboxError
from nabla_agents.sandbox import probes
from nabla_agents.sandbox.cache import CachedExecutor
from nabla_agents.sandbox.executor import Executor
from nabla_agents.sandbox.fork import ForkWorker
from nabla_agents.sandbox.wasm import WasmWorker
from nabla_agents.sandbox.workers import Worker, WorkerPool

BACKENDS: dict[str, Callable[[], Worker]] = {"wasm": WasmWorker, "fork": ForkWorker}  # best first


@dataclass(frozen=True)
class Diagnosis:
    """What one backend is worth on this machine. `why` is empty for one that passes its self-test."""

    backend: str
    active: bool
    why: str
    layers: tuple[str, ...] = ()


def make_executor(*, workers: int | None = None, remembered: int = 4096) -> Executor:
    """The best sandbox that passes its self-test here, which takes about a second. Close it, or use it in `with`.

    `workers` is how many programs run at once (default: one per processor, at most 4); `remembered` how many results
    are kept for programs that come again. SandboxError, with what to do, where nothing contains untrusted code.
    """
    reasons: list[str] = []
    for name, worker in BACKENDS.items():
        try:
            return CachedExecutor(proven(worker, workers=workers), remembered)
        except SandboxError as e:
            reasons.append(f"{name}: {e}")
    raise SandboxError(
        "No sandbox contains untrusted code on this machine, so none is used. "
        + " ".join(reasons)
        + " Run on Linux with seccomp; `nabla doctor` shows what is missing."
    )


def proven(worker: Callable[[], Worker], *, workers: int | None = None) -> WorkerPool:
    """A pool that has passed the self-test; SandboxError where it does not start or does not pass."""
    pool = WorkerPool(worker, workers=workers)
    try:
        probes.check(pool)
    except BaseException:
        pool.close()
        raise
    return pool


def diagnosis() -> list[Diagnosis]:
    """Every backend, best first: `make_executor` uses the first active one."""
    found: list[Diagnosis] = []
    for name, worker in BACKENDS.items():
        try:
            with proven(worker, workers=1) as pool:
                found.append(Diagnosis(name, True, "", pool.capabilities.layers))
        except SandboxError as e:
            found.append(Diagnosis(name, False, str(e)))
    return found
