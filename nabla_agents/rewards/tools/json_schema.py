"""JsonSchema: whether the completion is JSON of a given shape, and where it is not."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import jsonschema
import regex
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.validators import extend, validator_for
from referencing import Registry

from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards.background import Background
from nabla_agents.rewards.remark import quoted, remark
from nabla_agents.rewards.tools.located_json import json_body, located
from nabla_agents.rewards.tools.text import TextReward
from nabla_agents.types import Score, Span, Usage

_MAX_DEPTH = 64  # brackets within brackets; a parser that recurses must not meet thousands
_BRACKET_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|$)|[\[{]|[\]}]', re.DOTALL)
_deadline: ContextVar[float] = ContextVar("_deadline", default=math.inf)  # of the check in this thread


class JsonSchema(TextReward):
    """Value 1 for JSON that fits the schema, 0.5 for JSON that does not, 0 for what is no JSON.

    The completion is read whole, or its last fenced block that is marked json, or else its last fenced block. NaN and
    Infinity are no JSON; nesting beyond 64 levels is refused. What is wrong is located: the character where the
    parser stops, or the value that does not fit; `credit` is the strength of that span in nats.

    schema: a JSON schema of any draft, as a mapping, or True (any JSON). References within the schema are followed,
        and nothing is ever fetched.
    vouches: whether fitting JSON verifies the answer, which ends a search; False where the shape is only one
        condition among others.

    A text longer than `max_characters`, or a check longer than `timeout_seconds`, is not judged (NaN). Costs no
    model pass.

    Raises:
        ConfigurationError: when made: no valid schema, or a limit that is none.
    """

    def __init__(
        self,
        schema: Mapping[str, Any] | bool = True,
        *,
        vouches: bool = True,
        credit: float = 10.0,
        timeout_seconds: float = 2.0,
        max_characters: int = 100_000,
    ) -> None:
        if not (0 <= credit < math.inf and 0 < timeout_seconds < math.inf and max_characters > 0):
            raise ConfigurationError(
                f"JsonSchema got credit={credit!r}, timeout_seconds={timeout_seconds!r}, max_characters="
                f"{max_characters!r}; expected nats of at least 0, and limits above 0."
            )
        self._validator = _validator(schema, timeout_seconds)
        self.vouches, self.credit = vouches, credit
        self.timeout_seconds, self.max_characters = timeout_seconds, max_characters

    def judge(self, text: str) -> Score:
        called = Usage(reward_calls=1)
        if len(text) > self.max_characters:
            return Score.not_judged(f"text has {len(text)} characters, limit {self.max_characters}", called)
        body, offset = json_body(text)
        try:
            value = _parsed(body)
        except _NotJson as e:
            at = offset + e.position
            where = quoted(text[at : at + 40]) if text[at:].strip() else "its end"
            feedback = f"The answer is no JSON: {e}, at {where}."
            return self._wrong(0.0, f"no JSON: {e} at character {at}", feedback, (at, at + 1), text)
        try:
            # A thread of its own: its whole stack is free, and what takes too long is left behind.
            check = partial(_first_error, self._validator, value, self.timeout_seconds)
            error = Background(check).result(self.timeout_seconds)
        except TimeoutError:
            return Score.not_judged(f"the schema took longer than {self.timeout_seconds:g} s to check", called)
        except Exception as e:  # a reference that leads nowhere, or a number beyond the range of floats
            return Score.not_judged(f"the schema cannot be applied: {type(e).__name__}: {e}", called)
        if error is not None:
            start, end = located(body, error.absolute_path)
            explanation = f"{error.json_path}: {error.message[:200]}"
            feedback = f"The JSON does not fit the schema at {explanation}."
            return self._wrong(0.5, explanation, feedback, (offset + start, offset + end), text)
        return Score(1.0, 1.0, True if self.vouches else None, explanation="JSON that fits the schema", usage=called)

    def _wrong(self, value: float, explanation: str, feedback: str, place: tuple[int, int], text: str) -> Score:
        end = min(place[1], len(text))
        start = max(0, min(place[0], end - 1))  # JSON that ends too early is wrong at its last character
        spans = (Span(start, end, -1.0, explanation=explanation, credit=self.credit),) if start < end else ()
        return Score(value, value, False, spans, explanation, Usage(reward_calls=1), feedback=remark(feedback))


class _NotJson(Exception):
    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


def _parsed(body: str) -> Any:
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(body):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > _MAX_DEPTH:
            raise _NotJson(f"nested more than {_MAX_DEPTH} deep", match.start())

    def refused(name: str) -> Any:
        raise _NotJson(f"{name} is no JSON", max(body.find(name), 0))

    try:
        return json.loads(body, parse_constant=refused)
    except json.JSONDecodeError as e:
        raise _NotJson(e.msg, e.pos) from e
    except ValueError as e:  # an integer of thousands of digits
        raise _NotJson(str(e), 0) from e


def _first_error(validator: Any, value: Any, seconds: float) -> ValidationError | None:
    """The error nearest to the root that explains most; the first in order among equals.

    Ends itself by TimeoutError: the thread of a check that nobody waits for would compute on.
    """
    _deadline.set(time.monotonic() + seconds)
    return best_match(validator.iter_errors(value))


def _validator(schema: Any, timeout_seconds: float) -> Any:
    if not isinstance(schema, Mapping | bool):
        raise ConfigurationError(f"JsonSchema got {schema!r}; expected a JSON schema as a mapping.")
    try:
        schema = json.loads(json.dumps(schema))  # a copy that later changes do not reach
        kind = validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        for pattern in _patterns(schema):
            regex.compile(pattern)
    except (SchemaError, TypeError, ValueError, RecursionError, regex.error) as e:
        raise ConfigurationError(f"JsonSchema got no valid schema: {getattr(e, 'message', e)}.") from e
    keywords = {**kind.VALIDATORS, **_own_keywords(timeout_seconds)}
    return extend(kind, {name: _timed(check) for name, check in keywords.items()})(schema, registry=Registry())


def _patterns(schema: Any) -> Iterator[str]:
    """The regular expressions in a schema."""
    if isinstance(schema, dict):
        if "patternProperties" in schema and "unevaluatedProperties" in schema:
            raise ValueError("patternProperties beside unevaluatedProperties are not supported")
        yield from schema.get("patternProperties", {})
        if isinstance(pattern := schema.get("pattern"), str):
            yield pattern
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _patterns(part)


def _timed(check: Any) -> Any:
    """A keyword that is not checked beyond the deadline: alternatives in alternatives take 2^depth of them."""

    def timed(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if time.monotonic() > _deadline.get():
            raise TimeoutError
        yield from check(validator, wanted, instance, schema) or ()

    return timed


def _own_keywords(timeout_seconds: float) -> dict[str, Any]:
    """The keywords with regular expressions, which in `re` could backtrack for ever with every thread waiting, and
    `uniqueItems`, which would compare all pairs.
    """

    def matches(pattern: str, text: str) -> bool:
        return regex.search(pattern, text, timeout=timeout_seconds) is not None

    def pattern(validator: Any, wanted: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not matches(wanted, instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, parts: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        for wanted, part in parts.items() if isinstance(instance, dict) else ():
            for key, value in instance.items():
                if matches(wanted, key):
                    yield from validator.descend(value, part, path=key, schema_path=wanted)

    def additional_properties(validator: Any, part: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for key, value in instance.items() if isinstance(instance, dict) else ():
            if key in named or any(matches(wanted, key) for wanted in patterns):
                continue
            if part is False:
                yield ValidationError(f"{key!r} is not allowed", path=[key])
            elif part is not True:
                yield from validator.descend(value, part, path=key)

    def unique_items(validator: Any, wanted: bool, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if wanted and isinstance(instance, list) and len(set(map(_key, instance))) < len(instance):
            yield ValidationError(f"{instance!r} has non-unique elements")

    return {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
        "uniqueItems": unique_items,
    }


def _key(value: Any) -> Any:
    """Equal for equal JSON: 1 is 1.0, true is not 1, and the order of keys says nothing."""
    if isinstance(value, list):
        return ("list", *map(_key, value))
    if isinstance(value, dict):
        return ("dict", frozenset((name, _key(part)) for name, part in value.items()))
    return (isinstance(value, bool), value)
