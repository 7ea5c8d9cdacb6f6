"""The README's `nabla` commands run, in a process each, and its files are read; `test_docs.py` runs its Python."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nabla_agents.bench import BenchConfig
from nabla_agents.bench.summary import resolved

README = Path(__file__).resolve().parent.parent / "README.md"
pytestmark = pytest.mark.timeout(600)  # the whole README, on a machine that may have other work
COMMAND = "import sys; from nabla_agents.cli import main; sys.exit(main())"


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = (line.split("  #")[0].strip() for block in code_blocks("sh") for line in block.splitlines())
    return [line.removeprefix(".venv/bin/") for line in lines if line.removeprefix(".venv/bin/").startswith("nabla ")]


def test_the_readme_shows_something() -> None:
    assert commands()


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
