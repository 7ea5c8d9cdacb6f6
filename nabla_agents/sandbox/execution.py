"""What came of a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nabla_agents.sandbox.program import Json


class Status(StrEnum):
    """How a run ended. Only `ok`, with the right values or text, can earn a reward."""

    OK = "ok"  # it finished, or left by SystemExit(0): then detail is "exit", and no test has passed by that
    ERROR = "error"  # an exception of its own, a syntax error, a source above source_bytes
    TIMEOUT = "timeout"  # fuel, processor time or wall clock
    OOM = "oom"  # memory
    DENIED = "denied"  # it tried what the sandbox forbids
    OUTPUT_LIMIT = "output_limit"  # stdout or values above their cap; what came before is kept
    CRASHED = "crashed"  # a signal, a trap, or no result at all
    UNSUPPORTED = "unsupported"  # it needs a real module that this sandbox lacks, and so cannot pass here
    UNAVAILABLE = "unavailable"  # the sandbox itself is broken: says nothing about the program

    @property
    def judges(self) -> bool:
        """Whether the status says something about the program; if not, a reward is NaN with this explanation."""
        return self is not Status.UNAVAILABLE


@dataclass(frozen=True)
class Execution:
    """A run as the host saw it, and what the program claims about itself.

    Facts: limits that were hit, crashes, seconds, bytes, fuel. Claims, checked for shape and size only: `ok` against
    `error`, `values`, `stdout`, the error's type, message and line. Compare claims with what you expect; never believe
    them. `values` has one JSON value for each call that returned, None for one that is not JSON (`detail` says so).
    `peak_bytes` is the interpreter's whole resident memory; 0 and None where a backend does not know.
    """

    status: Status
    stdout: str = ""
    values: tuple[Json, ...] = ()
    error_type: str = ""
    error_message: str = ""
    line: int | None = None
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    fuel: int | None = None
    truncated: bool = False
    backend: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.status is Status.OK
