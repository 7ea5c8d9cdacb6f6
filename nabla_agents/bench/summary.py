"""Records in, figures out: pure functions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from nabla_agents.bench.records import Record
from nabla_agents.bench.statistics import bootstrap_interval, wilson_interval
from nabla_agents.types import Usage

BASELINE = "greedy"
_BEST_OF = re.compile(r"best-of-(\d+)(?:/(.+))?")


@dataclass(frozen=True)
class ArmSummary:
    """An arm's accuracy and mean cost per question; shares in [0, 1], intervals 95 %.

    `gain` is the difference to greedy decoding on the problems that both have done, with a paired bootstrap interval;
    None without such problems. `pool_accuracy` is that of a perfect choice among the completions that the arm saw.
    `usage` has the means of the ledger. An oracle is no strategy: it knows the answers.
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
    baseline = {r.problem: r.correct for r in by_arm.get(BASELINE, [])}
    summaries: list[ArmSummary] = []
    sampled_before: set[str] = set()
    for arm, own in by_arm.items():
        summaries.append(_summary(arm, own, {r.problem: r.correct for r in own}, baseline))
        sampled = _BEST_OF.fullmatch(arm)
        if sampled and sampled[1] not in sampled_before:
            sampled_before.add(sampled[1])
            verdicts = {r.problem: r.pool_correct for r in own}
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


def _summary(
    arm: str,
    records: Sequence[Record],
    verdicts: Mapping[int, bool],
    baseline: Mapping[int, bool],
    *,
    oracle: bool = False,
) -> ArmSummary:
    n, right = len(verdicts), sum(verdicts.values())
    differences = [float(v) - float(baseline[i]) for i, v in verdicts.items() if i in baseline]
    paired = bool(differences) and arm != BASELINE
    return ArmSummary(
        arm=arm,
        problems=n,
        accuracy=right / n,
        interval=wilson_interval(right, n),
        gain=sum(differences) / len(differences) if paired else None,
        gain_interval=bootstrap_interval(differences) if paired else None,
        pool_accuracy=sum(r.pool_correct for r in records) / n,
        proposed=sum(r.proposed for r in records) / n,
        accepted=sum(r.accepted for r in records) / n,
        usage={f.name: sum(getattr(r.usage, f.name) for r in records) / n for f in fields(Usage)},
        rollouts_interval=bootstrap_interval([r.usage.rollouts for r in records]),
        oracle=oracle,
    )
