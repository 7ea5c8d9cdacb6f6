"""Schemas that clients send: their size, counted before anything reads them, and where one breaks the rules."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY as SPECIFICATIONS
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from nabla_agents.serve.errors import dotted, invalid
from nabla_agents.serve.settings import ServeSettings

_CHECK_SECONDS: Final = 1.0  # in which the place of what is wrong is looked for

Place = Sequence[str | int]


def check_sizes(schemas: Sequence[tuple[Place, Any]], settings: ServeSettings) -> None:
    """Refuses schemas, each with its place in the body, that together are too large, or of which one is too deep.

    Raises:
        Refusal: 400, with the place of the schema by which it is too much.
    """
    nodes = size = 0
    for place, schema in schemas:
        level, depth = [schema], 0
        while level:
            nodes, depth = nodes + len(level), depth + 1
            if depth > settings.max_schema_depth:
                raise _too_large(place, f"nested more than {settings.max_schema_depth} deep")
            if nodes > settings.max_schema_nodes:
                raise _too_large(place, f"of more than {settings.max_schema_nodes} values, all schemas together")
            level = [part for value in level for part in _parts(value)]
        size += len(json.dumps(schema, ensure_ascii=False).encode("utf-8", "replace"))
        if size > settings.max_schema_bytes:
            raise _too_large(place, f"of more than {settings.max_schema_bytes} bytes, all schemas together")


def _too_large(place: Place, what: str) -> Exception:
    name = dotted(place)
    return invalid(f"Invalid value for '{name}': a schema {what}.", name, code="schema_too_large")


def _parts(value: Any) -> Sequence[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()


def refers(schema: Any) -> bool:
    """Whether a schema, of an allowed size, has references: only then can it be without end."""
    return (isinstance(schema, dict) and "$ref" in schema) or any(map(refers, _parts(schema)))


@cache
def _of_schemas() -> tuple[Any, Registry[Any]]:
    """The schema of schemas, and its parts; they do not name their draft, by which jsonschema would choose its own
    checks in place of those that are timed.
    """
    parts: dict[str, Any] = {}
    for uri in SPECIFICATIONS:
        if "/2020-12/" in uri:
            contents: Any = SPECIFICATIONS.contents(uri)
            parts[uri] = {name: rule for name, rule in contents.items() if name != "$schema"}
    resources = [(uri, DRAFT202012.create_resource(part)) for uri, part in parts.items()]
    return parts[Draft202012Validator.META_SCHEMA["$id"]], Registry[Any]().with_resources(resources)


def misplaced(schema: Mapping[str, Any]) -> list[str | int]:
    """Where a schema of an allowed size breaks the rules of draft 2020-12, whatever draft it says that it is of; empty
    where it does not, or where that takes long to find.
    """
    end = time.monotonic() + _CHECK_SECONDS

    def timed(check: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def checked(validator: Any, wanted: Any, instance: Any, whole: Any) -> Iterator[ValidationError]:
            if time.monotonic() > end:
                raise TimeoutError
            yield from check(validator, wanted, instance, whole) or ()

        return checked

    rules: dict[str, Any] = {name: timed(check) for name, check in Draft202012Validator.VALIDATORS.items()}
    rules["uniqueItems"] = lambda *_: ()  # compares all pairs where they cannot be sorted
    checker: Any = extend(Draft202012Validator, rules)
    root, registry = _of_schemas()
    try:
        error = best_match(checker(root, registry=registry).iter_errors(schema))
    except (TimeoutError, RecursionError):
        return []
    return [] if error is None else list(error.absolute_path)
