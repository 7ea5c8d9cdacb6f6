"""The public names and signatures, against `tests/public_api.txt`.

A change that is meant is recorded by `make api`, and goes into the changelog.
"""

import enum
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def lines() -> Iterator[str]:
    import nabla_agents

    for name in sorted(nabla_agents.__all__):
        yield from described(name, getattr(nabla_agents, name))


def described(name: str, value: Any) -> Iterator[str]:
    """One line per public name and per public member of a class that the package defines."""
    if not inspect.isclass(value):
        yield f"{name}{signature(value)}" if callable(value) else f"{name}: {type(value).__name__}"
        return
    if issubclass(value, enum.Enum):
        yield f"class {name}: {', '.join(member.name for member in value)}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases})" if bases else f"class {name}"
    yield f"  {name}{signature(value)}"
    ours = [c for c in value.__mro__ if c.__module__.split(".")[0] == "nabla_agents"]
    for member in sorted({m for c in ours for m in vars(c) if not m.startswith("_")} - {"model_config"}):
        attribute = inspect.getattr_static(value, member)
        if isinstance(attribute, staticmethod | classmethod):
            yield f"  {name}.{member}{signature(getattr(value, member))}  [{type(attribute).__name__}]"
        elif inspect.isfunction(attribute):
            yield f"  {name}.{member}{signature(attribute)}"
        else:
            yield f"  {name}.{member}"


class AsWritten(str):
    """An annotation, shown as it stands in the source."""

    __repr__ = str.__str__


def signature(value: Any) -> str:
    """The signature as it is written, without memory addresses; empty where there is none."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    if hasattr(value, "model_fields"):
        written = {k: v for c in reversed(value.__mro__) for k, v in inspect.get_annotations(c).items()}
        found = found.replace(parameters=[p.replace(annotation=written[n]) for n, p in found.parameters.items()])
    parameters = [p.replace(annotation=as_written(p.annotation)) for p in found.parameters.values()]
    shown = str(found.replace(parameters=parameters, return_annotation=as_written(found.return_annotation)))
    return re.sub(r"\bUsage\([^)]*\)", "Usage(...)", re.sub(r" at 0x[0-9a-f]+", "", shown))


def as_written(annotation: Any) -> Any:
    return AsWritten(annotation) if isinstance(annotation, str) else annotation


def test_the_public_api_is_the_recorded_one() -> None:
    """Described in a process of its own, where no import hook wraps the functions."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    assert done.stdout == SNAPSHOT.read_text(), "the public API changed; if that is meant: make api"


if __name__ == "__main__":
    print(*lines(), sep="\n")
