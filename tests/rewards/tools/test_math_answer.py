"""The final answer as reward: the corpus of pairs, answers per prompt, and what is not judged."""

import json
import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nabla_agents import ConfigurationError, Execution, Executor, MathAnswer, Rollout, Score, Status
from nabla_agents.rewards.tools import executors
from nabla_agents.sandbox import Capabilities, Limits, Program

PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "data" / "sandbox" / "math_pairs.jsonl").read_text().splitlines()
]


def judge(tool: MathAnswer, text: str, question: str = "?") -> Score:
    return tool.score([Rollout.from_text(question, text)])[0]


def said(score: Score) -> str:
    return {True: "equal", False: "different", None: "open"}[score.verified]


def test_the_corpus_is_judged_as_labelled_or_left_open(math_checker: Executor) -> None:
    """No pair of 42 is judged wrongly, all numbers are judged in the host, and at most 5 formulas are left open."""
    found: Counter[str] = Counter()
    for pair in PAIRS:
        if pair["contested"] or pair["hostile"]:
            continue
        got = said(judge(MathAnswer(pair["gold"], symbolic=pair["needs"] != "number"), pair["answer"]))
        assert got == pair["label"] or (got == "open" and pair["needs"] != "number"), pair
        found[got if got == "open" else "right"] += 1
    assert found["right"] + found["open"] == 42
    assert found["open"] <= 5, found


def test_hostile_answers_end_in_time_and_are_never_equal(math_checker: Executor) -> None:
    hostile = [pair for pair in PAIRS if pair["hostile"]]
    assert len(hostile) == 11
    for pair in hostile:
        started = time.perf_counter()
        score = judge(MathAnswer(pair["gold"]), pair["answer"])
        assert score.verified is not True, pair
        assert "ESCAPED" not in score.explanation
        assert time.perf_counter() - started < 10, pair


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First 7, then 8. The answer is 18.", "equal"),
        ("so **Answer: 18** dollars", "equal"),
        ("16 - 3 = 13\n#### 18", "equal"),
        ("\\boxed{17} no, \\boxed{18}", "equal"),
        ("\\boxed{18} eggs, of 36", "equal"),
        ("She has 18 eggs left.", "equal"),
        ("18", "equal"),
        ("The answer is 17. Not 18.", "different"),
        ("18 is too much, the answer is 17", "different"),
        ("#### 81", "different"),
        ("", "open"),
        ("I cannot tell.", "open"),
        ("It is 17 or 18", "open"),
        ("The answer is 17 or 18", "open"),
        ("The answer is eighteen", "equal"),
        ("The answer is eighty", "different"),
        ("The answer is eighteen eggs", "open"),
        ("The answer is $18.", "equal"),
        ("The answer is 1800 cents", "open"),
        ("\\boxed{}", "open"),
        ("\\boxed{18", "open"),  # cut off
        ("#### " + "1" * 3000, "open"),
    ],
)
def test_the_last_stated_answer_counts(text: str, expected: str) -> None:
    assert said(judge(MathAnswer(18, symbolic=False), text)) == expected


def test_values_and_verdicts() -> None:
    right, wrong, open_ = (judge(MathAnswer("1/2", symbolic=False), t) for t in ("#### 0.5", "#### 0.6", "#### x"))
    assert (right.value, right.verdict, right.verified) == (1.0, 1.0, True)
    assert (wrong.value, wrong.verdict, wrong.verified) == (0.0, 0.0, False)
    assert math.isnan(open_.value)
    assert all(s.usage.reward_calls == 1 and s.spans == () for s in (right, wrong, open_))


def test_answers_per_prompt() -> None:
    by_question = MathAnswer(answers={"1+1?": 2, "1+2?": "3"}, symbolic=False)
    by_function = MathAnswer(lambda r: {"1+1?": 2.0, "1+2?": "\\boxed{3}"}.get(r.prompt.question), symbolic=False)
    for tool in (by_question, by_function):
        assert [said(judge(tool, "#### 2", q)) for q in ("1+1?", "1+2?", "else?")] == ["equal", "different", "open"]
        assert "no right answer is known" in judge(tool, "#### 2", "else?").explanation


def test_the_right_answer_may_be_a_whole_solution() -> None:
    assert said(judge(MathAnswer("3 * 6 = 18 eggs\n#### 18", symbolic=False), "The answer is 18")) == "equal"
    assert said(judge(MathAnswer("we get $\\boxed{\\frac{1}{2}}$.", symbolic=False), "0.5")) == "equal"


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("x^2+2x+1", "(x+1)^2", "equal"),
        ("\\sqrt{8}", "2\\sqrt{2}", "equal"),
        ("x^2+2x+1", "(x-1)^2", "different"),
        ("\\pi", "3.14159265", "open"),  # rounded
        ("\\sqrt{2}", "\\sqrt{3}", "different"),
        ("e^{i\\pi}", "-1", "open"),  # math-verify says different
        ("\\sin x", "__import__('os')", "open"),
        ("x^2", "x.diff(x)", "open"),
        ("xy", "y x", "equal"),
        ("xy", "x+y", "different"),
        ("\\sin(x)", "\\cos(x)", "different"),
        ("3\\sqrt{2}", "3\\sqrt{2} cm", "equal"),
        ("3\\sqrt{2}", "3\\sqrt{2}\\text{ units}", "open"),
        ("7", "seven eggs", "open"),
        ("100", "one hundred", "open"),
        ("0", "no", "open"),
        ("no solution", "none", "open"),
        ("silent", "listen", "open"),
    ],
)
def test_formulas_are_compared_in_the_sandbox(math_checker: Executor, gold: str, answer: str, expected: str) -> None:
    got = judge(MathAnswer(gold), f"\\boxed{{{answer}}}")
    assert said(got) == expected, got.explanation


def test_formulas_are_compared_on_any_thread(math_checker: Executor) -> None:
    """math-verify's own clock raises outside the main thread."""
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda i: judge(MathAnswer(f"x^{i}"), f"\\boxed{{x*x^{i - 1}}}"), range(3, 9)))
    assert [s.verified for s in scores] == [True] * 6


class Double:
    """A sandbox that answers what it is told to."""

    def __init__(self, execution: Execution, modules: frozenset[str] = frozenset({"math_verify"})) -> None:
        self.execution, self.capabilities = execution, Capabilities("double", "3.11", modules, ())
        self.programs: list[Program] = []

    def run(self, program: Program, limits: Limits | None = None) -> Execution:
        self.programs.append(program)
        return self.execution

    def run_many(self, programs: Any, limits: Limits | None = None) -> list[Execution]:
        return [self.run(p) for p in programs]

    def close(self) -> None: ...

    def __enter__(self) -> "Double":
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_a_check_that_fails_is_never_a_wrong_answer(status: Status) -> None:
    score = judge(MathAnswer("x^2", executor=Double(Execution(status))), "\\boxed{x^3}")
    assert not score.judged
    assert str(status) in score.explanation


@pytest.mark.parametrize("values", [(), (1,), ("True",), (True, True), ([True],)])
def test_a_check_that_answers_oddly_is_no_verdict(values: tuple[Any, ...]) -> None:
    assert not judge(MathAnswer("x^2", executor=Double(Execution(Status.OK, values=values))), "\\boxed{x^3}").judged


def test_without_math_verify_the_explanation_says_what_to_install() -> None:
    score = judge(MathAnswer("x^2", executor=Double(Execution(Status.OK), frozenset())), "\\boxed{x^3}")
    assert not score.judged
    assert "nabla-agents[math]" in score.explanation


def test_numbers_never_reach_the_sandbox() -> None:
    double = Double(Execution(Status.OK, values=(True,)))
    assert said(judge(MathAnswer("18", executor=double), "#### 17")) == "different"
    assert double.programs == []


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("5 km", "5 miles"), ("5 km", "5000 m"), ("1/3", "0.333"), ("x=1", "y=1"), ("11", "11_2"), ("7", "7_000")],
)
def test_what_math_verify_would_drop_is_left_open(math_checker: Executor, gold: str, answer: str) -> None:
    """Units, decimals, names and subscripts: it says that 5 km are 5 miles."""
    assert said(judge(MathAnswer(gold), rf"\boxed{{{answer}}}")) == "open"


HEDGES = [
    "42; 43", "41 = 42", "42 = 41", "x = 42 = 41", r"42 \approx 41", r"\ge 42", "> 42", r"\neq 42", r"\sim 42",
    "~42", "≈42", "[42,42]", "[42]", "42, 43", r"\{42, 43\}", "4 2", "42 43", r"42\,43", "42~43", r"42\quad 43",
    "42\u202e14", "4\u200b2", "⁴2", "42±1", r"42\pm 1", r"42 \lor 43", r"42 \text{ or } 43", "42 to 43", "42:43",
    "42...43", "$42$ $43$", "42 (or 43)", r"\boxed{42}{41}", r"\boxed{42} or \boxed{43}",
    r"\boxed{43}, \boxed{42}", r"\text{not }42", "about 42", "42?!", "42+", r"42 \pmod{43}", r"42; \frac{1}{2}",
    r"x \in \{42\}", r"42\\43", "4_2", "(42]",
]  # fmt: skip


@pytest.mark.parametrize("form", ["\\boxed{%s}", "#### %s", "The answer is %s", "%s"])
def test_no_hedge_is_verified(math_checker: Executor, form: str) -> None:
    for hedge in HEDGES:
        for gold in ("42", "41"):
            score = judge(MathAnswer(gold), form % hedge)
            assert score.verified is not True, (form % hedge, score.explanation)
            assert score.explanation


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("42", "x = 42"),
        ("42", r"\frac{84}{2}"),
        ("42", r"6 \cdot 7"),
        ("42", r"x = \sqrt{1764}"),
        ("42", "(42)"),
        ("42", "= 42"),
        ("42", r"42~\text{cm}"),
        ("1000", "1 000"),
        (r"11,\! 111", r"11,\! 111"),
        ("1.5", "1 1/2"),
        ("x > 3", "3 < x"),
        ("(1, 2)", r"\left( 1, 2 \right)"),
        ("1, 2", r"\{1, 2\}"),
        (r"2 \pm \sqrt{3}", r"2 \pm \sqrt{3}"),
        ("y = 2x", "2x"),
        ("4 2", "4 2"),
        ("639/40", r"15\frac{39}{40}}, or $\boxed{\frac{639}{40}"),
        ("42", r"42}$, so \boxed{42"),
    ],
)
def test_what_only_formats_an_answer_or_is_right_itself_is_no_hedge(
    math_checker: Executor, gold: str, answer: str
) -> None:
    score = judge(MathAnswer(gold), rf"\boxed{{{answer}}}")
    assert score.verified is True, score.explanation


def test_the_explanation_names_the_hedge() -> None:
    for text, words in [
        (r"\boxed{\ge 42}", r"'\\ge 42' is not judged: it is an inequality"),
        (r"\boxed{42} or \boxed{43}", "'43' stands beside another one, '42'"),
        ("#### 42\u202e14", "the invisible character U+202E"),
    ]:
        assert words in judge(MathAnswer("42", symbolic=False), text).explanation


def test_a_machine_without_a_sandbox_leaves_formulas_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Executor:
        from nabla_agents import SandboxError

        raise SandboxError("nothing contains code here")

    shared = executors.SharedExecutor(none)
    monkeypatch.setattr(executors, "math_checker", shared)
    score = judge(MathAnswer("x^2"), "\\boxed{x^3}")
    assert not score.judged
    assert "nothing contains code here" in score.explanation
    assert said(judge(MathAnswer("18"), "#### 18")) == "equal"


@pytest.mark.untyped
def test_bytes_are_not_judged() -> None:
    [score] = MathAnswer(1).score([Rollout.from_text("?", b"1")])  # type: ignore[arg-type]
    assert not score.judged


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        (None, None),
        (1, {"q": 1}),
        ("", None),
        ("  ", None),
        (math.nan, None),
        (True, None),
        (b"1", None),
        ([1], None),
        (None, {}),
        (None, [1]),
        (None, {"q": None}),
    ],
)
def test_what_is_no_answer_is_refused(answer: Any, answers: Any) -> None:
    with pytest.raises(ConfigurationError, match="MathAnswer"):
        MathAnswer(answer, answers=answers)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("The answer is 42.", ""),
        ("The answer is 42 or 43.", ""),  # not judged
        ("The answer is 41", "The final answer '41' is wrong."),
        ("\\boxed{41}", "The final answer '41' is wrong."),
    ],
)
def test_a_model_is_told_that_its_answer_is_wrong_and_nothing_of_the_right_one(text: str, told: str) -> None:
    [score] = MathAnswer(42, symbolic=False).score([Rollout.from_text("?", text)])
    assert score.feedback == told
