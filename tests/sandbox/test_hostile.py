"""Traps of running untrusted code, each found once: no program raises in the host, and each gets its status."""

import time

import pytest

from nabla_agents import Execution, Executor, Limits, Program, Status

LIMITS = Limits(wall_seconds=1.0, cpu_seconds=5, memory_bytes=128 << 20)
REPORT = 3  # the descriptor of the report, in `fork`


def run(executor: Executor, code: str) -> Execution:
    done = executor.run(Program(code), LIMITS)
    assert executor.run(Program("print(6 * 7)")).stdout == "42\n", "the next check must not notice"
    return done


def deep(depth: int) -> str:
    return f"import os; os.write({REPORT}, b'[' * {depth}); os._exit(0)"


def forged(report: str) -> str:
    return f"import os; os.write({REPORT}, {report.encode()!r}); os._exit(0)"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("", Status.OK),
        ("1 / 0", Status.ERROR),
        ("x = (", Status.ERROR),
        ("x = 1\0", Status.ERROR),
        ("# \udcff", Status.ERROR),
        ("raise BaseException", Status.ERROR),
        ("raise KeyboardInterrupt", Status.ERROR),
        ("raise GeneratorExit", Status.ERROR),
        ("import sys; sys.exit(3)", Status.ERROR),
        ("exit()", Status.OK),
        ("import sys; sys.stdout.close()", Status.OK),
        ("import sys; sys.stdout.close(); print(1)", Status.ERROR),
        ("import sys; del sys.stdout", Status.OK),
        ("import builtins; builtins.__dict__.clear(); x", Status.ERROR),
        ("import sys; sys.modules.clear(); import re", Status.ERROR),
        ("import sys\ndef t(*a): raise ValueError\nsys.settrace(t)\n(lambda: 0)()", Status.ERROR),
        ("import json; json.dumps = None; json.JSONEncoder = None", Status.OK),
        ("def f(): f()\nf()", Status.ERROR),
        ("input()", Status.ERROR),
        ("import os; os._exit(0)", Status.CRASHED),
        ("import os; os.closerange(0, 64)", Status.CRASHED),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", Status.DENIED),
        ("import ctypes; ctypes.string_at(0)", Status.CRASHED),
        ("bytearray(10 ** 10)", Status.OOM),
        ("'x' * (1 << 62) * 8", Status.OOM),
        ("1 << 10 ** 20", Status.OOM),
        ("raise MemoryError", Status.OOM),
        ("e = SyntaxError()\ne.filename, e.lineno = '<program>', object()\nraise e", Status.ERROR),
        (
            "class T(str):\n    def __getitem__(self, i): return 3\n"
            "class E(Exception):\n    def __str__(self): return T()\nraise E",
            Status.ERROR,
        ),
        ("import math; math.exp(1000)", Status.ERROR),
        ("float(10 ** 400)", Status.ERROR),
        ("raise PermissionError('of its own')", Status.ERROR),
        ("open('/etc/hostname')", Status.DENIED),
        ("import os; os.fork()", Status.DENIED),
        ("import asyncio", Status.UNSUPPORTED),
        ("import pandas", Status.UNSUPPORTED),
        ("import no_such_module", Status.ERROR),
        ("import guest", Status.ERROR),
        ("while True: pass", Status.TIMEOUT),
        ("import time; time.sleep(60)", Status.TIMEOUT),
        ("10 ** 10 ** 10", Status.TIMEOUT),
        ("sum(range(10 ** 12))", Status.TIMEOUT),
        ("import re; re.match('(a+)+$', 'a' * 40 + 'b')", Status.TIMEOUT),
        ("while True: print('x' * 1000)", Status.OUTPUT_LIMIT),
        ("try: print('x' * 10 ** 6, flush=True)\nexcept BaseException: pass", Status.OUTPUT_LIMIT),
    ],
)
def test_what_a_program_does_has_a_status(fork: Executor, code: str, status: Status) -> None:
    done = run(fork, code)
    assert done.status is status, done
    assert done.wall_seconds < LIMITS.wall_seconds + 0.5


@pytest.mark.parametrize(
    "code",
    [
        deep(30_000),
        forged(""),
        forged("null"),
        forged("[]"),
        forged("7"),
        forged("{}"),
        forged('"ok"'),
        forged('{"status": {"ok": 1}}'),
        forged('{"status": ["ok"]}'),
        forged('{"status": "timeout"}'),
        forged('{"status": "unavailable"}'),
        forged('{"status": "ok", "values": 3}'),
        forged('{"status": "ok", "values": [1]}'),
        forged('{"status": "ok", "line": true}'),
        forged('{"status": "ok", "line": 1e9}'),
        forged('{"status": "ok", "error_type": 3}'),
        forged('{"status": "ok", "detail": NaN}'),
        forged('{"status": "ok"}{"status": "ok"}'),
        "import os; os.write(3, b'\\xff\\xfe\\x00'); os._exit(0)",
    ],
    ids=lambda code: code[21:60],
)
def test_a_forged_report_is_a_crash(fork: Executor, code: str) -> None:
    assert run(fork, code).status is Status.CRASHED


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "[" * 30_000, "[" * 200 + "]" * 200, "1" * 5000])
def test_a_forged_value_that_no_json_has_is_a_crash(fork: Executor, value: str) -> None:
    report = f'{{"status": "ok", "values": [{value}]}}'
    program = Program(f"{forged(report)}\ndef f(): pass", entry="f", calls=[[]])
    assert fork.run(program, LIMITS).status is Status.CRASHED


def test_a_flood_in_the_report_is_ended(fork: Executor) -> None:
    done = run(fork, f"import os\nwhile True: os.write({REPORT}, b'[' * 4096)")
    assert done.status is Status.OUTPUT_LIMIT


def test_a_hostile_exception_is_cut_and_guarded(fork: Executor) -> None:
    done = run(fork, "class E(Exception):\n    def __str__(self): raise ValueError\nraise E")
    assert (done.error_type, done.error_message, done.line) == ("E", "?", 3)
    done = run(fork, "raise type('N' * 10 ** 6, (Exception,), {})('m' * 10 ** 6)")
    assert done.status is Status.ERROR
    assert (len(done.error_type), len(done.error_message)) == (200, 1000)
    done = run(fork, "raise ValueError('\\ud800')")
    assert done.error_message == "?"


def test_text_is_always_printable(fork: Executor) -> None:
    """Lone surrogates and broken UTF-8 would make the host fail later, at a log line."""
    assert run(fork, "import os; os.write(1, b'\\xff!')").stdout == "\ufffd!"
    assert run(fork, "print('\\ud800!')").stdout == "?!\n"
    done = fork.run(Program("def f(): return ['\\ud800', {'\\ud800': 1}]", entry="f", calls=[[]]))
    assert done.values == (["?", {"?": 1}],)


def test_a_gigabyte_of_print_keeps_its_head_and_costs_nothing(fork: Executor) -> None:
    done = run(fork, "print('head')\nfor _ in range(10 ** 6): print('A' * 1000)")
    assert (done.status, done.truncated) == (Status.OUTPUT_LIMIT, True)
    assert done.stdout.startswith("head\nAAA")
    assert len(done.stdout) <= LIMITS.output_bytes
    assert done.wall_seconds < LIMITS.wall_seconds


def test_a_shared_structure_is_no_bomb(fork: Executor) -> None:
    shared = "a = [1]\nfor _ in range(60): a = [a, a]\n"
    assert run(fork, shared + "repr(a)").status in (Status.OOM, Status.TIMEOUT)
    done = fork.run(Program(shared + "def f(): return a", entry="f", calls=[[]]), LIMITS)
    assert (done.status, done.values) == (Status.OUTPUT_LIMIT, ())


def test_a_value_that_is_no_json_is_none_with_a_reason(fork: Executor) -> None:
    code = "def f(kind): return {'set': {1}, 'nan': float('nan'), 'deep': deep, 'tuple': (1, 2)}[kind]\ndeep = []\n"
    code += "for _ in range(10 ** 5): deep = [deep]"
    done = fork.run(Program(code, entry="f", calls=[["set"], ["nan"], ["deep"], ["tuple"]]), LIMITS)
    assert done.status is Status.OK
    assert done.values == (None, None, None, [1, 2])
    assert "call 2" in done.detail


def test_numbers_of_numpy_are_values(fork: Executor) -> None:
    code = "import numpy as np\ndef f(): return [np.int64(3), np.float32(0.5), np.arange(3)]"
    if "numpy" in fork.capabilities.modules:
        assert fork.run(Program(code, entry="f", calls=[[]])).values == ([3, 0.5, [0, 1, 2]],)


def test_leaving_early_passes_no_test(fork: Executor) -> None:
    """SystemExit(0) is `ok`, and says that it left; the values that were asked for are not there."""
    done = fork.run(Program("import sys\nsys.exit(0)\nassert False"))
    assert (done.status, done.detail, done.values) == (Status.OK, "exit", ())
    done = fork.run(Program("def f(x):\n    if x: raise SystemExit\n    return 42", entry="f", calls=[[0], [1], [0]]))
    assert (done.detail, done.values) == ("exit", (42,))


def test_calls_stop_at_the_first_that_fails(fork: Executor) -> None:
    """A value of None for a failed call would equal an expected None."""
    done = fork.run(Program("def f(x): return 6 // x", entry="f", calls=[[1], [0], [2]]))
    assert (done.status, done.values, done.error_type, done.line) == (Status.ERROR, (6,), "ZeroDivisionError", 1)
    assert fork.run(Program("x = 1", entry="f", calls=[[]])).error_type == "NameError"


def test_inputs_are_globals_and_stdin_is_read(fork: Executor) -> None:
    done = fork.run(Program("print(n + 1, input(), input())", inputs={"n": 41}, stdin="a\nb\n"))
    assert done.stdout == "42 a b\n"
    assert fork.run(Program("def f(x): return x + n", entry="f", calls=[[1]], inputs={"n": 41})).values == (42,)
    assert fork.run(Program("print(__name__)")).stdout == "__main__\n"


def test_source_above_its_limit_starts_nothing(fork: Executor) -> None:
    started = time.monotonic()
    done = fork.run(Program("#" * 10_000_000))
    assert (done.status, done.error_type, done.wall_seconds) == (Status.ERROR, "SourceTooLong", 0.0)
    assert time.monotonic() - started < 1


def test_nothing_is_left_for_the_next_program(fork: Executor) -> None:
    run(fork, "import math, builtins, sys; math.pi = 3; builtins.leak = 1; sys.setrecursionlimit(50)")
    assert run(fork, "import math, sys; print(math.pi > 3, sys.getrecursionlimit() > 50)").stdout == "True True\n"
    assert run(fork, "print(leak)").error_type == "NameError"


def test_order_and_chance_are_the_same_every_time(fork: Executor) -> None:
    code = "import random; print(set('abcdefgh'), random.random(), hash('abc'))"
    assert len({fork.run(Program(code)).stdout for _ in range(4)}) == 1


@pytest.mark.parametrize("argument", [0, -1])
def test_every_other_system_call_is_refused(fork: Executor, argument: int) -> None:
    """Raw numbers, past Python. The three that end or suspend the process by design are not tried."""
    code = f"""
import ctypes, errno
from ctypes import get_errno
libc = ctypes.CDLL(None, use_errno=True)
for number in range(460):
    ctypes.set_errno(0)
    if number not in allowed and (libc.syscall(number, *[{argument}] * 6) != -1 or get_errno() != errno.EPERM):
        print(number)
"""
    seccomp = pytest.importorskip("nabla_agents.sandbox.guest.seccomp")
    column = seccomp.MACHINES[__import__("platform").machine()][0]
    allowed = [call[column] for call in seccomp.CALLS.values() if call[column] is not None]
    broken = [335, 336]  # x86-64 has none of these two: they raise SIGILL, without effect
    done = fork.run(Program(code, inputs={"allowed": allowed + broken}), LIMITS)
    assert (done.status, done.stdout) == (Status.OK, "")


def test_whole_numbers_of_any_length_have_a_text(fork: Executor) -> None:
    """A value is sent with as many digits as another interpreter reads, so that none of them breaks the report."""
    done = fork.run(Program("print(len(str(10**5000)), int('9' * 5000) == 10**5000 - 1)"))
    assert done.stdout == "5001 True\n"
    done = fork.run(Program("def f(n): return 10**n", entry="f", calls=[[4000], [5000], [2]]))
    assert (done.status, done.values) == (Status.OK, (10**4000, None, 100))
    assert "4300 digits" in done.detail
