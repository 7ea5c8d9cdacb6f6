"""What runs programs: the one interface that rewards see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nabla_agents.sandbox.execution import Execution
from nabla_agents.sandbox.program import Limits, Program


@dataclass(frozen=True)
class Capabilities:
    """What a backend offers, and which layers confine it.

    `modules` are top-level names that a program can import. `deterministic`: the verdict does not depend on the
    machine's load. `remote`: programs leave this machine.
    """

    backend: str
    python_version: str
    modules: frozenset[str]
    layers: tuple[str, ...]
    deterministic: bool = False
    remote: bool = False


@runtime_checkable
class Executor(Protocol):
    """Runs untrusted programs, each in a fresh interpreter state. Thread-safe; close it, or use it in `with`."""

    @property
    def capabilities(self) -> Capabilities: ...

    def run(self, program: Program, limits: Limits = Limits()) -> Execution:
        """What came of the program; nothing that it does or prints raises here.

        SandboxError for a closed executor, ProgramError for something that is no Program.
        """
        ...

    def run_many(self, programs: Sequence[Program], limits: Limits = Limits()) -> list[Execution]:
        """`run` for each, in the same order, on all workers."""
        ...

    def close(self) -> None:
        """Ends all workers; may be called twice."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_: object) -> None: ...
