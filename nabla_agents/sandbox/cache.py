"""An executor that remembers: the same program under the same limits is run once."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple

from nabla_agents.errors import ProgramError
from nabla_agents.sandbox.execution import Execution, Status
from nabla_agents.sandbox.executor import Capabilities, Executor
from nabla_agents.sandbox.program import Limits, Program

# The other statuses depend on the machine's load, or on luck.
LASTING = {Status.OK, Status.ERROR, Status.DENIED, Status.OUTPUT_LIMIT, Status.UNSUPPORTED}
CLOCK_OR_CHANCE = re.compile(r"time|uuid|secrets|urandom|getrandom|SystemRandom|default_rng")


class CachedExecutor:
    """An Executor over another one, with the last `size` results that will not change. Closing it closes the other."""

    def __init__(self, executor: Executor, size: int) -> None:
        self._executor = executor
        self._size = size
        self._results: OrderedDict[bytes, Execution] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def capabilities(self) -> Capabilities:
        return self._executor.capabilities

    def run(self, program: Program, limits: Limits = Limits()) -> Execution:
        return self.run_many([program], limits)[0]

    def run_many(self, programs: Sequence[Program], limits: Limits = Limits()) -> list[Execution]:
        keys = [_key(program, limits) for program in programs]
        with self._lock:
            known = {key: self._results[key] for key in keys if key in self._results}
            for key in known:
                self._results.move_to_end(key)
        new = {key: program for key, program in zip(keys, programs, strict=True) if key not in known}
        done = dict(zip(new, self._executor.run_many(list(new.values()), limits), strict=True))
        for key, execution in done.items():
            if execution.status in LASTING and not CLOCK_OR_CHANCE.search(new[key].code):
                self._keep(key, execution)
        return [known[key] if key in known else done[key] for key in keys]

    def close(self) -> None:
        self._executor.close()

    def __enter__(self) -> CachedExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, key: bytes, execution: Execution) -> None:
        with self._lock:
            self._results[key] = execution
            while len(self._results) > self._size:
                self._results.popitem(last=False)


def _key(program: Program, limits: Limits) -> bytes:
    if not isinstance(program, Program):
        raise ProgramError(f"run() got {type(program).__name__}; expected a Program.")
    return hashlib.sha256(f"{astuple(limits)}\n{program.as_json()}".encode()).digest()
