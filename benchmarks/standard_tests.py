"""LangChain's own tests of chat models and tools: what passes, what is skipped, and why.

    python benchmarks/standard_tests.py

Runs `tests/integrations/langchain/test_standard.py` and prints a table of its classes, then the reasons of all skips.
"""

import sys
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1] / "tests/integrations/langchain/test_standard.py"


class Outcomes:
    """A pytest plugin that counts by class."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.reasons: defaultdict[str, list[str]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not (report.when == "setup" and report.skipped):
            return
        _, suite, test = report.nodeid.split("::", 2)
        outcome = "expected failure" if hasattr(report, "wasxfail") else report.outcome
        self.counts[suite][outcome] += 1
        if outcome == "skipped":
            why: Any = report.longrepr
            self.reasons[f"{suite}: {str(why[2]).removeprefix('Skipped: ').strip()}"].append(test)

    def table(self) -> str:
        names = ("passed", "skipped", "failed", "expected failure")
        rows = [(suite, *(str(found[name]) for name in names)) for suite, found in self.counts.items()]
        rows.append(("in all", *(str(sum(found[name] for found in self.counts.values())) for name in names)))
        return "\n".join("| " + " | ".join(row) + " |" for row in (("suite", *names), ("---",) * 5, *rows))


def main() -> int:
    outcomes = Outcomes()
    code = pytest.main([str(TESTS), "-q", "--benchmark-disable", "-p", "no:cacheprovider"], plugins=[outcomes])
    print(f"\nlangchain-tests {version('langchain-tests')}, langchain-core {version('langchain-core')}\n")
    print(outcomes.table() + "\n")
    for why, tests in sorted(outcomes.reasons.items()):
        print(f"{why}\n    {', '.join(tests)}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
