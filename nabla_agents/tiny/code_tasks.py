"""Small Python functions to write from a description with unit tests, drawn from a seed, in splits that share none.

A task is a chain of steps on a list of integers. Some steps are worded so that two or three programs fit the words
("between 3 and 8": with the ends or without?), each with fixed odds of being meant. A small model learns the wording
and the odds, and cannot run the tests in its head: what is hard for it is what unit tests are for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from nabla_agents.tiny.splits import check_request, split_of

SHOWN_TESTS: Final = 3
HIDDEN_TESTS: Final = 8
_NAMES: Final = ("solve", "pick", "run", "work", "build", "calc", "make", "find")
_STEP_COUNTS: Final = (1, 2, 3, 4)  # before the last one
_STEP_WEIGHTS: Final = (2, 4, 3, 1)
_LARGEST: Final = 20

Test = tuple[tuple[list[int]], Any]


@dataclass(frozen=True, slots=True)
class CodeTask:
    """A description with its unit tests, the reference program in a fenced block, and how to check another.

    `tests` are those of the question, pairs of arguments and result; `hidden_tests` are others, which also tell a
    program that only happens to pass those shown.
    """

    question: str
    solution: str
    entry: str
    tests: tuple[Test, ...]
    hidden_tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """Wordings of a step, and the expressions in `xs` that they may mean, with their odds. Both may name k and m."""

    wordings: tuple[str, ...]
    readings: tuple[tuple[str, float], ...]
    numbers: tuple[int, int] = (2, 9)  # the range of k; m is k + 3 to k + 9


def _step(wordings: str, *readings: tuple[str, float], numbers: tuple[int, int] = (2, 9)) -> Step:
    return Step(tuple(wordings.split(" / ")), readings, numbers)


_STEPS: Final = (
    _step("keep the even numbers / drop the odd ones", ("[x for x in xs if x % 2 == 0]", 1.0)),
    _step("keep the odd numbers / drop the even ones", ("[x for x in xs if x % 2 == 1]", 1.0)),
    _step("add {k} to each / increase each by {k}", ("[x + {k} for x in xs]", 1.0)),
    _step("double each / multiply each by two", ("[x * 2 for x in xs]", 1.0)),
    _step("square each / multiply each by itself", ("[x * x for x in xs]", 1.0)),
    _step("reverse the list / turn the list around", ("xs[::-1]", 1.0)),
    _step(
        "keep those from {k} to {m} / keep the range {k} to {m}",
        ("[x for x in xs if {k} <= x <= {m}]", 0.7),
        ("[x for x in xs if {k} <= x < {m}]", 0.3),
    ),
    _step(
        "keep those between {k} and {m} / drop those not between {k} and {m}",
        ("[x for x in xs if {k} < x < {m}]", 0.7),
        ("[x for x in xs if {k} <= x <= {m}]", 0.3),
    ),
    _step(
        "drop those up to {k} / remove all up to {k}",
        ("[x for x in xs if x > {k}]", 0.7),
        ("[x for x in xs if x >= {k}]", 0.3),
        numbers=(3, 12),
    ),
    _step("sort them / put them in order", ("sorted(xs)", 0.7), ("sorted(xs, reverse=True)", 0.3)),
    _step("take every second one / keep every other one", ("xs[::2]", 0.7), ("xs[1::2]", 0.3)),
    _step(
        "start at place {k} / begin with number {k}",
        ("xs[{k} - 1:]", 0.7),
        ("xs[{k}:]", 0.3),
        numbers=(1, 2),
    ),
    _step("remove repeats / keep each once", ("list(dict.fromkeys(xs))", 0.7), ("sorted(set(xs))", 0.3)),
    _step("halve each / divide each by two", ("[x // 2 for x in xs]", 0.7), ("[x / 2 for x in xs]", 0.3)),
    _step(
        "add to each its place / increase each by its place",
        ("[x + i for i, x in enumerate(xs)]", 0.7),
        ("[x + i for i, x in enumerate(xs, 1)]", 0.3),
    ),
)
_LAST: Final = (
    _step("return the list / return what is left", ("xs", 1.0)),
    _step("return the sum / return the total", ("sum(xs)", 1.0)),
    _step("return the largest / return the maximum", ("max(xs)", 1.0)),
    _step("return how many there are / return the count", ("len(xs)", 1.0)),
    _step(
        "return the first {k} / return {k} from the start",
        ("xs[:{k}]", 1.0),
        numbers=(1, 3),
    ),
    _step(
        "return the middle one / return the one in the middle",
        ("xs[len(xs) // 2]", 0.7),
        ("sorted(xs)[len(xs) // 2]", 0.3),
    ),
    _step(
        "return the place of the largest / return where the maximum is",
        ("xs.index(max(xs))", 0.7),
        ("xs.index(max(xs)) + 1", 0.3),
    ),
    _step(
        "return the average / return the mean",
        ("sum(xs) // len(xs)", 0.7),
        ("sum(xs) / len(xs)", 0.3),
    ),
    _step(
        "return the difference of the ends / return the distance of the ends",
        ("xs[-1] - xs[0]", 0.5),
        ("xs[0] - xs[-1]", 0.3),
        ("abs(xs[-1] - xs[0])", 0.2),
    ),
)
_OPENINGS: Final = (
    "Write a Python function {name}(xs) for a list of numbers: {steps}.",
    "Define {name}(xs) in Python. With the list xs, {steps}.",
    "Write {name}(xs) in Python. It must {steps}.",
)


def code_tasks(n: int, *, seed: int, split: str = "train") -> list[CodeTask]:
    """`n` tasks of one split: "train", "test" or "validation".

    The same seed gives the same list, and a longer list begins with the shorter one. No chain of steps of one split
    occurs in another, with the same numbers, whatever its wording and whichever reading of it is meant.
    """
    check_request("code_tasks", n, split)
    random = Random(f"code/{split}/{seed}")
    drawn: list[CodeTask] = []
    while len(drawn) < n:
        steps = _draw_steps(random)
        key = "; ".join(step.readings[0][0].format(k=k, m=m) for step, k, m in steps)
        if split_of(key) == split and (task := _task(steps, random)) is not None:
            drawn.append(task)
    return drawn


def _draw_steps(random: Random) -> list[tuple[Step, int, int]]:
    count = random.choices(_STEP_COUNTS, _STEP_WEIGHTS)[0]
    steps: list[tuple[Step, int, int]] = []
    for step in [*random.sample(_STEPS, count), random.choice(_LAST)]:
        k = random.randint(*step.numbers)
        steps.append((step, k, k + random.randint(3, 9)))
    return steps


def _task(steps: list[tuple[Step, int, int]], random: Random) -> CodeTask | None:
    """A task whose shown tests tell each other reading of a single step from the one meant; None if none was found."""
    name = random.choice(_NAMES)
    meant = [random.choices(range(len(s.readings)), [odds for _, odds in s.readings])[0] for s, _, _ in steps]
    program = _program(steps, meant)
    others = [
        _function(_program(steps, [*meant[:i], reading, *meant[i + 1 :]]))
        for i, (step, _, _) in enumerate(steps)
        for reading in range(len(step.readings))
        if reading != meant[i]
    ]
    tests = _tests(_function(program), others, random)
    if tests is None:
        return None
    wordings = [random.choice(step.wordings).format(k=k, m=m) for step, k, m in steps]
    steps_text = ", ".join(wordings[:-1]) + ", then " + wordings[-1]
    shown = "\n".join(f"assert {name}({xs!r}) == {result!r}" for (xs,), result in tests[:SHOWN_TESTS])
    question = random.choice(_OPENINGS).format(name=name, steps=steps_text) + "\n\n" + shown
    solution = f"```python\ndef {name}(xs):\n{program}\n```"
    return CodeTask(question, solution, name, tests[:SHOWN_TESTS], tests[SHOWN_TESTS:])


def _program(steps: list[tuple[Step, int, int]], readings: list[int]) -> str:
    expressions = [s.readings[r][0].format(k=k, m=m) for (s, k, m), r in zip(steps, readings, strict=True)]
    return "\n".join([*(f"    xs = {e}" for e in expressions[:-1]), f"    return {expressions[-1]}"])


def _function(program: str) -> Callable[[list[int]], Any]:
    """The program as a function; it is made of this module's own lines alone."""
    scope: dict[str, Any] = {}
    exec(f"def function(xs):\n{program}", scope)
    return scope["function"]


def _tests(
    function: Callable[[list[int]], Any], others: list[Callable[[list[int]], Any]], random: Random
) -> tuple[Test, ...] | None:
    for _ in range(4):
        tests = tuple(_draw_tests(function, random))
        shown = tests[:SHOWN_TESTS]
        if len(tests) < SHOWN_TESTS + HIDDEN_TESTS:
            return None
        if all(any(_result(other, xs) != result for (xs,), result in shown) for other in others):
            return tests
    return None


def _draw_tests(function: Callable[[list[int]], Any], random: Random) -> Iterator[Test]:
    """Tests with lists on which the function does not fail; few or none if it fails on most."""
    found: list[list[int]] = []
    for _ in range(5 * (SHOWN_TESTS + HIDDEN_TESTS)):
        xs = [random.randint(0, _LARGEST) for _ in range(random.randint(4, 6))]
        if random.random() < 0.5:
            xs[random.randrange(len(xs))] = random.choice(xs)  # something to remove repeats of
        result = _result(function, xs)
        if result is None or xs in found:
            continue
        found.append(xs)
        yield (xs,), result
        if len(found) == SHOWN_TESTS + HIDDEN_TESTS:
            return


def _result(function: Callable[[list[int]], Any], xs: list[int]) -> Any:
    try:
        return function(list(xs))
    except (IndexError, ValueError, ZeroDivisionError):  # nothing is left to take one of
        return None
