"""Everything the README shows is run: its Python blocks in one namespace, its `nabla` commands in a process each."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nabla_agents.bench import BenchConfig
from nabla_agents.bench.summary import resolved

README = Path(__file__).resolve().parent.parent / "README.md"
pytestmark = pytest.mark.timeout(600)  # the whole README, on a machine that may have other work
COMMAND = "import sys; from nabla_agents.cli import main; sys.exit(main())"


def code_blocks(language: str) -> list[str]:
    """The blocks of one language, each after as many empty lines as stand before it: tracebacks name README lines."""
    text = README.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text[: block.start(1)].count("\n") + block[1] for block in found]


def commands() -> list[str]:
    lines = (line.split("  #")[0].strip() for block in code_blocks("sh") for line in block.splitlines())
    return [line.removeprefix(".venv/bin/") for line in lines if line.removeprefix(".venv/bin/").startswith("nabla ")]


def test_the_readme_shows_something() -> None:
    assert code_blocks("python")
    assert commands()


def test_python_blocks_run_in_order_and_their_questions_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    """12 · 3 - 17 by the engine; 49 · 7 + 104 + 42, refined on the way; 34 + 27 - 12 by both adapters."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    shown: list[str] = []
    for block in code_blocks("python"):
        exec(compile(block, str(README), "exec"), namespace)
        shown.append(capsys.readouterr().out)
    assert "Answer: 19" in shown[0]
    assert "refine True" in shown[1]
    assert [text for text in shown if re.search(r"Answer: 49\b", text)] == shown[-2:]


def test_files_for_bench_are_understood(tmp_path: Path) -> None:
    [block] = code_blocks("toml")
    (tmp_path / "config.toml").write_text(block, encoding="utf-8")
    (tmp_path / "gsm8k-test.jsonl").write_text('{"question": "6 * 7?", "answer": "#### 42"}', encoding="utf-8")
    config = BenchConfig.read(tmp_path / "config.toml")
    assert len(config.arms()) == 3 * 2 * 2
    assert resolved(config.compare, list(config.arms()))
    assert config.the_task().draw(1, 0)[0].right(["It is 42."]) == [True]


@pytest.mark.parametrize("command", commands())
def test_a_command_runs(command: str, tmp_path: Path) -> None:
    arguments = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
