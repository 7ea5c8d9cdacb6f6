"""What is run, and what it may use. Both are checked here, in the host, before anything is started."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nabla_agents.errors import ConfigurationError, ProgramError

Json = Any  # what `json.loads` returns: None, bool, int, finite float, str, list, dict with str keys


@dataclass(frozen=True)
class Program:
    """Untrusted Python source and the data it gets. Expected answers do not belong here: compare in the host.

    `inputs` become global variables. With `entry`, the function of that name is called once for each argument list in
    `calls`, after the source ran as if it were imported; without, it runs as `__main__`. `stdin` is what `input()`
    reads. Names are read as Python reads them in source, by NFKC.

    Raises:
        ProgramError: code that is not text, data that is not JSON (NaN and infinities included), names that are no
            identifiers, or the same one. Source that is text but not Python is no error here; running it says so.
    """

    code: str
    entry: str | None = None
    calls: Sequence[Sequence[Json]] = ()
    inputs: Mapping[str, Json] = field(default_factory=dict[str, Json])
    stdin: str = ""

    def __post_init__(self) -> None:
        for name in ("code", "stdin"):
            if not isinstance(getattr(self, name), str):
                raise ProgramError(f"Program.{name} is {_kind(getattr(self, name))}; expected str: decode it first.")
        if self.entry is not None and not _is_identifier(self.entry):
            raise ProgramError(f"Program.entry is {self.entry!r}; expected the name of a function, or None.")
        if not isinstance(self.inputs, Mapping) or not all(map(_is_identifier, self.inputs)):
            raise ProgramError("Program.inputs must map names of variables to JSON values.")
        if isinstance(self.calls, str) or not all(isinstance(c, list | tuple) for c in _sequence(self.calls)):
            raise ProgramError("Program.calls must be a sequence of argument lists, for example [[1, 2], [3, 4]].")
        if self.calls and self.entry is None:
            raise ProgramError("Program.calls is given without entry: name the function that is to be called.")
        self.as_json()

    def as_json(self) -> str:
        """The program as ASCII text (lone surrogates as escapes), the same for equal programs."""
        fields = {name: getattr(self, name) for name in ("code", "entry", "calls", "inputs", "stdin")}
        inputs = {_read(name): value for name, value in self.inputs.items()}
        if len(inputs) < len(self.inputs):
            raise ProgramError(f"Program.inputs has names that Python reads as the same one: {', '.join(self.inputs)}.")
        fields |= {"entry": self.entry and _read(self.entry), "inputs": inputs, "calls": list(self.calls)}
        try:
            return json.dumps(fields, allow_nan=False, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as e:
            raise ProgramError(f"Program.inputs and Program.calls must be JSON data: {e}") from e


@dataclass(frozen=True)
class Limits:
    """What one run may use; every limit ends it with a status of its own. All must be positive.

    `fuel` counts WebAssembly instructions and binds the `wasm` backend; `cpu_seconds` binds `fork`, which rounds it up
    to whole seconds. `wall_seconds` is the outer clock: at least fuel / 0.8e9, or a slow machine times out what a fast
    one does not. `memory_bytes` is what the program may add to its interpreter. `output_bytes` caps stdout,
    `value_bytes` the JSON of all returned values, `source_bytes` the source (UTF-8).
    """

    fuel: int = 4_000_000_000
    cpu_seconds: int | float = 2
    wall_seconds: int | float = 5
    memory_bytes: int = 256 << 20
    output_bytes: int = 64 << 10
    value_bytes: int = 16 << 10
    source_bytes: int = 256 << 10

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            whole = not name.endswith("seconds")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ConfigurationError(f"Limits.{name} is {value!r}; expected a {'whole ' if whole else ''}number.")
            if not (value > 0 and math.isfinite(value)):
                raise ConfigurationError(f"Limits.{name} is {value!r}; expected a positive, finite number.")


def _is_identifier(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier()


def _read(name: str) -> str:
    return unicodedata.normalize("NFKC", name)


def _sequence(calls: object) -> Sequence[object]:
    return calls if isinstance(calls, Sequence) else (None,)


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
