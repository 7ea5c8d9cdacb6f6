"""Runs the recipes, two at a time, and compares what each prints with the lines under `# Prints:` at its end.

    python cookbook          all of them
    python cookbook 01 07    these

`...` in an expected line stands for any text, as in a doctest. A recipe runs in an empty folder.
"""

import doctest
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
MARK = "# Prints:\n"
TIME_LIMIT = 300  # seconds for one recipe, against hangs
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NABLA_SANDBOX_BUILD": "0", "OMP_NUM_THREADS": "1"}


class Outcome(NamedTuple):
    """How a recipe ended: empty where it printed what it should."""

    problem: str
    seconds: float


def recipes(*numbers: str) -> list[Path]:
    """The recipes in order, or those whose names begin with one of the numbers."""
    return [r for r in sorted(FOLDER.glob("[0-9][0-9]_*.py")) if not numbers or r.name.startswith(numbers)]


def expected(source: str) -> str:
    """What a recipe says that it prints."""
    _, _, lines = source.partition(MARK)
    return "".join(f"{line.removeprefix('#').removeprefix(' ')}\n" for line in lines.splitlines())


def difference(want: str, got: str) -> str:
    """Empty where the texts agree but for `...` and runs of spaces; else both, line by line."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    checker = doctest.OutputChecker()
    if checker.check_output(want, got, flags):
        return ""
    return checker.output_difference(doctest.Example("", want), got, flags | doctest.REPORT_NDIFF)


def run(recipe: Path) -> Outcome:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, recipe],
                cwd=folder,
                env={**os.environ, **QUIET},
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=TIME_LIMIT,
            )
        except subprocess.TimeoutExpired:
            return Outcome(f"did not end within {TIME_LIMIT} s", time.monotonic() - started)
    problem = done.stderr if done.returncode else difference(expected(recipe.read_text(encoding="utf-8")), done.stdout)
    return Outcome(problem, time.monotonic() - started)


def main() -> int:
    chosen = recipes(*sys.argv[1:])
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for recipe, outcome in zip(chosen, pool.map(run, chosen), strict=True):
            failed += bool(outcome.problem)
            print(f"{'FAILED' if outcome.problem else 'ok':8}{outcome.seconds:5.1f} s  {recipe.name}", flush=True)
            if outcome.problem:
                print(outcome.problem, flush=True)
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
