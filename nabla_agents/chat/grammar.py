"""Grammar: what a completion may be. Decoding under one chooses only tokens that keep to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from nabla_agents.chat.dialects import DIALECTS, HERMES, Dialect
from nabla_agents.chat.tool_calls import function
from nabla_agents.errors import GrammarError

# As json.dumps and chat templates write JSON: the model reads what it was trained on, and cannot spend its tokens on
# white space.
_SPACING: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_EXACT: Final = 2**53 - 1
_BOUNDS: Final = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_ANY_TEXT: Final = r"/(.|\n)*/"
_NO_CALL: Final = r"/([^{\s](.|\n)*)?/"
_BARE: Final = re.compile(r'(?:\[TOOL_CALLS\]\s{0,64})?\[?\s{0,64}\{\s{0,64}"name"\s*:')

Marker = Callable[[str], int | None]


@dataclass(frozen=True)
class Grammar:
    """What a completion may be; goes into `Sampling(grammar=...)`. Make one with `json`, `tools`, `regex` or `choice`.

    `body` is the rule of the answer, or of one tool call where `calls` is set (then `instead` is that of another
    answer), in the Lark dialect of llguidance. With `reasoning` the model may think first, freely; how that and calls
    are marked is the dialect's. Searches change only what the grammar leaves free, reasoning and text around tool
    calls; with `refine` the constrained spans too, within the grammar. Compiling one is part of starting a request: it
    raises `GrammarError` before any pass is paid. Nothing is closed early: where `max_tokens` ends, the text is cut, as
    it is where a weak model repeats itself without end; a further call that could not end within them is not begun,
    and none behind one that was made twice.
    """

    body: str
    calls: bool = False
    required: bool = True
    parallel: bool = True
    reasoning: bool = False
    refine: bool = False
    instead: str | None = None
    dialect: str = HERMES.name

    @staticmethod
    def json(
        schema: Mapping[str, Any],
        *,
        lenient: bool = False,
        reasoning: bool = False,
        refine: bool = False,
        dialect: Dialect = HERMES,
    ) -> Grammar:
        """A JSON value by its schema. Objects that list their properties have no others, integers are within ±2⁵³.

        `lenient` lets pass what the compiler does not know, such as uniqueItems; check the answer against it then.

        Raises:
            GrammarError: the schema is no JSON object.
        """
        body = f"%json {_schema(schema, lenient)}"
        return Grammar(body, reasoning=reasoning, refine=refine, dialect=dialect.name)

    @staticmethod
    def tools(
        tools: Sequence[Mapping[str, Any]],
        *,
        required: bool = False,
        parallel: bool = True,
        lenient: bool = False,
        reasoning: bool = False,
        refine: bool = False,
        instead: Grammar | None = None,
        dialect: Dialect = HERMES,
    ) -> Grammar:
        """Calls of these tools (OpenAI's form), each with arguments by its schema, written as the dialect has it.

        Text may come first, or be all; with `required` the answer is one call, or several with `parallel`. With
        `instead`, such as `Grammar.json(schema)`, the answer is either calls alone or that.

        Raises:
            GrammarError: no tools, or one without a name.
        """
        if not tools:
            raise GrammarError("A grammar of tool calls got no tools; expected at least one.")
        bodies = [_call(function(tool), lenient, dialect.arguments) for tool in tools]
        other = None if instead is None else instead.body
        parallel = parallel and dialect.several != "never"
        return Grammar(" | ".join(bodies), True, required, parallel, reasoning, refine, other, dialect.name)

    @staticmethod
    def regex(pattern: str, *, reasoning: bool = False, refine: bool = False) -> Grammar:
        """Text that a regular expression matches as a whole (Rust's syntax: no look-around, no back-references)."""
        return Grammar("/" + pattern.replace("/", r"\/") + "/", reasoning=reasoning, refine=refine)

    @staticmethod
    def choice(options: Sequence[str], *, reasoning: bool = False, refine: bool = False) -> Grammar:
        """One of these texts.

        Raises:
            GrammarError: no options.
        """
        if not options or isinstance(options, str):
            raise GrammarError(f"A choice got {options!r}; expected a list of texts.")
        return Grammar(" | ".join(map(_literal, options)), reasoning=reasoning, refine=refine)

    def lark(self, marker: Marker) -> str:
        """The grammar's source. `marker` gives the id of a marker that is a token of its own, None where it is text."""
        lines = ["%llguidance {}", f"start: {'thought? ' if self.reasoning else ''}answer", f"body: {self.body}"]
        dialect = DIALECTS[self.dialect]
        if self.reasoning:
            begin, end = dialect.thought
            lines += [f"thought: {_one(begin, marker)}? thought_end NEWLINES", *_until("thought_end", end, marker)]
            lines.append(r"NEWLINES: /\n{0,2}/")
        if not self.calls:
            return "\n".join([*lines, "answer: body", ""])
        rest = "body"
        if dialect.several == "repeated":
            more = f' ("\\n" {_one(dialect.begin, marker)} rest)*' if self.parallel else ""
            lines.append(f'rest: "\\n" body "\\n" {_one(dialect.end, marker)}')
            rest = f"rest{more}"
        elif dialect.several == "listed":
            more = ' (", " body)*' if self.parallel else ""
            rest = f'" "? "[" body{more} "]"'
        only = f"{_one(dialect.begin, marker)} {rest}" if dialect.begin else rest
        if self.required:
            lines.append(f"answer: {only}")
        elif self.instead is not None:
            lines += [f"answer: instead | {only}", f"instead: {self.instead}"]
        elif dialect.begin:
            lines += [f"answer: TEXT | first {rest}", f"TEXT: {_ANY_TEXT}", *_until("first", dialect.begin, marker)]
        else:
            lines += [f"answer: TEXT | {only}", f"TEXT: {_NO_CALL}"]
        return "\n".join([*lines, ""])

    def free(self, text: str) -> list[tuple[int, int]]:
        """The character ranges of a completion that a search may change."""
        if self.refine:
            return [(0, len(text))]
        dialect = DIALECTS[self.dialect]
        thought = text.find(dialect.thought[1]) if self.reasoning else -1
        if not self.calls or (self.instead is not None and not (dialect.begin and dialect.begin in text)):
            return [(0, thought)] if thought > 0 and not self.calls else []
        if not dialect.end and (bare := _BARE.search(text, max(thought, 0))):  # its marker may be a token without text
            return [(0, bare.start())] if bare.start() else []
        spans, at = list[tuple[int, int]](), 0
        while dialect.begin and (begin := text.find(dialect.begin, at)) >= 0:
            spans.append((at, begin))
            end = text.find(dialect.end, begin) if dialect.end else -1
            at = len(text) if end < 0 else end + len(dialect.end)
        return [(a, b) for a, b in [*spans, (at, len(text))] if a < b]


def _call(tool: Mapping[str, Any], lenient: bool, arguments: str) -> str:
    """The rule of one call's JSON, without its markers."""
    if not isinstance(tool.get("name"), str):
        raise GrammarError(f"A tool is {dict(tool)!r}; expected a name and parameters.")
    schema = tool.get("parameters") or {"type": "object", "properties": {}}
    head = f'{{"name": {json.dumps(tool["name"], ensure_ascii=False)}, "{arguments}": '
    return f'({_literal(head)} %json {_schema(schema, lenient)} "}}")'


def _schema(schema: Any, lenient: bool) -> str:
    if not isinstance(schema, Mapping):
        raise GrammarError(f"A JSON schema is {schema!r}; expected a mapping such as {{'type': 'object', ...}}.")
    options = {**_SPACING, "lenient": True} if lenient else _SPACING
    try:
        closed = cast(dict[str, Any], _closed(schema))
        return json.dumps({**closed, "x-guidance": options}, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise GrammarError(f"A JSON schema cannot be written as JSON: {e}") from e


def _closed(schema: Any) -> Any:
    """The schema, narrowed to what ends: no further properties where it lists some and does not say what others may
    be, and integers that every JSON reader keeps exact.
    """
    if isinstance(schema, list | tuple):
        return [_closed(s) for s in cast(Sequence[Any], schema)]
    if not isinstance(schema, Mapping):
        return schema
    schema = cast(Mapping[str, Any], schema)
    closed = {k: v if k in ("const", "enum", "default", "examples") else _closed(v) for k, v in schema.items()}
    if isinstance(schema.get("properties"), Mapping) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    if schema.get("type") == "integer" and not _BOUNDS & set(schema):
        closed |= {"minimum": -_EXACT, "maximum": _EXACT}
    return closed


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _one(text: str, marker: Marker) -> str:
    """A marker: its own token, or its text."""
    token = marker(text)
    return _literal(text) if token is None else f"<[{token}]>"


def _until(rule: str, text: str, marker: Marker) -> list[str]:
    """A rule for any text up to and with the first marker."""
    token = marker(text)
    if token is None:
        return [f"{rule}[lazy]: {_ANY_TEXT} {_literal(text)}"]
    return [f"{rule}: {rule.upper()}_TEXT <[{token}]>", f"{rule.upper()}_TEXT: {_ANY_TEXT}"]
