"""Pattern: whether a regular expression is found in the completion, and where."""

from __future__ import annotations

import contextlib
import math
from typing import Literal

import regex

from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards.remark import quoted, remark, shortened
from nabla_agents.rewards.tools.text import TextReward
from nabla_agents.types import Score, Span, Usage


class Pattern(TextReward):
    """Value 1 if the completion matches a regular expression, else 0; with `wanted=False` the other way round.

    pattern: text, as the `regex` package reads it: that of `re`, with flags inside, `(?i)yes`.
    where: `anywhere` in the completion, or its `whole` text but for white space around.
    vouches: whether a pass verifies the answer, which ends a search; False where the pattern is only one condition
        among others. A fail is `verified=False` in any case.
    credit: strength of a match's span in nats in the objective's gradient; the span is -1 where a match is not wanted.

    A search that backtracks for more than `timeout_seconds`, or a text longer than `max_characters`, is not judged
    (NaN). Costs no model pass.

    Raises:
        ConfigurationError: when made: no valid expression, or a limit that is none.
    """

    def __init__(
        self,
        pattern: str,
        *,
        where: Literal["anywhere", "whole"] = "anywhere",
        wanted: bool = True,
        vouches: bool = True,
        credit: float = 10.0,
        timeout_seconds: float = 1.0,
        max_characters: int = 100_000,
    ) -> None:
        if not isinstance(pattern, str):
            raise ConfigurationError(f"Pattern got {pattern!r}; expected a regular expression as text.")
        if where not in ("anywhere", "whole"):
            raise ConfigurationError(f"Pattern where is {where!r}; expected 'anywhere' or 'whole'.")
        if not (0 <= credit < math.inf and 0 < timeout_seconds < math.inf and max_characters > 0):
            raise ConfigurationError(
                f"Pattern got credit={credit!r}, timeout_seconds={timeout_seconds!r}, max_characters="
                f"{max_characters!r}; expected nats of at least 0, and limits above 0."
            )
        try:
            self._compiled = regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError) as e:
            raise ConfigurationError(f"Pattern {pattern!r} is no valid regular expression: {e}.") from e
        self.pattern, self.where, self.wanted, self.vouches = pattern, where, wanted, vouches
        self.credit, self.timeout_seconds, self.max_characters = credit, timeout_seconds, max_characters

    @property
    def name(self) -> str:
        return f"Pattern({self.pattern!r})"

    def judge(self, text: str) -> Score:
        called = Usage(reward_calls=1)
        if len(text) > self.max_characters:
            return Score.not_judged(f"text has {len(text)} characters, limit {self.max_characters}", called)
        try:
            found = self._match(text)
        except (TimeoutError, MemoryError) as e:
            reason = f"took longer than {self.timeout_seconds:g} s" if isinstance(e, TimeoutError) else "out of memory"
            return Score.not_judged(f"{self.name} {reason}", called)
        passed = (found is not None) == self.wanted
        what = "not found" if found is None else f"found at {found[0]}:{found[1]}"
        return Score(
            value=float(passed),
            verdict=float(passed),
            verified=passed if self.vouches or not passed else None,
            spans=() if found is None or found[0] == found[1] else (self._span(*found),),
            explanation=f"{self.name} {what}",
            usage=called,
            feedback="" if passed else remark(self._feedback(text, found)),
        )

    def _feedback(self, text: str, found: tuple[int, int] | None) -> str:
        """What is there and must not be, or what is missing; of a whole text, what stands behind all that matches."""
        wanted = f"the regular expression {shortened(self.pattern, 200)}"
        if found is not None:
            return f"The answer has {quoted(text[slice(*found)])}, which must not match {wanted}."
        if self.where == "anywhere":
            return f"Nothing in the answer matches {wanted}."
        whole, rest = text.strip(), ""
        with contextlib.suppress(TimeoutError, MemoryError):
            begins = self._compiled.match(whole, timeout=self.timeout_seconds)
            rest = "" if begins is None else whole[begins.end() :]
        beyond = f", but goes on with {quoted(rest)}" if 0 < len(rest) < len(whole) else ""
        return f"The answer as a whole must match {wanted}{beyond}."

    def _match(self, text: str) -> tuple[int, int] | None:
        if self.where == "anywhere":
            match = self._compiled.search(text, timeout=self.timeout_seconds)
        else:
            start, end = len(text) - len(text.lstrip()), len(text.rstrip())
            match = self._compiled.fullmatch(text, start, max(start, end), timeout=self.timeout_seconds)
        return None if match is None else match.span()

    def _span(self, start: int, end: int) -> Span:
        return Span(start, end, 1.0 if self.wanted else -1.0, explanation=self.name, credit=self.credit)
