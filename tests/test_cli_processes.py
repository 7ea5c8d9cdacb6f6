"""The command `nabla` as a process of its own: on a terminal, in a pipe, and when somebody presses Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nabla_agents.testing import byte_tokenizer, random_model, random_process_reward

# Ctrl-C as a shell in the foreground leaves it, whatever the tests were started from.
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from nabla_agents.cli import main; sys.exit(main())"
)
COPIED = """
import os, signal, sys
os.setsid()
for descriptor, (file, mode) in enumerate(zip(files, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY))):
    os.dup2(os.open(file, mode), descriptor)
os.write(1, b"\\0")  # it is open
os.environ.clear()
os.environ.update(environment)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)
sys.argv = ["nabla", *arguments]
sys.modules["matplotlib"] = None  # pictures take a second
from nabla_agents.cli import main
sys.exit(main())
"""
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
CODES = re.compile(r"\x1b\[[?\d;]*[a-zA-Z]")
PATIENCE = 100  # seconds, on a machine that may have other work
SAMPLE = ("solve", "--sample", "28")
CLEAN = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONIOENCODING", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
pytestmark = pytest.mark.timeout(300)


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in CLEAN}
    return {**kept, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **changes}


class Copy:
    """`nabla` in a copy of a process that has loaded all libraries, which saves seconds; as a `Popen`."""

    def __init__(self, arguments: Sequence[str], files: Sequence[str | Path], env: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["nabla_agents.bench"])
        names = {"arguments": arguments, "files": files, "environment": env}
        self._process = context.Process(target=exec, args=(COPIED, names))
        self._process.start()
        self.kill = self._process.kill

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, seconds: float | None = None) -> int | None:
        self._process.join(seconds)
        return self._process.exitcode


class Terminal:
    """A pseudo-terminal with `nabla` running in it, and everything that was written to it; a `fresh` one loads all
    libraries anew.
    """

    def __init__(
        self, *arguments: str | Path, width: int = 100, height: int = 30, fresh: bool = False, **env: str
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._bytes, options, words = b"", environment(**env), [str(argument) for argument in arguments]
        if fresh:
            command, ends = [sys.executable, "-c", START, *words], {"stdin": slave, "stdout": slave, "stderr": slave}
            self.process = subprocess.Popen(command, **ends, env=options, start_new_session=True)
        else:
            self.process = Copy(words, [os.ttyname(slave)] * 3, options)
            assert self._read()
            self._bytes = self._bytes.removeprefix(b"\0")
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def output(self) -> str:
        return self._bytes.decode(errors="replace")

    @property
    def text(self) -> str:
        return CODES.sub("", self.output)

    def wait_for(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not seen():
            assert time.monotonic() < deadline, self.output
            assert self._read() or seen(), self.output

    def ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int | None:
        """The exit code; reads on until the process has closed the terminal."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], PATIENCE)
        assert ready, f"nothing came for {PATIENCE} s after:\n{self.output}"
        try:
            new = os.read(self._master, 1 << 16)
        except OSError:  # closed on the other side
            return False
        self._bytes += new
        return bool(new)


def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", START, *map(str, arguments)]
    return subprocess.run(command, env=environment(**env), capture_output=True, timeout=PATIENCE)


def assert_interrupted(terminal: Terminal) -> None:
    assert terminal.end() == 130, terminal.output
    assert "Traceback" not in terminal.text
    assert terminal.output.count(HIDE) >= 1
    assert terminal.output.rindex(SHOW) > terminal.output.rindex(HIDE)


@pytest.fixture(scope="module")
def rambler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model whose answers never end by themselves, and leave much to try."""
    model, folder = random_model("llama", width=16, layers=1, context_length=4096), tmp_path_factory.mktemp("rambler")
    model.transformer.module.save_pretrained(folder)
    model.tokenizer.hf.save_pretrained(folder)
    return folder


def test_a_terminal_shows_each_change_and_then_the_answer() -> None:
    with Terminal(*SAMPLE) as terminal:
        assert terminal.end() == 0
        output, text = terminal.output, terminal.text
    assert "Loading tiny" in text
    assert re.search(r"✓ 24 - 21 = 1 → 3  ranked by \+\d.*realised \+\d.*reward -?\d.* accepted", text)
    assert "refined answer" in text
    assert "80 · answer correct · draft wrong" in text
    assert output.rindex(SHOW) > output.rindex(HIDE)
    after = CODES.sub("", output[output.rindex(SHOW) :])
    assert after.count("Answer: 78 80") == 1


def test_ctrl_c_shows_the_best_answer_so_far(rambler: Path) -> None:
    endless = ("--rollouts", "100000", "--strategy", "nabla-none", "--temperature", "1", "--max-tokens", "60")
    with Terminal(*SAMPLE, "--model", rambler, *endless) as terminal:
        terminal.wait_for(lambda: terminal.text.count("ranked by") >= 2)
        terminal.ctrl_c()
        assert_interrupted(terminal)
        end = terminal.text[terminal.text.rindex("╭") :]
    assert "interrupted, the best so far is shown" in end
    assert "no answer yet" not in end
    assert "log-likelihood" in end
    assert "80 · answer wrong" in end


def test_ctrl_c_while_loading_ends_quietly() -> None:
    with Terminal(*SAMPLE, fresh=True) as terminal:
        terminal.wait_for(lambda: "Loading" in terminal.text)
        terminal.ctrl_c()
        assert_interrupted(terminal)
    assert terminal.text.rstrip().endswith("Interrupted.")


def test_a_comparison_that_was_interrupted_goes_on_to_the_same_figures(tmp_path: Path) -> None:
    options = "--problems 5 --arms greedy,best-of-2 --rollouts 2 --batch 1 --max-tokens 12"

    def bench(out: Path) -> list[str | Path]:
        return ["bench", *options.split(), "--out", out]

    def figures(out: Path) -> list[tuple[Any, ...]]:
        arms = json.loads((out / "results.json").read_text())["arms"]
        return [(arm["arm"], arm["problems"], arm["accuracy"], arm.get("course")) for arm in arms]

    lines = tmp_path / "a" / "records.jsonl"
    with Terminal(*bench(tmp_path / "a")) as terminal:
        deadline = time.monotonic() + PATIENCE
        while not (lines.exists() and lines.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        terminal.ctrl_c()
        assert_interrupted(terminal)
    kept = lines.read_bytes()
    assert 1 <= kept.count(b"\n") < 10
    told = re.search(r"Interrupted: (\d+) of 10 done and kept in \S+; the same command goes on\.", terminal.text)
    assert told
    assert 0 <= kept.count(b"\n") - int(told[1]) <= 1
    for folder in ("a", "b"):
        with Terminal(*bench(tmp_path / folder)) as terminal:
            assert terminal.end() == 0
    assert lines.read_bytes().startswith(kept)
    assert figures(tmp_path / "a") == figures(tmp_path / "b")
    assert [n for _, n, *_ in figures(tmp_path / "a")] == [5, 5, 5]


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(tmp_path: Path) -> None:
    """As `nabla solve ... | head -1`."""
    out, err = tmp_path / "out", tmp_path / "err"
    os.mkfifo(out)
    err.touch()
    process = Copy(SAMPLE, ["/dev/null", out, err], environment())
    with out.open("rb") as pipe:
        assert pipe.readline().startswith(b"\0question: ")
    assert process.wait(PATIENCE) == 1
    assert err.read_bytes() == b""


# ── slow ──────────────────────────────────────────────────────────────────────────────────────────────────────────


SWALLOWED = """
import os, signal, time, weakref
from nabla_agents.cli.app import _lasting_interrupt

class Gone: pass

with _lasting_interrupt():
    held = Gone()
    watched = weakref.ref(held, lambda _: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.01)))
    del held  # whose callback lets no error out
    time.sleep(20)
"""


def test_ctrl_c_within_a_callback_of_the_interpreter_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, timeout=PATIENCE, text=True)
    assert done.returncode == -signal.SIGINT
    assert "ignored" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.2, 0.7, 1.5, 3.0])
def test_ctrl_c_at_any_moment_of_loading_ends_quietly(delay: float) -> None:
    with Terminal(*SAMPLE, "--strategy", "best-of-n", "--rollouts", "5000", fresh=True) as terminal:
        terminal.wait_for(lambda: "Loading" in terminal.text)
        time.sleep(delay)
        terminal.ctrl_c()
        assert_interrupted(terminal)
    assert "nterrupted" in terminal.text


@pytest.mark.slow
def test_ctrl_c_within_the_first_answer_shows_it_as_far_as_it_is(rambler: Path) -> None:
    many = ("--strategy", "best-of-n", "--rollouts", "300")  # in one batch: none has ended before all are written
    with Terminal(*SAMPLE, "--model", rambler, "--max-tokens", "4000", "--temperature", "1", *many) as terminal:
        terminal.wait_for(lambda: "writing 300 answers" in terminal.text)
        terminal.ctrl_c()
        assert_interrupted(terminal)
    assert "interrupted, the best so far is shown" in terminal.text
    assert "no answer yet" not in terminal.text


@pytest.mark.slow
@pytest.mark.parametrize("size", [(40, 12), (20, 5), (2, 2)], ids=str)
def test_a_small_terminal_gets_the_answer_too(size: tuple[int, int]) -> None:
    with Terminal(*SAMPLE, width=size[0], height=size[1]) as terminal:
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text
        if size[0] >= 20:
            assert "expe" in terminal.text


@pytest.mark.slow
def test_a_dumb_terminal_gets_plain_lines() -> None:
    with Terminal(*SAMPLE, TERM="dumb") as terminal:
        assert terminal.end() == 0
        assert "\x1b" not in terminal.output
        assert "expected: 80 · answer correct · draft wrong" in terminal.output


@pytest.mark.slow
def test_no_color_is_kept() -> None:
    with Terminal(*SAMPLE, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
        codes = {c for codes in re.findall(r"\x1b\[([\d;]*)m", terminal.output) for c in codes.split(";")}
    assert codes <= {"", "0", "1", "2", "9"}


@pytest.mark.slow
def test_an_ascii_terminal_gets_question_marks_and_json_gets_everything() -> None:
    plain = run("solve", "Zoë 🍎", "--max-tokens", "3", PYTHONIOENCODING="ascii")
    assert (plain.returncode, plain.stderr) == (0, b"")
    assert plain.stdout.startswith(b"question: Zo? ?\n")
    assert plain.stdout.isascii()
    found = run("solve", "Zoë 🍎", "--max-tokens", "3", "--json", PYTHONIOENCODING="ascii")
    assert json.loads(found.stdout)["question"] == "Zoë 🍎"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_disk_is_one_line(options: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", START, *SAMPLE, "--max-tokens", "3", *options]
        done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE)
    assert done.returncode != 0
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_a_reward_of_another_vocabulary_is_used_with_a_warning_on_stderr(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    random_process_reward(tokenizer, "llama").transformer.module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    done = run(*SAMPLE, "--reward", f"process:{tmp_path}", "--json", "--rollouts", "2")
    assert done.returncode == 0
    assert done.stderr.startswith(b"warning: ")
    assert b"different vocabularies" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert json.loads(done.stdout)["usage"]["reward_backward_tokens"] == 0


@pytest.mark.slow
def test_only_one_line_comes_where_a_hub_cannot_be_reached() -> None:
    done = run("solve", "a", "--model", "someone/no-such-model", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: Cannot load the config of model 'someone/no-such-model'")
    assert done.stderr.count(b"\n") == 1
