"""What a comparison found, as one JSON object: figures of every arm, outcomes of every case, and what was compared."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nabla_agents.bench.arms import Arm
from nabla_agents.bench.records import Record
from nabla_agents.bench.summary import ArmSummary, Comparison, compare, summarise, trust


@dataclass(frozen=True)
class Results:
    """Figures of records: `trust` says in words which rewards deserve any, `course` has for each arm and number of
    rollouts the means of what would have been returned after them, `outcomes` the verdicts of each seed as `1101...`.
    """

    arms: list[ArmSummary]
    comparisons: list[Comparison]
    trust: list[str]
    course: Mapping[str, list[Mapping[str, float | None]]]
    outcomes: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, records: Sequence[Record], pairs: Sequence[tuple[str, str]] = ()) -> Results:
        """The figures; `pairs` as in `compare`."""
        by_arm: defaultdict[str, list[Record]] = defaultdict(list)
        for record in records:
            by_arm[record.arm].append(record)
        return cls(
            arms=summarise(records),
            comparisons=compare(records, pairs),
            trust=trust(records),
            course={arm: course(own) for arm, own in by_arm.items()},
            outcomes={arm: _outcomes(own) for arm, own in by_arm.items()},
        )

    def as_json(self, arms: Sequence[Arm], settings: Mapping[str, Any]) -> dict[str, Any]:
        """With the settings of the comparison and of every arm, for `plots.draw` and readers elsewhere."""
        known = {arm.name: arm for arm in arms}
        return {
            "settings": settings,
            "trust": self.trust,
            "arms": [
                {
                    **_rounded(asdict(summary)),
                    **({} if summary.oracle else self._beside(known[summary.arm])),
                }
                for summary in self.arms
            ],
            "comparisons": [_rounded(asdict(c)) for c in self.comparisons],
        }

    def _beside(self, arm: Arm) -> dict[str, Any]:
        """What an arm has beside its figures."""
        course, outcomes = self.course.get(arm.name, []), self.outcomes.get(arm.name, {})
        return {"varied": arm.varied, **arm.settings(), "course": course, "outcomes": outcomes}


def course(records: Sequence[Record]) -> list[Mapping[str, float | None]]:
    """Per number of rollouts, up to the most that any case had: the share of right answers, mean reward and mean
    log-likelihood of what would have been returned, and the share of cases that were still searching.
    """
    curves = [record.curve for record in records if record.curve]
    found: list[Mapping[str, float | None]] = []
    for k in range(max(map(len, curves), default=0)):
        now = [curve[min(k, len(curve) - 1)] for curve in curves]
        found.append(
            {
                "accuracy": round(sum(right for right, *_ in now) / len(now), 5),
                "reward": _mean([reward for _, reward, _ in now]),
                "log_likelihood": _mean([nats for *_, nats in now]),
                "searching": round(sum(len(curve) > k for curve in curves) / len(curves), 5),
            }
        )
    return found


def write(content: Mapping[str, Any], folder: Path) -> None:
    """`results.json`, one arm a line."""
    lines = [f"{json.dumps(k)}: {_lines(v)}" for k, v in content.items()]
    (folder / "results.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False) for v in value) + "\n]"


def _outcomes(records: Sequence[Record]) -> dict[str, str]:
    by_seed: defaultdict[int, dict[int, bool]] = defaultdict(dict)
    for record in records:
        by_seed[record.seed][record.problem] = record.correct
    return {
        str(seed): "".join("1" if right[i] else "0" for i in sorted(right)) for seed, right in sorted(by_seed.items())
    }


def _mean(values: Sequence[float | None]) -> float | None:
    given = [v for v in values if v is not None]
    return round(sum(given) / len(given), 5) if given else None


def _rounded(value: Any) -> Any:
    """Floats to six significant digits, an infinite one as none."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value
