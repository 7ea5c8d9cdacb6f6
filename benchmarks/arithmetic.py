"""How many mistakes the calculator finds, and how often it objects to what is right.

    python benchmarks/arithmetic.py FILE...

Two formats of JSON lines are read, a row each:

    {"steps": [...], "mistake_index": 2}           the first wrong step of a calculation, null where all are right:
                                                   BIG-Bench Mistake, multistep arithmetic
    {"solution": "...", "is_correct": true, ...}   a solution whose final answer is right, or not:
                                                   the labelled model solutions of grade-school-math (GSM8K)

Of the first it counts how many first mistakes are found at the labelled step, and how many rows get an objection before
it, or without any; of the second, how many right solutions get an objection. Labels can err, and a right answer can
follow from a wrong equation, so the first equation that is objected to against a label is computed once more, by Python
itself: what it finds wrong, too, is no false objection. Intervals are Wilson's, 95 %.
"""

import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nabla_agents import ArithmeticSteps, Score
from nabla_agents.rewards.tools.equations import equations

TOOL = ArithmeticSteps()


@dataclass
class Share:
    """So many of all, and the explanations of those cases that contradict a label."""

    hits: int = 0
    count: int = 0
    cases: list[str] = field(default_factory=list)

    def add(self, hit: bool) -> None:
        self.hits, self.count = self.hits + hit, self.count + 1

    def __str__(self) -> str:
        if not self.count:
            return "none"
        low, high = wilson(self.hits, self.count)
        return f"{self.hits} of {self.count}, {100 * self.hits / self.count:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share."""
    share, spread = hits / count, z * z / count
    middle, half = share + spread / 2, z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def main(*files: str) -> None:
    if not files:
        sys.exit(__doc__)
    for file in files:
        rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        print(Path(file).name)
        for name, share in (mistakes(rows) if "steps" in rows[0] else solutions(rows)).items():
            print(f"  {name}: {share}")
            for case in share.cases:
                print(f"      {case}")


def mistakes(rows: list[dict[str, Any]]) -> dict[str, Share]:
    """Of calculations in steps, whose first wrong one is labelled."""
    found, against, false = Share(), Share(), Share()
    for row in rows:
        text, label = "\n".join(row["steps"]), row["mistake_index"]
        step = first_objection(text, TOOL.judge(text))
        if label is not None:
            found.add(step == label)
        early = step is not None and (label is None or step < label)
        against.add(early)
        if early:
            against.cases.append(TOOL.judge(text).explanation[:160])
        false.add(early and not is_wrong(text))
    return {"first mistakes found": found, "objections against the label": against, "false objections": false}


def solutions(rows: list[dict[str, Any]]) -> dict[str, Share]:
    """Of whole solutions, of which only the final answer is labelled."""
    judged, against, wrong, false = Share(), Share(), Share(), Share()
    for row in rows:
        text = row["solution"]
        score = TOOL.judge(text)
        judged.add(score.judged)
        objects = score.verified is False
        (against if row["is_correct"] else wrong).add(objects)
        if not row["is_correct"]:
            continue
        false.add(objects and not is_wrong(text))
        if objects:
            against.cases.append(score.explanation[:160])
    return {
        "solutions with equations": judged,
        "right solutions objected to": against,
        "false objections": false,
        "wrong solutions objected to": wrong,
    }


def first_objection(text: str, score: Score) -> int | None:
    """The line of the first result that is called wrong."""
    starts = [span.start for span in score.spans if span.value < 0]
    return text.count("\n", 0, min(starts)) if starts else None


def is_wrong(text: str) -> bool:
    """Whether Python itself finds the first equation wrong that the calculator objects to."""
    wrong = next(e for e in equations(text) if not e.right)
    sides = [value for value in map(python_value, (wrong.left, wrong.written)) if value is not None]
    return len(sides) == 2 and not math.isclose(*sides, rel_tol=1e-9)


def python_value(written: str) -> float | None:
    """What Python computes of a side, after its signs were put into Python's; None where it is no plain one."""
    code = re.sub(r"[$€£,]", "", written).translate(str.maketrans("×÷−x", "*/-*"))
    if not re.fullmatch(r"[\d\s.()+*/-]{1,200}", code) or "**" in code:
        return None
    try:
        return float(eval(code, {"__builtins__": {}}))  # digits, points, brackets and four operators only
    except (SyntaxError, ZeroDivisionError, TypeError):
        return None


if __name__ == "__main__":
    main(*sys.argv[1:])
