"""Records in, figures out: pure functions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

from nabla_agents.bench.records import Record
from nabla_agents.bench.statistics import bootstrap_interval, wilson_interval
from nabla_agents.errors import ConfigurationError
from nabla_agents.types import Usage

BASELINE = "greedy"
_BEST_OF = re.compile(r"best-of-(\w+)(?::[^/]+)?(?:/(.+))?")
Case = tuple[str, int, int]


@dataclass(frozen=True)
class ArmSummary:
    """An arm's accuracy and mean cost per question; shares in [0, 1], intervals 95 %.

    `gain` is the difference to greedy decoding on the cases (a question with a seed) that both have done, with a paired
    bootstrap interval; None without such cases. Where a question occurs more than once, it is what is resampled.
    `pool_accuracy` is that of a perfect choice among the completions that the arm saw. `usage` has the means of the
    ledger. An oracle is no strategy: it knows the answers.
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


def summarise(records: Sequence[Record]) -> list[ArmSummary]:
    """One summary per arm, in the order in which they first occur, with pass@n after the first best-of-n."""
    by_arm: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_arm[record.arm].append(record)
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
    by_arm: defaultdict[str, dict[Case, Record]] = defaultdict(dict)
    for record in records:
        by_arm[record.arm][record.case] = record
    found: list[Comparison] = []
    for arm, other in resolved(pairs, list(by_arm)):
        common = [case for case in by_arm[arm] if case in by_arm[other]]
        if common:
            ours, theirs = ([by_arm[name][case] for case in common] for name in (arm, other))
            right = [float(a.correct) - float(b.correct) for a, b in zip(ours, theirs, strict=True)]
            rolled = [float(a.usage.rollouts - b.usage.rollouts) for a, b in zip(ours, theirs, strict=True)]
            found.append(
                Comparison(
                    arm,
                    other,
                    len(common),
                    sum(right) / len(right),
                    bootstrap_interval(by_question(common, right)),
                    sum(rolled) / len(rolled),
                    bootstrap_interval(by_question(common, rolled)),
                )
            )
    return found


def resolved(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names for pairs of names or globs, of which one may match a single arm; none where one has no match."""
    found: list[tuple[str, str]] = []
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
        found += zip(left, right, strict=True)
    return found


def by_question(cases: Sequence[Case], values: Sequence[float]) -> list[float]:
    """The mean of each question, over its seeds: what a bootstrap resamples."""
    grouped: defaultdict[str, list[float]] = defaultdict(list)
    for (question, *_), value in zip(cases, values, strict=True):
        grouped[question].append(value)
    return [sum(group) / len(group) for group in grouped.values()]


def _rollouts(records: Sequence[Record]) -> list[float]:
    return by_question([r.case for r in records], [float(r.usage.rollouts) for r in records])


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
    common = [case for case in verdicts if case in baseline]
    differences = [float(verdicts[case]) - float(baseline[case]) for case in common]
    paired = bool(differences) and arm != BASELINE
    repeated = len({question for question, *_ in verdicts}) < n
    return ArmSummary(
        arm=arm,
        problems=n,
        accuracy=right / n,
        interval=bootstrap_interval(by_question(list(verdicts), [float(v) for v in verdicts.values()]))
        if repeated
        else wilson_interval(right, n),
        gain=sum(differences) / len(differences) if paired else None,
        gain_interval=bootstrap_interval(by_question(common, differences)) if paired else None,
        pool_accuracy=sum(r.pool_correct for r in records) / n,
        proposed=sum(r.proposed for r in records) / n,
        accepted=sum(r.accepted for r in records) / n,
        usage={f.name: sum(getattr(r.usage, f.name) for r in records) / n for f in fields(Usage)},
        rollouts_interval=bootstrap_interval(_rollouts(records)),
        oracle=oracle,
    )
