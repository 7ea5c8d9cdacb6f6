"""From what the host saw and what the program claims to an Execution. Facts win; claims are checked, never believed."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import Any

from nabla_agents.sandbox.execution import Execution, Status
from nabla_agents.sandbox.executor import Capabilities
from nabla_agents.sandbox.program import Json, Limits

CLAIMABLE = {Status.OK, Status.ERROR, Status.OOM, Status.DENIED, Status.OUTPUT_LIMIT}
NAME_CHARACTERS, MESSAGE_CHARACTERS = 200, 1000
REPORT_BYTES = 40 << 10  # of a report, besides its values: names and messages, escaped
DEEPEST = 64  # levels of a value; deeper ones would endanger whoever compares them
# Packages that exist, whether installed here or not: a program that lacks one is not wrong.
KNOWN_PACKAGES = """
    PIL attr bs4 cvxpy dateutil gmpy2 jax joblib keras lxml matplotlib more_itertools mpmath networkx nltk numba numpy
    openpyxl ortools pandas plotly polars psutil pulp pydantic pytest pytz requests scipy seaborn shapely six sklearn
    sortedcontainers statsmodels sympy tabulate tensorflow toolz torch tqdm transformers tzdata yaml z3
"""


@dataclass(frozen=True)
class Observation:
    """What the host saw of one run. `fact` is the status that follows from it alone; None leaves it to the claim."""

    stdout: bytes
    report: bytes
    wall_seconds: float
    fact: Status | None = None
    detail: str = ""
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    fuel: int | None = None


def execution(seen: Observation, limits: Limits, capabilities: Capabilities, *, calls: int) -> Execution:
    """The Execution of a run that was asked for `calls` values."""
    fact = seen.fact or (Status.OUTPUT_LIMIT if len(seen.stdout) > limits.output_bytes else None)
    facts: dict[str, Any] = {
        "stdout": seen.stdout[: limits.output_bytes].decode("utf-8", "replace"),
        "truncated": len(seen.stdout) > limits.output_bytes or fact is Status.OUTPUT_LIMIT,
        "wall_seconds": seen.wall_seconds,
        "cpu_seconds": seen.cpu_seconds,
        "peak_bytes": seen.peak_bytes,
        "fuel": seen.fuel,
        "backend": capabilities.backend,
    }
    if fact is not None:
        return Execution(fact, detail=seen.detail, **facts)
    try:
        claims = _claims(seen.report, calls)
    except Exception as e:  # whatever a hostile report makes the decoder raise, RecursionError included
        return Execution(Status.CRASHED, detail=f"no valid report: {type(e).__name__}", **facts)
    missing = claims.pop("missing")
    if claims["status"] is Status.ERROR and _is_unsupported(missing, capabilities):
        claims["status"] = Status.UNSUPPORTED
    return Execution(**{**facts, **claims, "truncated": claims["status"] is Status.OUTPUT_LIMIT})


def _claims(report: bytes, calls: int) -> dict[str, Any]:
    """The claims of a report, checked for type and size; raises for one that no honest program sends."""
    sent = json.loads(report.decode("utf-8", "replace"), parse_constant=_refuse)
    status = Status(sent["status"]) if isinstance(sent["status"], str) else _refuse(sent["status"])
    values, line = sent.get("values", []), sent.get("line")
    if status not in CLAIMABLE or not isinstance(values, list) or len(values) > calls:
        _refuse(status)
    if status is Status.OK and len(values) != calls and sent.get("detail") != "exit":
        _refuse(values)
    if line is not None and (type(line) is not int or not 0 <= line < 1 << 31):
        _refuse(line)
    return {
        "status": status,
        "values": tuple(_plain(value, DEEPEST) for value in values),
        "error_type": _text(sent.get("error_type", ""), NAME_CHARACTERS),
        "error_message": _text(sent.get("error_message", ""), MESSAGE_CHARACTERS),
        "detail": _text(sent.get("detail", ""), MESSAGE_CHARACTERS),
        "missing": _text(sent.get("missing", ""), NAME_CHARACTERS),
        "line": line,
    }


def _plain(value: Json, depth: int) -> Json:
    """The value without lone surrogates, which nobody could print or store."""
    if depth == 0 or (isinstance(value, float) and not math.isfinite(value)):
        _refuse(value)
    if isinstance(value, str):
        return _text(value, len(value))
    if isinstance(value, list):
        return [_plain(v, depth - 1) for v in value]
    if isinstance(value, dict):
        return {_text(k, len(k)): _plain(v, depth - 1) for k, v in value.items()}
    return value


def _text(value: object, characters: int) -> str:
    if not isinstance(value, str):
        _refuse(value)
    return str(value)[:characters].encode("utf-8", "replace").decode("utf-8")


def _refuse(what: object) -> Any:
    raise ValueError(f"{type(what).__name__} where an honest report has none")


def _is_unsupported(missing: str, capabilities: Capabilities) -> bool:
    """Whether a module that was not found exists elsewhere. An invented name is the program's own error."""
    top, _, submodule = missing.partition(".")
    exists = top in sys.stdlib_module_names or top in KNOWN_PACKAGES.split()
    return exists and (top not in capabilities.modules or bool(submodule))
