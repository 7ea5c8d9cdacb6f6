"""Which sandbox this machine gets: the best one that passes its own self-test. There is no unsafe fallback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nabla_agents.errors import ConfigurationError, SandboxError
from nabla_agents.sandbox import artefact, building, probes
from nabla_agents.sandbox.cache import CachedExecutor
from nabla_agents.sandbox.executor import Executor
from nabla_agents.sandbox.fork import ForkWorker
from nabla_agents.sandbox.wasm import WasmWorker
from nabla_agents.sandbox.workers import Worker, WorkerPool

BACKENDS: dict[str, Callable[[], Worker]] = {"wasm": WasmWorker, "fork": ForkWorker}  # best first


@dataclass(frozen=True)
class Diagnosis:
    """What one backend is worth on this machine. `why` is empty for one that passes its self-test.

    `notes` are what else there is to know of it, such as files that the next build removes.
    """

    backend: str
    active: bool
    why: str
    layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def make_executor(*, workers: int | None = None, remembered: int = 4096) -> Executor:
    """The best sandbox that passes its self-test here, which takes about a second. Close it, or use it in `with`.

    With the extra `[sandbox]` the first call begins to build the `wasm` backend in the background, once per user and
    version (a minute of one processor, 100 MB in the user's cache; NABLA_SANDBOX_BUILD=0 in the environment forbids
    it). Until that is there, the `fork` backend is taken; an executor stays what it is.

    `workers` is how many programs run at once (default: one per processor, at most 4); `remembered` how many results
    are kept for programs that come again. SandboxError, with what to do, where nothing contains untrusted code;
    ConfigurationError for a number that is none.
    """
    for name, value, least in (("workers", workers, 1), ("remembered", remembered, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise ConfigurationError(f"make_executor {name} is {value!r}; expected a whole number of at least {least}.")
    reasons: list[str] = []
    for name, worker in BACKENDS.items():
        try:
            return CachedExecutor(proven(worker, workers=workers), remembered)
        except SandboxError as e:
            if name == "wasm":
                building.begin()
            reasons.append(f"{name}: {_why(name, e)}")
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
                found.append(Diagnosis(name, True, "", pool.capabilities.layers, _notes(name)))
        except SandboxError as e:
            found.append(Diagnosis(name, False, _why(name, e), notes=_notes(name)))
    return found


def _why(backend: str, error: SandboxError) -> str:
    return (building.state().message if backend == "wasm" else "") or str(error)


def _notes(backend: str) -> tuple[str, ...]:
    if backend != "wasm":
        return ()
    try:
        return tuple(f"stale, the next build removes it: {file}" for file in artefact.stale())
    except SandboxError:  # nothing is installed that could have built one
        return ()
