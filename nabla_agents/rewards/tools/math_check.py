"""Symbolic equality by math-verify, in a sandbox that runs this checker and never a program."""

from __future__ import annotations

import re

from nabla_agents.errors import ProgramError, SandboxError, to_install
from nabla_agents.rewards.tools import executors
from nabla_agents.sandbox import Executor, Limits, Program, Status

LIMITS = Limits(cpu_seconds=2, wall_seconds=6.0, memory_bytes=384 << 20)
# What math-verify evaluates must stay mathematics: no attribute, no name with underscores, no text.
_CODE = re.compile(r"""__|['"`;]|\blambda\b|\bimport\b|\.\s*[A-Za-z]""")
# `\log 8/\log 2`: how far such a function reaches is read in more than one way.
_UNBRACKETED = re.compile(r"\\(?:log|ln|lg|sin|cos|tan|cot|sec|csc)\b(?!\s*(?:[({]|\\left))")
_BASED = re.compile(r"\d\s*_")  # `11_2` is 3, and `7_000` is no 7: math-verify drops what follows
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]*\}|\\[A-Za-z]+")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_NAMED = re.compile(
    r"(?i)(?:arc|a)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|lg|exp|sqrt|cbrt|abs|floor|ceil|max|min|gcd|lcm|det|mod"
    r"|pi|theta|alpha|beta|gamma|delta|lambda|phi"
)
# True and False only where they are sure. math-verify misses equalities, so that "different" is confirmed by values;
# and it rounds, so that a decimal is not taken for an exact constant.
_CHECKER = """
import sympy
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

READ = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
POINTS = [(0.37, 1.91), (1.23, -0.71), (-1.57, 2.43), (2.19, 0.53)]


def check(gold, answer):
    read = [parse(f"${text}$", extraction_config=READ, parsing_timeout=None) for text in (gold, answer)]
    if not all(read):
        return None
    one, other = (parsed[0] for parsed in read)
    if verify(*read, timeout_seconds=None):
        rounded = [isinstance(x, sympy.Basic) and x.has(sympy.Float) for x in (one, other)]
        return None if rounded[0] != rounded[1] else True
    return False if differ(one, other) else None


def differ(one, other):
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        kinds = (sympy.Tuple, sympy.FiniteSet, sympy.Interval, sympy.MatrixBase)
        same_kind = any(isinstance(one, kind) and isinstance(other, kind) for kind in kinds)
        return same_kind and not (one.free_symbols or other.free_symbols)
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    if {"e", "i", "j", "E", "I", "d"} & set(map(str, symbols)):
        return False  # a constant that was read as a variable, as in e^{i \\pi}
    for first, step in POINTS:
        at = {symbol: sympy.Float(first + step * i, 30) for i, symbol in enumerate(symbols)}
        values = [complex(sympy.N(x.subs(at), 30)) for x in (one, other)]
        if abs(values[0] - values[1]) > 1e-6 * max(1.0, abs(values[0])):
            return True
    return False
"""


def same_by_math_verify(gold: str, answer: str, executor: Executor | None = None) -> tuple[bool | None, str]:
    """Whether two answers in normal form are equal, None where that cannot be said, and why."""
    if _CODE.search(answer):
        return None, "the answer is no mathematics"
    words = {*_words(gold), *_words(answer)}
    if any(len(word) > 2 for word in words):
        return None, "words are no mathematics"  # math-verify would multiply their letters
    if _BASED.search(gold) or _BASED.search(answer):
        return None, "a digit with a subscript is no plain number"
    try:
        sandbox = executors.math_checker() if executor is None else executor
        if "math_verify" not in sandbox.capabilities.modules:
            return None, f"symbolic answers need math-verify: {to_install('math')}"
        done = sandbox.run(Program(_CHECKER, entry="check", calls=[[gold, answer]]), LIMITS)
    except (SandboxError, ProgramError) as e:
        return None, str(e)
    if done.status is not Status.OK or len(done.values) != 1:
        return None, f"math-verify ended with {done.status} {done.error_type} {done.detail}".strip()
    [equal] = done.values
    if equal is False and (_UNBRACKETED.search(gold) or _UNBRACKETED.search(answer)):
        return None, "a function without brackets can be read in several ways"
    if equal is False and not set("".join(words)) <= set(gold) & set(answer):
        return None, "letters that only one has may be a word or a unit"
    return (equal, "by math-verify") if isinstance(equal, bool) else (None, "math-verify cannot tell")


def _words(text: str) -> list[str]:
    """Letters that stand together, but for commands and functions: words, units, or variables that are multiplied."""
    return [word for word in _LETTERS.findall(_COMMAND.sub(" ", text)) if not _NAMED.fullmatch(word)]
