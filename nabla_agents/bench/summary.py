"""Records in, figures out: accuracies and costs with 95 % intervals, paired comparisons, and all of it as JSON."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from nabla_agents.bench.arms import Arm
from nabla_agents.bench.records import Record
from nabla_agents.errors import ConfigurationError
from nabla_agents.types import Usage

BASELINE = "greedy"
_BEST_OF = re.compile(r"best-of-(\w+)(?::[^/]+)?(?:/(.+))?")
_COSTS = 40  # at which accuracy is told
_Z = 1.959963984540054  # of a normal distribution, 95 % two-sided
Case = tuple[str, int, int]


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Of a proportion (Wilson 1927): sensible for few trials and at 0 and 1, where a bootstrap has no width."""
    if n == 0:
        return (0.0, 1.0)
    p, z2 = successes / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_interval(values: Sequence[int | float], *, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """Of the mean: 2.5th and 97.5th percentile over resamples with replacement. For paired arms, `values` are the
    differences per problem.

    Values repeat (differences of two verdicts are -1, 0 or 1), so a resample is one multinomial draw of their counts.
    """
    n = len(values)
    if n == 0:
        return (-math.inf, math.inf)
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.percentile(draws @ distinct / n, [2.5, 97.5])
    return (float(low), float(high))


@dataclass(frozen=True)
class ArmSummary:
    """An arm's accuracy and mean cost per question; shares in [0, 1], intervals 95 %.

    `gain` is the difference to greedy decoding on the cases (a question with a seed) that both have done, with a paired
    bootstrap interval; None without such cases. Where a question occurs more than once, it is what is resampled.
    `pool_accuracy` is that of a perfect choice among the completions that the arm saw. `usage` has the means of the
    ledger. `claimed` is the share of answers that pass by their own account only, and is not in the accuracy. An
    oracle is no strategy: it knows the answers.
    """

    arm: str
    problems: int
    accuracy: float
    interval: tuple[float, float]
    gain: float | None
    gain_interval: tuple[float, float] | None
    pool_accuracy: float
    proposed: float
    accepted: float
    usage: Mapping[str, float]
    rollouts_interval: tuple[float, float]
    oracle: bool = False
    claimed: float = 0.0


def summarise(records: Sequence[Record]) -> list[ArmSummary]:
    """One summary per arm, in the order in which they first occur, with pass@n after the first best-of-n."""
    by_arm = _by_arm(records)
    baseline = _verdicts(by_arm.get(BASELINE, []))
    summaries: list[ArmSummary] = []
    sampled_before: set[str] = set()
    for arm, own in by_arm.items():
        summaries.append(_summary(arm, own, _verdicts(own), baseline))
        sampled = _BEST_OF.fullmatch(arm)
        if sampled and sampled[1] not in sampled_before:
            sampled_before.add(sampled[1])
            verdicts = {r.case: r.pool_correct for r in own}
            summaries.append(_summary(f"pass@{sampled[1]}", own, verdicts, baseline, oracle=True))
    return summaries


def trust(records: Sequence[Record]) -> list[str]:
    """What best-of-n by each reward says about it. A search follows its reward, so this comes before all else."""
    lines: list[str] = []
    for summary in summarise(records):
        sampled = _BEST_OF.fullmatch(summary.arm)
        if sampled is None or summary.gain is None or summary.gain_interval is None:
            continue
        low, high = summary.gain_interval
        gain = f"{points(summary.gain)} points, 95 % interval {points(low)} to {points(high)}"
        if low > 0:
            says = f"{summary.arm} by it beats greedy ({gain})."
        elif summary.gain > 0:
            says = (
                f"{summary.arm} by it is not shown to beat greedy ({gain}): measure more problems before trusting it."
            )
        else:
            says = f"{summary.arm} by it does not beat greedy ({gain}): do not trust this reward."
        lines.append(f"Reward {sampled[2] or 'process'}: {says}")
    return lines


def points(share: float) -> str:
    """A difference of shares in signed percentage points."""
    return f"{100 * share:+.1f}"


@dataclass(frozen=True)
class Comparison:
    """Accuracy of an arm less that of another on the cases that both have done, as a share, with a paired bootstrap
    interval over questions; so are the rollouts per question.
    """

    arm: str
    other: str
    cases: int
    difference: float
    interval: tuple[float, float]
    rollouts: float
    rollouts_interval: tuple[float, float]


def compare(records: Sequence[Record], pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """The pairs that have cases in common; globs stand for arms in order, as many on either side.

    Raises:
        ConfigurationError: the globs of a pair match different numbers of arms.
    """
    by_arm = {arm: {record.case: record for record in own} for arm, own in _by_arm(records).items()}
    comparisons: list[Comparison] = []
    for arm, other in resolved(pairs, list(by_arm)):
        common = [case for case in by_arm[arm] if case in by_arm[other]]
        if common:
            cases = [(by_arm[arm][case], by_arm[other][case]) for case in common]
            difference, interval = _mean(common, [a.correct - b.correct for a, b in cases])
            rollouts, rollouts_interval = _mean(common, [a.usage.rollouts - b.usage.rollouts for a, b in cases])
            figures = (difference, interval, rollouts, rollouts_interval)
            comparisons.append(Comparison(arm, other, len(common), *figures))
    return comparisons


def resolved(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names for pairs of names or globs, of which one may match a single arm; none where one has no match."""
    matches: list[tuple[str, str]] = []
    for pair in pairs:
        left, right = ([n for n in names if n == p or (p not in names and fnmatchcase(n, p))] for p in pair)
        if not left or not right:
            continue  # of arms that were not chosen
        left = left * len(right) if len(left) == 1 else left
        right = right * len(left) if len(right) == 1 else right
        if len(left) != len(right):
            raise ConfigurationError(
                f"compare has {pair[0]!r} with {len(left)} arms ({', '.join(left)}) and {pair[1]!r} with {len(right)} "
                f"({', '.join(right)}); expected as many."
            )
        matches += zip(left, right, strict=True)
    return matches


def _mean(cases: Sequence[Case], values: Sequence[int | float]) -> tuple[float, tuple[float, float]]:
    """With its bootstrap interval: what is resampled are the means of each question, over its seeds."""
    grouped: defaultdict[str, list[float]] = defaultdict(list)
    for (question, *_), value in zip(cases, values, strict=True):
        grouped[question].append(value)
    return sum(values) / len(values), bootstrap_interval([sum(group) / len(group) for group in grouped.values()])


def _by_arm(records: Sequence[Record]) -> dict[str, list[Record]]:
    by_arm: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_arm[record.arm].append(record)
    return by_arm


def _verdicts(records: Sequence[Record]) -> dict[Case, bool]:
    return {r.case: r.correct for r in records}


def _summary(
    arm: str,
    records: Sequence[Record],
    verdicts: Mapping[Case, bool],
    baseline: Mapping[Case, bool],
    *,
    oracle: bool = False,
) -> ArmSummary:
    n, right = len(verdicts), sum(verdicts.values())
    repeated = len({question for question, *_ in verdicts}) < n
    common = [case for case in verdicts if case in baseline and arm != BASELINE]
    differences = [verdicts[case] - baseline[case] for case in common]
    gain, gain_interval = _mean(common, differences) if common else (None, None)
    return ArmSummary(
        arm=arm,
        problems=n,
        accuracy=right / n,
        interval=_mean([*verdicts], [*verdicts.values()])[1] if repeated else wilson_interval(right, n),
        gain=gain,
        gain_interval=gain_interval,
        pool_accuracy=sum(r.pool_correct for r in records) / n,
        proposed=sum(r.proposed for r in records) / n,
        accepted=sum(r.accepted for r in records) / n,
        usage={f.name: sum(getattr(r.usage, f.name) for r in records) / n for f in fields(Usage)},
        rollouts_interval=_mean([r.case for r in records], [r.usage.rollouts for r in records])[1],
        oracle=oracle,
        claimed=0.0 if oracle else sum(r.claimed for r in records) / n,
    )


@dataclass(frozen=True)
class Results:
    """Figures of the records of each arm; `trust` says in words which rewards deserve any."""

    arms: list[ArmSummary]
    comparisons: list[Comparison]
    trust: list[str]
    records: Mapping[str, Sequence[Record]]

    @classmethod
    def of(cls, records: Sequence[Record], pairs: Sequence[tuple[str, str]] = ()) -> Results:
        """The figures; `pairs` as in `compare`."""
        return cls(summarise(records), compare(records, pairs), trust(records), _by_arm(records))

    def as_json(self, arms: Sequence[Arm], settings: Mapping[str, Any]) -> dict[str, Any]:
        """With the settings of the comparison and of every arm, the course, and the verdicts of each seed as `1101...`,
        for `plots.draw` and readers elsewhere.
        """
        beside: dict[str, dict[str, Any]] = {}
        for arm in arms:
            records = self.records.get(arm.name, ())
            measured = {
                "course": course(records),
                "by_cost": {name: by_cost(records, i) for i, name in enumerate(("generated_tokens", "flops"))},
                "outcomes": _outcomes(records),
            }
            beside[arm.name] = {"varied": arm.varied, **arm.settings(), **measured}
        rows = [_rounded(asdict(summary)) | ({} if summary.oracle else beside[summary.arm]) for summary in self.arms]
        comparisons = [_rounded(asdict(c)) for c in self.comparisons]
        return {"settings": settings, "trust": self.trust, "arms": rows, "comparisons": comparisons}


def course(records: Sequence[Record]) -> list[Mapping[str, float | None]]:
    """Per number of rollouts, up to the most that any case had: the share of right answers, mean reward and mean
    log-likelihood of what would have been returned, and the share of cases that were still searching.
    """
    curves = [record.curve for record in records if record.curve]
    means: list[Mapping[str, float | None]] = []
    for k in range(max(map(len, curves), default=0)):
        now = [curve[min(k, len(curve) - 1)] for curve in curves]
        means.append(
            {
                "accuracy": round(sum(right for right, *_ in now) / len(now), 5),
                "reward": _known_mean([reward for _, reward, _ in now]),
                "log_likelihood": _known_mean([nats for *_, nats in now]),
                "searching": round(sum(len(curve) > k for curve in curves) / len(curves), 5),
            }
        )
    return means


def by_cost(records: Sequence[Record], which: int) -> list[tuple[float, float, float, float]]:
    """(allowed, accuracy, its interval) at evenly spaced costs per question, up to the most that any had: what would
    have been returned for so much, and nothing right before a first answer. `which` is the index in `Record.costs`.
    """
    known = [record for record in records if record.costs]
    most = max((record.costs[-1][which] for record in known), default=0.0)
    points: list[tuple[float, float, float, float]] = []
    for allowed in (most * (k + 1) / _COSTS for k in range(_COSTS if known else 0)):
        done = [sum(cost[which] <= allowed * (1 + 1e-9) for cost in record.costs) for record in known]
        right = sum(n > 0 and record.curve[n - 1][0] for n, record in zip(done, known, strict=True))
        low, high = wilson_interval(right, len(known))
        points.append((float(f"{allowed:.6g}"), round(right / len(known), 5), round(low, 5), round(high, 5)))
    return points


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


def _known_mean(values: Sequence[float | None]) -> float | None:
    numbers = [v for v in values if v is not None]
    return round(sum(numbers) / len(numbers), 5) if numbers else None


def _rounded(value: Any) -> Any:
    """Floats to six significant digits, an infinite one as none."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value
