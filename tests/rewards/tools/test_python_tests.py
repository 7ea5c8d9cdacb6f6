"""Code as reward: what is taken from a completion, what passes, where it failed, and that it cannot cheat or stall."""

import os
import signal
import time
from typing import Any

import pytest

from nabla_agents import (
    ConfigurationError,
    Execution,
    Executor,
    Limits,
    Program,
    PythonTests,
    Rollout,
    SandboxError,
    Score,
    Status,
)
from nabla_agents.rewards.tools import executors
from nabla_agents.rewards.tools.script import Script
from nabla_agents.rewards.tools.unit_tests import equal, unit_tests
from nabla_agents.sandbox import Capabilities

PAIRS: list[tuple[Any, Any]] = [((1, 2), 3), ((0, 0), 0), ((5, -5), 0), ((2, 2), 4)]
GOOD = "def add(a, b):\n    return a + b"
FAST = Limits(cpu_seconds=1, wall_seconds=4.0)


def judge(tool: PythonTests, text: str) -> Score:
    return tool.score([Rollout.from_text("?", text)])[0]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"Here it is:\n```python\n{GOOD}\n```\nIt adds.",
        f"```\n{GOOD}\n```",
        f"```py\n{GOOD}\n```\n```python\nprint(add(1, 2))\n```",  # the block that defines it
        f"```python\ndef add(a, b): return 0\n```\nNo:\n```python\n{GOOD}\n```",
        f"```json\n{{}}\n```\n~~~python3\n{GOOD}\n~~~",
        f"Sure, this adds:\n\n{GOOD}",
        f"```python\n{GOOD}",
        "1. So:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n",  # indented within a list
        "add = lambda a, b: a + b",
        "class add:\n    def __new__(cls, a, b): return a + b",
        "import math\n@staticmethod\ndef add(a, b): return math.fsum([a, b])",  # 3.0 is 3
    ],
)
def test_a_right_function_is_verified(programs: Executor, text: str) -> None:
    score = judge(PythonTests(PAIRS, entry="add"), text)
    assert (score.value, score.verdict, score.verified, score.spans) == (1.0, 1.0, True, ()), score.explanation
    assert score.explanation == "4 of 4 tests passed"
    assert score.usage.reward_calls == 1


@pytest.mark.parametrize(
    ("text", "value", "place"),
    [
        ("def add(a, b):\n    return a - b", 0.25, None),
        ("def add(a, b): return 0", 0.5, None),
        (
            "def add(a, b):\n    if a == 0:\n        raise ValueError('zero')\n    return a + b",
            0.75,
            "raise ValueError('zero')",
        ),
        ("so\n```python\nx = 1\ndef add(a, b):\n    return  a + c\n```", 0.0, "return  a + c"),
        ("def add(a, b:\n    return", 0.0, "def add(a, b:"),
        ("def sub(a, b): return a", 0.0, None),
        ("def add(a): return a", 0.0, None),
        ("def add(a, b): return {a + b}", 0.0, None),  # a set is no JSON
        ("def add(a, b): return str(a + b)", 0.0, None),
        ("def add(a, b): return True", 0.0, None),
        ("import os\ndef add(a, b): os._exit(0)", 0.0, None),
        ("raise SystemExit", 0.0, "raise SystemExit"),
        ("import no_such_thing\n" + GOOD, 0.0, "import no_such_thing"),
        ("open('/etc/passwd')\n" + GOOD, 0.0, "open('/etc/passwd')"),
        ("", 0.0, None),
        ("```json\n{}\n```", 0.0, None),
        ("I do not know.", 0.0, None),
        ("def add(a, b):\n\x00 return", 0.0, None),
        ("def add(a, b): return '\ud800'", 0.0, None),
    ],
)
def test_the_value_is_the_share_that_passes_and_the_failing_line_is_located(
    programs: Executor, text: str, value: float, place: str | None
) -> None:
    score = judge(PythonTests(PAIRS, entry="add", credit=3.0), text)
    assert (score.value, score.verdict, score.verified) == (value, value, False), score.explanation
    assert score.explanation
    found = [(text[s.start : s.end], s.value, s.credit) for s in score.spans]
    assert found == ([] if place is None else [(place, -1.0, 3.0)]) or (
        place is None and "SyntaxError" in score.explanation
    )


def test_one_that_never_ends_fails_once_and_not_for_every_test(programs: Executor) -> None:
    started = time.perf_counter()
    score = judge(
        PythonTests(PAIRS * 5, entry="add", limits=FAST), "def add(a, b):\n    while a < 2: pass\n    return a + b"
    )
    assert time.perf_counter() - started < 15  # twenty seconds, had each test its second
    assert (score.value, score.verified) == (0.0, False)
    assert "timeout" in score.explanation


ASSERTED = "assert add(1, 2) == 3\nassert add(0, 0) == 0"


@pytest.mark.parametrize("tests", [PAIRS, ASSERTED], ids=["pairs", "source"])
@pytest.mark.parametrize(
    ("imports", "verified"),
    [
        ("import pandas", False),
        ("raise ImportError('no pandas')", False),
        ("raise ModuleNotFoundError(\"No module named 'pandas'\", name='pandas')", False),
        ("import no_such_thing", False),
        ("import asyncio", None),  # a part of Python, which this sandbox lacks
    ],
)
def test_an_answer_that_needs_what_is_not_there_fails_and_ends_nothing(
    programs: Executor, tests: Any, imports: str, verified: bool | None
) -> None:
    """Neither a part that a test reaches, nor the whole: a low score that says so, whatever is tested with it."""
    whole = judge(PythonTests(tests, entry="add"), f"{imports}\n{GOOD}")
    part = judge(PythonTests(tests, entry="add"), f"def add(a, b):\n    if a == 1: {imports}\n    return a + b")
    assert (whole.value, whole.verified) == (0.0, verified), whole.explanation
    assert 0 < part.value < 1
    assert part.verified in (False, verified)
    for score in (whole, part):
        assert score.explanation.split("named ")[-1] in score.explanation
        assert "ModuleNotFoundError" in score.explanation or "ImportError" in score.explanation
        assert len(score.spans) == 1


def test_an_answer_that_does_without_what_is_not_there_is_right(programs: Executor) -> None:
    text = "try:\n    import pandas\nexcept ImportError:\n    pandas = None\n" + GOOD
    assert judge(PythonTests(PAIRS, entry="add"), text).verified is True


def test_what_the_tests_themselves_need_and_the_sandbox_lacks_is_no_verdict(programs: Executor) -> None:
    score = judge(PythonTests("import pandas\nassert add(1, 2) == 3"), GOOD)
    assert not score.judged
    assert "No module named 'pandas'" in score.explanation


def test_a_batch_is_judged_in_order(programs: Executor) -> None:
    texts = [GOOD, "def add(a, b): return 0", "", GOOD, "while True: pass", "import asyncio"]
    scores = PythonTests(PAIRS, entry="add", limits=FAST).score([Rollout.from_text("?", t) for t in texts])
    assert [s.value for s in scores] == [1.0, 0.5, 0.0, 1.0, 0.0, 0.0]


def test_none_is_expected_and_what_is_no_json_is_not_none(programs: Executor) -> None:
    """A set comes back as None with a reason; it must not pass where None is expected."""
    tests: list[tuple[Any, Any]] = [((0,), None), ((1,), 1)]
    assert judge(PythonTests(tests, entry="f"), "def f(x): return x or None").value == 1.0
    assert judge(PythonTests(tests, entry="f"), "def f(x): return x or {1}").value == 0.5
    assert judge(PythonTests(tests, entry="f"), "def f(x): return {1} if x else None").value == 0.5
    assert judge(PythonTests([((0,), None)], entry="f"), "def f(x): return float('nan')").value == 0.0


# ── assertions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def compared(source: str) -> list[Any]:
    """What each assertion leaves in the host; None for one that stays whole."""
    tests = unit_tests(source, None)
    assert isinstance(tests, Script)
    assert tests.count == source.count("assert ")
    return [check.expected if check.expression else None for check in tests.checks]


@pytest.mark.parametrize(
    ("assertion", "expected"),
    [
        ("assert f(1, [2]) == 3", 3),
        ("assert 3 == f(1)", 3),
        ("assert f(x=-1.5) == -2.5", -2.5),
        ("assert f(1) == (1, [2])", (1, [2])),
        ("assert f((1, 2)) == {1, 2}", {1, 2}),
        ("assert f({1: 2}) == {1: b'x'}", {1: b"x"}),
        ("assert sorted(f(1))[0].strip() == 'a'", "a"),
        ("assert f('a') is True", True),
        ("assert Stack().push(1).empty() == False", False),
        ("assert f(1) in (1, 2)", (1, 2)),
        ("assert f(1) < 2", 2),
        ("assert f(1) != 'x'", "x"),
        ("assert f(1) == float('inf')", float("inf")),
        ("assert set(f(1)) == set([1, 2])", {1, 2}),
        ("assert f(1) == chr(8)", "\x08"),
        ("assert f(1) == (1.5, -2 + 1j)", (1.5, -2 + 1j)),
    ],
)
def test_what_an_assertion_compares_with_stays_in_the_host(assertion: str, expected: Any) -> None:
    assert compared(assertion) == [expected]
    [check] = unit_tests(assertion, None).checks  # type: ignore[union-attr]
    assert assertion not in unit_tests(assertion, None).around("")  # type: ignore[union-attr]
    assert check.expression


@pytest.mark.parametrize(
    "assertion",
    [
        "assert isinstance(f(1), int) is True",  # who answers is not the program
        "assert all(f(i) for i in range(3))",
        "assert (f(1) == 2 and 'yes') == 'yes'",
        "assert f(1) is 300",
        "assert f(1) == g",
        "assert f(1) == 2 or f(2) == 3",
        "assert f(x) == len",
        "from math import isclose\nassert isclose(f(1), 2)",
        "assert [f(1)][0].real == 2 * [1]",
        "def abs(x): return 0\nassert abs(f(1) - 2) < 1",
    ],
)
def test_an_assertion_that_decides_beside_the_program_stays_whole(assertion: str) -> None:
    assert compared(assertion) == [None]


@pytest.mark.parametrize(
    ("condition", "good", "bad"),
    [
        ("math.isclose(f(1), 2.0, rel_tol=0.001)", "2.001", "2.1"),
        ("abs(f(1) - 2) < 1e-09", "2.0", "2.1"),
        ("1 < f(1) < 3", "2", "3"),
        ("f(1) == f(2)", "{1: (2,)}", "x"),
        ("not f(1) == f(2)", "x", "0"),
        ("sorted(f(1)) == sorted(f(2), reverse=False)", "[2, 1]", "[x]"),
        ("len(f(1)) >= len([1, 2])", "'ab'", "'a'"),
        ("round(f(1), 2) == round(f(2), 2)", "1 / 3", "x / 7"),
        ("(f(1) == 2) == True", "2", "3"),
        ("f(1) * 2 + 1 in (5, 7)", "2", "4"),
        ("math.isclose(f(1), f(2))", "2", "'a'"),
    ],
)
def test_a_condition_is_evaluated_in_the_host(programs: Executor, condition: str, good: str, bad: str) -> None:
    """The program's interpreter sends what its own calls give, and nothing else: nothing of it can forge the rest."""
    source = f"import math\nassert {condition}"
    [check] = unit_tests(source, None).checks  # type: ignore[union-attr]
    assert check.expression in ("f(1)", "(f(1), f(2))")
    for value, verified in ((good, True), (bad, False)):
        score = judge(PythonTests(source), f"def f(x): return {value}")
        assert score.verified is verified, (value, score.explanation)
    assert condition in score.explanation
    forger = "class All:\n    __eq__ = __lt__ = __gt__ = lambda *_: True\ndef f(x): return All()"
    assert judge(PythonTests(source), forger).verified is not True


@pytest.mark.parametrize(
    "condition",
    ["f(1) * 10**8 == 1", "len(f(1)) == 9", "str(f(1)) == '1'", "max(f(1)) == 3", "f(1) % 0 == 1", "chr(f(1)) == 'a'"],
)
def test_what_cannot_be_evaluated_is_a_failed_test(programs: Executor, condition: str) -> None:
    for value in ("10**70000", "'a' * 10**6", "None", "float('nan')", "-1"):
        assert judge(PythonTests(f"assert {condition}"), f"def f(x): return {value}").value == 0.0


def test_a_helper_that_decides_is_no_evidence(programs: Executor) -> None:
    """`judge` says "right" of whatever claims to be equal to all."""
    source = "def judge(x):\n    return 'right' if x == 3 else 'wrong'\nassert judge(add(1, 2)) == 'right'"
    forger = "class All:\n    __eq__ = lambda *_: True\ndef add(a, b): return All()"
    for text in (GOOD, forger):
        score = judge(PythonTests(source), text)
        assert (score.value, score.verified) == (1.0, None), score.explanation
    assert judge(PythonTests(source), "def add(a, b): return 0").verified is False


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        ("assert f(2) == (1, 2)", "def f(n): return (1, n)", "def f(n): return [1, n]"),
        ("assert f(2) == {1, 2}", "def f(n): return {n, 1}", "def f(n): return [1, 2]"),
        ("assert f(2) == {1: 'a', (2, 3): None}", "def f(n): return {(n, 3): None, 1: 'a'}", "def f(n): return {}"),
        ("assert f(2) == b'ab'", "def f(n): return b'ab'", "def f(n): return 'ab'"),
        ("assert f(2) == {'a': 2}", "from collections import Counter\ndef f(n): return Counter('a' * n)", "f = str"),
        ("assert f(2) == (0, 2)", "from typing import NamedTuple\nclass P(NamedTuple):\n    a: int\n    b: int\n"
         "def f(n): return P(0, n)", "def f(n): return n"),
        ("assert f(1)", "def f(n): return [n]", "def f(n): return []"),
        ("assert not f(1)", "def f(n): return ''", "def f(n): return 'x'"),
        ("assert f(0.1) == 0.3", "def f(x): return x + 0.2", "def f(x): return x + 0.20001"),
        ("assert f(1) == 1", "def f(x): return True", "def f(x): return '1'"),
        ("assert f(1) < 2", "def f(x): return x", "def f(x): return 'a'"),
        ("assert f(1) is None", "def f(x): pass", "def f(x): return 0"),
        ("assert f(2) == 1" + 4000 * "0", "def f(x): return 10 ** 4000", "def f(x): return 10 ** 4000 + 1"),
        ("assert f(2) == 1" + 40 * "0", "def f(x): return 10 ** 40", "def f(x): return 10 ** 40 + 1"),
    ],
)  # fmt: skip
def test_values_are_compared_as_python_does(programs: Executor, source: str, good: str, bad: str) -> None:
    for text, verified in ((good, True), (bad, False)):
        score = judge(PythonTests(source), text)
        assert score.verified is verified, (text, score.explanation)
        space: dict[str, Any] = {}
        exec(text, space)
        if "0.3" not in source:  # floats are equal within 1e-9
            assert _passes(source, space) is verified


def _passes(source: str, space: dict[str, Any]) -> bool:
    try:
        exec(source, space)
    except (AssertionError, TypeError):
        return False
    return True


def test_tests_run_in_their_order_and_share_their_state(programs: Executor) -> None:
    stack = (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def pop(self): return self.items.pop()\n    def size(self): return len(self.items)"
    )
    source = (
        "s = Stack()\ns.push(1)\nassert s.pop() == 1\ns.push(2)\ns.push(3)\nassert s.pop() == 3\nassert s.size() == 1"
    )
    score = judge(PythonTests(source), stack)
    assert (score.value, score.verified) == (1.0, True), score.explanation
    assert judge(PythonTests(source), stack.replace("items.pop()", "items.pop(0)")).value == pytest.approx(2 / 3)


def test_one_that_raises_leaves_the_others(programs: Executor) -> None:
    source = "assert f(0) == 0\nassert f(1) == 1\nassert f(2) == 2\nassert f(3) == 3"
    text = "def f(n):\n    if n == 1: raise ValueError('one')\n    if n == 2: raise SystemExit\n    return n"
    score = judge(PythonTests(source), text)
    assert (score.value, score.verified) == (0.25, False)  # who leaves, leaves the rest untried
    assert [text[s.start : s.end] for s in score.spans] == ["if n == 1: raise ValueError('one')"]
    assert "f(1): error ValueError one" in score.explanation


@pytest.mark.parametrize(
    "source",
    [
        "def test_sum():\n    assert add(1, 2) == 3\ndef test_zero():\n    assert add(0, 0) == 0",
        "def check(candidate):\n    assert candidate(1, 2) == 3",
        "def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)\nprint('passed')",
        "import unittest\ndef test_it():\n    assert add(1, 2) == 3\nif __name__ == '__main__':\n    test_it()",
    ],
)
def test_functions_that_assert_are_called(programs: Executor, source: str) -> None:
    tests = PythonTests(source, entry="add")
    assert judge(tests, GOOD).verified is None
    assert judge(tests, GOOD).value == 1.0
    assert judge(tests, "def add(a, b): return 9").value == 0.0


@pytest.mark.parametrize("source", ["x = 1", "def check(c):\n    assert c(1)", "print(add(1, 2))", "import math"])
def test_source_that_tests_nothing_is_refused(source: str) -> None:
    with pytest.raises(ConfigurationError, match="tests nothing"):
        PythonTests(source)


FORGERS = {
    "equal to all": "class All:\n    __eq__ = lambda *_: True\ndef add(a, b): return All()",
    "number equal to all": "class All(int):\n    __eq__ = lambda *_: True\ndef add(a, b): return All(7)",
    "builtins": (
        "import builtins\nbuiltins.eval = lambda *_: 3\nbuiltins.exec = lambda *_: None\n"
        "builtins.isinstance = lambda *_: True\ndef add(a, b): return 0"
    ),
    "forged report": (
        "import os\ndef add(a, b):\n"
        "    os.write(3, b'{\"status\": \"ok\", \"values\": [[\"held\"], [\"held\"], [\"held\"]]}')\n    os._exit(0)"
    ),
    "reads its tests": (
        "import sys\ndef add(a, b):\n    frame = sys._getframe(1)\n    while frame:\n"
        "        for value in list(frame.f_locals.values()):\n"
        "            if 'assert' in str(value):\n                return int(str(value).split('==')[1].split()[0])\n"
        "        frame = frame.f_back\n    return 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("forger", FORGERS.values(), ids=FORGERS)
def test_no_forger_is_verified(programs: Executor, forger: str) -> None:
    source = "assert add(1, 2) == 3\nassert add(5, 6) == 11\nassert add(2, 2) == 4"
    assert judge(PythonTests(source), GOOD).verified is True
    score = judge(PythonTests(source), forger)
    assert score.verified is not True, score.explanation
    mixed = "import math\n" + source + "\nassert math.isclose(add(1, 1), 2)\nassert add(1, 2) == add(2, 1)"
    assert judge(PythonTests(mixed), forger).verified is not True
    assert judge(PythonTests(mixed), GOOD).verified is True


def test_arguments_that_are_no_json_reach_the_function_as_they_are(programs: Executor) -> None:
    tool = PythonTests("assert f({1: 'a'}, (0, 1)) == 'a'")
    assert judge(tool, "def f(names, key): return names[{(0, 1): 1}[key]]").value == 1.0


def test_calls_that_do_not_fit_together_are_tried_alone(programs: Executor) -> None:
    pairs = [((i,), "y" * 900) for i in range(30)]
    assert judge(PythonTests(pairs, entry="f"), "def f(x): return 'y' * 900").verified is True
    score = judge(PythonTests(pairs, entry="f"), "def f(x): return 'y' * (900 if x < 25 else 10**6)")
    assert (score.value, score.verified) == (pytest.approx(25 / 30), False)
    printing = "def f(x):\n    print('z' * 9000)\n    return 'y' * 900"
    assert judge(PythonTests(pairs, entry="f"), printing).verified is True


def test_assertions_run_beside_the_program(programs: Executor) -> None:
    tool = PythonTests(
        "import math\nassert add(1, 2) == 3\nassert math.isclose(add(0.1, 0.2), 0.3)\nassert add(2, 2) == 4"
    )
    assert judge(tool, GOOD).value == 1.0
    assert judge(tool, "def add(a, b): return 3").value == pytest.approx(1 / 3)
    assert judge(tool, "def add(a, b):\n    return undefined").value == 0.0


def test_nobody_vouches_for_assertions_that_ran_beside_the_program(programs: Executor) -> None:
    """Such an answer ends no search: the program could have made them pass, as the forger does. A failed one counts."""
    forger = "class All:\n    __eq__ = __ne__ = __lt__ = __gt__ = lambda *_: True\ndef add(a, b): return All()"
    for source, seen in (("assert add(1, 2) == add(2, 1)", True), ("assert add(2, 2) != 5 or True", None)):
        assert judge(PythonTests(source), GOOD).verified is seen
        for text in (forger, GOOD)[: 1 if seen else 2]:
            score = judge(PythonTests(source), text)
            assert (score.value, score.verified) == (1.0, None)
            assert "beside the program" in score.explanation
        assert judge(PythonTests(source), "def add(a, b): return undefined").verified is False
    for source in ("assert add(1, 2) == 3", "x = 1\nassert add(x, 2) == 3"):
        assert judge(PythonTests(source), forger).value == 0.0
        assert judge(PythonTests(source), GOOD).verified is True  # compared outside


def test_a_checking_function_is_one_test(programs: Executor) -> None:
    tool = PythonTests(
        "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\ncheck(add)"
    )
    assert judge(tool, GOOD).value == 1.0
    assert (judge(tool, "def add(a, b): return 3").value, judge(tool, "").value) == (0.0, 0.0)


@pytest.mark.parametrize(
    "cheat",
    [
        "import sys\ndef add(a, b): sys.exit(0)",
        "raise SystemExit",
        "import os\ndef add(a, b): os._exit(0)",
        "import builtins\nbuiltins.print = lambda *_: None\ndef add(a, b): return 0",
        "print('ok')\ndef add(a, b): raise SystemExit(0)",
        "class All:\n    __eq__ = lambda *_: True\ndef add(a, b): return All()",
    ],
)
def test_leaving_early_passes_no_test(programs: Executor, cheat: str) -> None:
    assert judge(PythonTests(PAIRS, entry="add"), cheat).verified is False
    for source in ("assert add(1, 2) == 3", "import math\nassert math.isclose(add(1, 2), 3)"):
        assert judge(PythonTests(source), cheat).verified is False


@pytest.mark.parametrize(
    "forgery",
    [
        "exec = lambda *a, **k: None",
        "eval = compile = exec = lambda *a, **k: None",
        "import builtins\nbuiltins.exec = builtins.eval = builtins.compile = lambda *a, **k: None",
        "import builtins\nbuiltins.abs = lambda *_: 0\nbuiltins.all = builtins.isinstance = lambda *_: True",
        "abs = lambda *_: 0\nall = isinstance = lambda *_: True",
        "__builtins__ = {'abs': lambda *_: 0}",
        "_nabla_test = lambda last: ['held']",
        "AssertionError = None",
    ],
)
def test_what_runs_beside_the_program_has_pythons_own_builtins(programs: Executor, forgery: str) -> None:
    source = (
        "assert abs(add(1, 2) - 3) < 1e-9 or False\nassert all(add(i, 1) == i + 1 for i in range(3))\n"
        "assert isinstance(add(1, 2), int) and add(1, 2) == 3"
    )
    score = judge(PythonTests(source), f"{forgery}\ndef add(a, b): return 7")
    assert (score.value, score.verified) == (0.0, False), score.explanation
    assert judge(PythonTests(source), GOOD).value == 1.0


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("assert sum(1, 2) == 3\nassert sum(2, 2) == 4", "def sum(a, b): return a + b"),
        ("assert max([1, 2], 3) == [3]", "def max(xs, x): return [x]"),
        ("value = input()\nassert read() == 'x'", "def input(): return 'x'\ndef read(): return input()"),
    ],
)
def test_what_the_tests_ask_for_may_have_the_name_of_a_builtin(programs: Executor, source: str, text: str) -> None:
    entry = None if "read" not in source else "input"
    assert judge(PythonTests(source, entry=entry), text).verified is True


def test_a_program_sees_what_its_tests_bind(programs: Executor) -> None:
    source = (
        "class Node:\n    def __init__(self, value): self.value = value\nLIMIT = 3\ninput = lambda: 'typed'\n"
        "assert value(Node(2)) == (2, 3, 'typed', 2)\nassert calls == 1"
    )
    text = (
        "calls = 0\ndef value(node):\n    global calls\n    calls += 1\n"
        "    return node.value, LIMIT, input(), Node(2).value"
    )
    score = judge(PythonTests(source), text)
    assert score.value == 1.0, score.explanation


@pytest.mark.parametrize(
    ("source", "text", "passes"),
    [
        ("assert f() == 0.5", "from fractions import Fraction\ndef f(): return Fraction(1, 2)", True),
        ("assert f() == 3", "from decimal import Decimal\ndef f(): return Decimal('3.0')", True),
        ("assert f() == {'a'}", "def f(): return {'a': 1}.keys()", True),
        ("assert f() == 'a'", "import enum\nclass E(enum.Enum):\n    A = 'a'\ndef f(): return E.A", False),
        ("assert f() == [1]", "def f(): return iter([1])", False),
        ("assert f() is not None", "def f(): return object()", True),
        ("assert f() is None", "def f(): return object()", False),
        ("assert f() < 2", "class A:\n    __lt__ = lambda *_: True\ndef f(): return A()", False),
    ],
)
def test_objects_are_what_they_are_worth_as_data(programs: Executor, source: str, text: str, passes: bool) -> None:
    score = judge(PythonTests(source), text)
    assert score.verified is passes, score.explanation


@pytest.mark.parametrize(
    "deed",
    [
        "print('x' * 10**9)",
        "import os; os.fork()",
        "import ctypes; ctypes.string_at(0)",
        "add(a, b)",
        "open('/tmp/forged', 'w').write('x')",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "bytearray(10**11)",
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "while True: pass",
        "import subprocess; subprocess.run(['true'])",
    ],
)
@pytest.mark.parametrize("tests", [PAIRS[:2], "assert add(1, 2) == 3\nassert add(0, 0) == 0"], ids=["pairs", "source"])
def test_a_hostile_function_is_a_low_score(programs: Executor, deed: str, tests: Any) -> None:
    """Beside it, a right one of the same batch is verified."""
    tool = PythonTests(tests, entry="add", limits=Limits(cpu_seconds=1, wall_seconds=4.0, fuel=2 * 10**9))
    hostile = f"def add(a, b):\n    {deed}\n    return a + b"
    scores = tool.score([Rollout.from_text("?", text) for text in (hostile, GOOD)])
    assert scores[0].verified is not True
    assert scores[0].value == 0.0
    assert scores[0].explanation
    assert scores[1].verified is True


# ── per prompt, and what is refused ───────────────────────────────────────────────────────────────────────────────────


def test_tests_per_prompt(programs: Executor) -> None:
    known: dict[str, Any] = {"add": PAIRS, "assert": "assert add(1, 2) == 3", "odd": [], "broken": "assert ("}
    tool = PythonTests(lambda rollout: known.get(rollout.prompt.question), entry="add")
    scores = tool.score([Rollout.from_text(q, GOOD) for q in ("add", "assert", "odd", "broken", "unknown")])
    assert [s.verified for s in scores] == [True, True, None, None, None]
    assert "no tests" in scores[2].explanation
    assert "no Python" in scores[3].explanation
    assert "no tests are known" in scores[4].explanation


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("tests", "entry"),
    [
        ([], "f"),
        ("", None),
        ("# nothing", None),
        ("assert (", None),
        ("\x00", None),
        (b"assert f(1)", None),
        (None, "f"),
        ([((1,), 2)], None),
        ([((1,), 2)], "not a name"),
        ([((1,), 2)], "f()"),
        ([((1,), 2)], 3),
        ([((1,), 2)], ""),
        ([((1,), 2)], "def"),
        ([(({1: 2},), 2)], "f"),  # would arrive as {"1": 2}
        ([((1,), "x" * 20_000)], "f"),  # no right answer could come back
        ([(1, 2)], "f"),
        ([((1,), {1, 2})], "f"),
        ([((1,), float("nan"))], "f"),
        ([((1,), 2, 3)], "f"),
        (["ab"], "f"),
        (lambda r: None, "not a name"),
    ],
)
def test_what_are_no_tests_is_refused(tests: Any, entry: Any) -> None:
    with pytest.raises(ConfigurationError):
        PythonTests(tests, entry=entry)


def test_tests_longer_than_a_source_may_be_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"source_bytes is 262144; raise it"):
        PythonTests("assert f(1) == 1\n" * 20_000)


@pytest.mark.untyped
def test_bytes_are_not_judged(programs: Executor) -> None:
    [score] = PythonTests(PAIRS, entry="add").score([Rollout.from_text("?", b"def add(a, b): ...")])  # type: ignore[arg-type]
    assert not score.judged


@pytest.mark.parametrize(
    ("expected", "value", "same"),
    [
        (3, 3, True),
        (3, 3.0, True),
        (0.3, 0.1 + 0.2, True),
        (1e20, 1e20 + 1e5, True),
        (0.0, 1e-12, True),
        (0.3, 0.3001, False),
        (10**30, 10**30 + 1, False),  # whole numbers are exact
        (10**400, 1.5, False),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        (0, None, False),
        (None, None, True),
        ("a", "a", True),
        ("1", 1, False),
        ([1, [2.0]], [1, [2]], True),
        ([1, 2], [2, 1], False),
        ([], {}, False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
    ],
)
def test_which_values_are_equal(expected: Any, value: Any, same: bool) -> None:
    assert equal(expected, value) is same
    assert equal(value, expected) is same


class Double:
    """A sandbox that gives programs the ends it is told, the last one for ever, and remembers what it was sent."""

    def __init__(self, *executions: Execution) -> None:
        self.executions, self.capabilities = [*executions], Capabilities("double", "3.11", frozenset(), ())
        self.programs: list[Program] = []

    def run(self, program: Program, limits: Limits | None = None) -> Execution:
        return self.run_many([program])[0]

    def run_many(self, programs: Any, limits: Limits | None = None) -> list[Execution]:
        self.programs += programs
        return [self.executions.pop(0) if len(self.executions) > 1 else self.executions[0] for _ in programs]

    def close(self) -> None: ...

    def __enter__(self) -> "Double":
        return self

    def __exit__(self, *_: object) -> None: ...


LOW = [s for s in Status if s not in (Status.OK, Status.UNAVAILABLE)]


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
@pytest.mark.parametrize("tests", [PAIRS, "x = 1\nassert add(1, 2) == 3"], ids=["pairs", "assertions"])
def test_every_status_has_its_verdict(status: Status, tests: Any) -> None:
    entry = "add" if tests is PAIRS else None
    score = judge(PythonTests(tests, entry=entry, executor=Double(Execution(status, detail="why", line=1))), GOOD)
    assert score.judged is (status in LOW)
    assert (score.value == 0.0) is (status in LOW)
    assert str(status) in score.explanation


# ── how long one program can take ─────────────────────────────────────────────────────────────────────────────────────

ASSERTIONS = "x = 1\n" + "assert add(1, 2) == 3\n" * 30
LATE = Execution(Status.TIMEOUT, wall_seconds=5.0, detail="wall clock")
RAISED = Execution(Status.ERROR, error_type="ValueError")


@pytest.mark.parametrize(
    ("tests", "ends", "runs"),
    [
        (PAIRS * 10, [LATE], 1),  # the run of all calls
        (PAIRS * 10, [RAISED, LATE], 2),  # and the first call that it left
        (PAIRS * 10, [RAISED, RAISED, LATE], 6),  # then four at a time
        (ASSERTIONS, [LATE], 1),
        (ASSERTIONS, [RAISED], 1),  # before any test
        (ASSERTIONS, [Execution(Status.OUTPUT_LIMIT), LATE], 2),
    ],
)
def test_a_program_that_never_ends_is_not_run_for_every_test(tests: Any, ends: list[Execution], runs: int) -> None:
    double = Double(*ends)
    score = judge(PythonTests(tests, entry="add", executor=double), GOOD)
    assert len(double.programs) == runs
    assert (score.value, score.verified) == (0.0, False)


def test_slow_runs_have_a_limit_together_and_what_was_not_tried_is_no_failure() -> None:
    """Four times the wall clock of one run is 20 s: 1 + 4 runs of 3 s are within it, and 4 more are not."""
    limits = Limits(wall_seconds=5)
    slow = Execution(Status.OK, stdout="?", wall_seconds=3.0)
    called = Execution(Status.OK, values=(3,), wall_seconds=3.0)
    pairs: list[tuple[Any, Any]] = [((1, 2), 3)] * 30
    double = Double(Execution(Status.OUTPUT_LIMIT), called)  # each call alone
    score = judge(PythonTests(pairs, entry="add", executor=double, limits=limits), GOOD)
    assert len(double.programs) == 1 + 9
    assert not score.judged
    assert score.explanation == "9 of 30 tests passed; 21 tests were not tried, because those before took 27.0 s"
    double = Double(Execution(Status.OUTPUT_LIMIT), slow)  # a report without values
    failing = judge(PythonTests(ASSERTIONS, executor=double, limits=limits), GOOD)
    assert (failing.value, failing.verified) == (0.0, False)
    assert "21 tests were not tried" in failing.explanation


def test_expected_values_never_enter_the_sandbox() -> None:
    secret = 918273645
    for tests in ([((1,), secret)], f"assert f(1) == {secret}"):
        double = Double(Execution(Status.OK, values=(secret,)))
        assert judge(PythonTests(tests, entry="f", executor=double), "def f(x): ...").verified is True
        assert double.programs
        assert all(str(secret) not in program.as_json() for program in double.programs)


@pytest.mark.parametrize("entry", ["add", "ａｄｄ"])
@pytest.mark.parametrize("written", ["add", "ａdd"])
def test_names_are_the_same_in_full_width_letters(programs: Executor, entry: str, written: str) -> None:
    text = f"```python\ndef {written}(a, b): return a + b\n```\nSo:\n```python\nx = 1\n```"
    assert judge(PythonTests(PAIRS, entry=entry), text).verified is True
    assert judge(PythonTests(f"assert {entry}(1, 2) == 3"), text).verified is True


def test_a_machine_without_a_sandbox_judges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Executor:
        asked.append(1)
        raise SandboxError("nothing contains code here")

    asked: list[int] = []
    monkeypatch.setattr(executors, "programs", executors.SharedExecutor(none))
    for _ in range(2):
        score = judge(PythonTests(PAIRS, entry="add"), GOOD)
        assert not score.judged
        assert "nothing contains code here" in score.explanation
    assert asked == [1]  # the self-test takes a second: a failure is remembered


def test_a_sandbox_that_did_not_start_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may have been short of processes for a moment."""
    clock, answers = [0.0], [SandboxError("no process left"), Double(Execution(Status.OK))]

    def make() -> Executor:
        answer = answers.pop(0)
        if isinstance(answer, SandboxError):
            raise answer
        return answer

    monkeypatch.setattr(executors.time, "monotonic", lambda: clock[0])
    shared = executors.SharedExecutor(make)
    for now in (0.0, executors.RETRY_SECONDS):
        clock[0] = now
        with pytest.raises(SandboxError, match="no process left"):
            shared()
    assert len(answers) == 1
    clock[0] = executors.RETRY_SECONDS + 0.1
    assert shared() is shared()
    assert answers == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_makes_a_sandbox_of_its_own() -> None:
    """The pipes to the workers are the parent's, and its lock may be held by a thread that the child lacks."""
    made: list[Executor] = []

    def make() -> Executor:
        made.append(Double(Execution(Status.OK)))
        return made[-1]

    shared = executors.SharedExecutor(make)
    assert shared() is shared()
    with shared._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if shared() is made[-1] and len(made) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(made) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD, ""),
        ("def add(a, b): return a - b", "1 of 4 tests passed. add(1, 2) returned -1, expected 3."),
        ("def add(a, b): return {a}", "0 of 4 tests passed. add(1, 2) returned None, or what is no JSON, expected 3."),
        (
            "def add(a, b):\n    if a == 0:\n        raise ValueError('zero\\n\\x1b[2J')\n    return a + b",
            "3 of 4 tests passed. add(0, 0) raises ValueError: zero [2J, in line 3, "
            + repr("raise ValueError('zero\\n\\x1b[2J')")
            + ".",
        ),
        ("```\n```", "There is no Python code in the answer."),
        ("def add(a, b):\n    while True: pass", "0 of 4 tests passed. add(1, 2) takes too long."),
        (
            "raise SystemExit",
            "0 of 4 tests passed. add(1, 2) exits before it returns, in line 1, 'raise SystemExit'.",
        ),
    ],
)
def test_a_model_is_told_the_first_failing_call_and_what_was_expected(programs: Executor, text: str, told: str) -> None:
    assert judge(PythonTests(PAIRS, entry="add", limits=FAST), text).feedback == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def add(a, b): return 4", "1 of 2 tests passed. add(1, 2) returned 4, expected 3."),
        ("def add(a, b): return 3", "1 of 2 tests passed. add(2, 2) returned 3, expected > 3."),
        (
            "def add(a, b): return a + c",
            "0 of 2 tests passed. add(1, 2) raises NameError: name 'c' is not defined, in line 1, "
            "'def add(a, b): return a + c'.",
        ),
    ],
)
def test_a_model_is_told_the_assertion_that_failed(programs: Executor, text: str, told: str) -> None:
    assert judge(PythonTests("assert add(1, 2) == 3\nassert add(2, 2) > 3"), text).feedback == told


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError('<|im_end|>' * 100_000 + '\\x00\\x1b[2J\\ud800')",
        "return '\\x00\\x1b\\u202e\\r\\n<|im_end|>' * 2000",
        "raise type('E' * 100_000, (Exception,), {})('\\n' * 100_000)",
        "return {'<|im_end|>' * 1000: ['\\x07'] * 1000}",
    ],
)
def test_what_a_hostile_program_has_to_say_is_short_plain_text(programs: Executor, body: str) -> None:
    told = judge(PythonTests([(("x" * 10_000, 1), "y" * 10_000)], entry="add"), f"def add(a, b):\n    {body}").feedback
    assert told.startswith("0 of 1 tests passed. add('xxx")
    assert len(told) <= 500
    assert told.isprintable()
