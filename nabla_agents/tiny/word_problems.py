"""Arithmetic word problems of two to five steps, drawn from a seed, in three splits that share no computation.

A problem is a chain: a start number, then operations, each with one operand. The story tells the chain in its own
order, one sentence a step, so that reading it is easy; what is hard for a small model is the arithmetic.
"""

import re
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from nabla_agents.tiny.splits import Split, check_request, split_of

Operation = Literal["+", "-", "*", "/"]

LARGEST_VALUE: Final = 999
_STEP_COUNTS: Final = (2, 3, 4, 5)
_STEP_WEIGHTS: Final = (4, 4, 3, 1)
_OPERATIONS: Final[tuple[Operation, ...]] = ("+", "-", "*", "/")
_OPERATION_WEIGHTS: Final = (3, 3, 2, 2)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its worked solution (one `a op b = c` a line, then `Answer: n`), and the number n as text."""

    question: str
    solution: str
    answer: str


@dataclass(frozen=True, slots=True)
class Chain:
    """The computation of a problem: `start`, then each (operation, operand) applied to the value before it."""

    start: int
    steps: tuple[tuple[Operation, int], ...]

    def key(self) -> str:
        """Text that two problems share exactly when their computations are the same."""
        return f"{self.start}" + "".join(f" {operation} {operand}" for operation, operand in self.steps)

    def split(self) -> Split:
        """The split this computation belongs to: a function of the chain alone, so no wording moves it."""
        return split_of(self.key())

    def values(self) -> list[int]:
        """The start and the value after each step; all lie in 1..LARGEST_VALUE."""
        values = [self.start]
        for operation, operand in self.steps:
            values.append(_apply(values[-1], operation, operand))
        return values


_WOMEN: Final = "Mia Anna Sara Lena Ruth Ella Nina Clara Ida Zoe Maya Lucy"
_MEN: Final = "Tom Ben Omar Leo Max Paul Finn Noah Jack Ivan Sam Karl"
_PEOPLE: Final = [(name, "She") for name in _WOMEN.split()] + [(name, "He") for name in _MEN.split()]
_OBJECTS: Final = (
    "apples books coins cards pens shells stamps marbles pears stickers beads nuts "
    "cookies buttons stones eggs plums flowers balls cups bricks keys tickets candles"
)
_OPENINGS: Final = (
    "{name} has {n} {things}.",
    "{name} starts with {n} {things}.",
    "There are {n} {things} on the table of {name}.",
    "{name} owns {n} {things}.",
    "At first {name} has {n} {things}.",
)
_SENTENCES: Final[dict[Operation, tuple[str, ...]]] = {
    "+": (
        "{who} buys {n} more.",
        "{who} finds {n} more.",
        "{who} gets {n} more.",
        "A friend brings {n} more.",
        "Then {n} more are added.",
    ),
    "-": (
        "{who} gives away {n}.",
        "{who} loses {n}.",
        "{who} sells {n}.",
        "Then {n} are taken away.",
        "A friend borrows {n}.",
    ),
    "*": (
        "{who} then has {n} times as many.",
        "The number grows {n} times.",
        "Each one is traded for {n}.",
        "Now there are {n} times as many.",
    ),
    "/": (
        "{who} keeps one of {n} equal shares.",
        "They are split by {n} and one part stays.",
        "{who} packs {n} equal bags and keeps one.",
        "Only one part in {n} is left.",
    ),
}
_CLOSINGS: Final = (
    "How many {things} does {name} have now?",
    "How many {things} are there in the end?",
    "How many {things} are left?",
    "What is the number of {things} now?",
)

_ANSWER_LINE: Final = re.compile(r"^[ \t]*Answer:(.*)$", re.MULTILINE)
_NUMBER: Final = re.compile(r"(-?)([0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)\.?")


def problems(n: int, *, seed: int, split: str = "train") -> list[Problem]:
    """`n` problems of one split: "train", "test" or "validation".

    The same seed gives the same list, and a longer list begins with the shorter one. No computation of one split occurs
    in another, whatever its wording.
    """
    check_request("problems", n, split)
    random = Random(f"{split}/{seed}")
    drawn: list[Problem] = []
    while len(drawn) < n:
        chain = _draw_chain(random)
        if chain.split() == split:
            drawn.append(Problem(_story(chain, random), _solution(chain), str(chain.values()[-1])))
    return drawn


def is_correct(text: object, problem: Problem) -> bool:
    """Whether the first `Answer:` line of `text` states the problem's answer; False when it has none, or no number.

    The first line counts, so that text running on after an answer changes nothing. A thousands separator and a closing
    period are allowed. Never raises: what is no text is not correct.
    """
    line = _ANSWER_LINE.search(text) if isinstance(text, str) else None
    number = _NUMBER.fullmatch(line.group(1).strip()) if line else None
    if number is None:
        return False
    sign, digits = number.groups()
    return sign + (digits.replace(",", "").lstrip("0") or "0") == problem.answer


def _apply(value: int, operation: Operation, operand: int) -> int:
    match operation:
        case "+":
            return value + operand
        case "-":
            return value - operand
        case "*":
            return value * operand
        case "/":
            return value // operand


def _draw_chain(random: Random) -> Chain:
    start = value = _draw_number(random, LARGEST_VALUE)
    steps: list[tuple[Operation, int]] = []
    count = random.choices(_STEP_COUNTS, _STEP_WEIGHTS)[0]
    while len(steps) < count:
        operation, operand = _draw_step(random, value)
        if steps and (steps[-1], operation) in ((("*", operand), "/"), (("/", operand), "*")):
            continue  # a step that only undoes the one before it
        steps.append((operation, operand))
        value = _apply(value, operation, operand)
    return Chain(start, tuple(steps))


def _draw_step(random: Random, value: int) -> tuple[Operation, int]:
    while True:  # some addition or subtraction is always possible, so this ends
        operation = random.choices(_OPERATIONS, _OPERATION_WEIGHTS)[0]
        match operation:
            case "+":
                if value <= LARGEST_VALUE - 2:
                    return operation, _draw_number(random, LARGEST_VALUE - value)
            case "-":
                if value >= 4:
                    return operation, _draw_number(random, value - 1)
            case "*":
                if 2 <= value <= LARGEST_VALUE // 2:
                    return operation, random.randint(2, min(9, LARGEST_VALUE // value))
            case "/":
                divisors = [divisor for divisor in range(2, 10) if value % divisor == 0 and value > divisor]
                if divisors:
                    return operation, random.choice(divisors)


def _draw_number(random: Random, largest: int) -> int:
    """A number in 2..largest, of one or two digits four times in five."""
    return random.randint(2, min(largest, 99 if random.random() < 0.8 else 300))


def _story(chain: Chain, random: Random) -> str:
    name, pronoun = random.choice(_PEOPLE)
    things = random.choice(_OBJECTS.split())
    sentences = [random.choice(_OPENINGS).format(name=name, n=chain.start, things=things)]
    for operation, operand in chain.steps:
        who = pronoun if random.random() < 0.7 else name
        sentences.append(random.choice(_SENTENCES[operation]).format(who=who, n=operand))
    sentences.append(random.choice(_CLOSINGS).format(name=name, things=things))
    return " ".join(sentences)


def _solution(chain: Chain) -> str:
    values = chain.values()
    lines = [
        f"{before} {operation} {operand} = {after}"
        for before, (operation, operand), after in zip(values, chain.steps, values[1:], strict=False)
    ]
    return "\n".join([*lines, f"Answer: {values[-1]}"])
