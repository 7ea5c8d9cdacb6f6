"""Follows a run: progress and the table so far on a terminal, a line per arm elsewhere; in the end the whole table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from nabla_agents.bench.records import Record
from nabla_agents.bench.report import Report
from nabla_agents.bench.run import Bench
from nabla_agents.bench.summary import ArmSummary, summarise, trust
from nabla_agents.bench.table import table

_WIDE = 200


def follow(records: Iterator[Record], console: Console, *, bench: Bench, out: Path, report: Report) -> bool:
    """Takes all records, then prints and writes what they say. False if Ctrl-C ended it early; what is done is kept."""
    found: list[Record] = []
    arms, total = list(bench.arms), len(bench.arms) * sum(map(len, bench.questions.values()))
    complete = True
    with _Progress(console, arms, total, bench.settings.batch) as progress:
        try:
            for record in records:
                found.append(record)
                progress.update(found)
        except KeyboardInterrupt:
            complete = False
    order = {name: i for i, name in enumerate(arms)}
    found.sort(key=lambda r: (order[r.arm], r.seed, r.problem))
    written = report.write(found, list(bench.arms.values()), out) if found else []
    if found:
        _show(found, console)
    if not complete:
        console.print(
            f"Interrupted: {len(found)} of {total} done and kept in {out}; the same command goes on.",
            style="yellow",
            soft_wrap=True,
        )
    elif found:
        console.print(f"Written to {out}: records.jsonl, {', '.join(written)}", style="dim", soft_wrap=True)
        if report.hint:
            console.print(report.hint, style="dim", soft_wrap=True)
    return complete


def _show(records: Sequence[Record], console: Console) -> None:
    for line in trust(records):
        style = "bold red" if "do not trust" in line else "bold yellow" if "not shown" in line else "bold green"
        console.print(line, style=style, soft_wrap=True)
    console.print()
    if console.is_terminal:
        console.print(table(summarise(records), width=console.width))
    else:  # a pipe has no width, and cut cells are of no use to anybody
        Console(file=console.file, width=_WIDE).print(table(summarise(records), width=_WIDE))


class _Progress:
    """The bar over all arms, above it the table so far, renewed when a chunk is done."""

    def __init__(self, console: Console, arms: Sequence[str], total: int, batch: int) -> None:
        self._console, self._total, self._batch = console, total, batch
        self._names = list(arms)
        self._summaries: list[ArmSummary] = []
        self._seen: Counter[str] = Counter()
        self._per_arm = total // max(1, len(arms))
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self._task = self._bar.add_task("starting", total=total)
        self._live = Live(console=console, transient=True, refresh_per_second=4, get_renderable=self._now)

    def __enter__(self) -> _Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self, records: Sequence[Record]) -> None:
        last = records[-1].arm
        self._seen[last] += 1
        self._bar.update(self._task, completed=len(records), description=escape(last))
        if self._seen[last] % self._batch and self._seen[last] != self._per_arm:
            return
        known = {s.arm: s for s in summarise(records)}
        self._summaries = [known[name] for name in self._names if name in known]
        if not self._console.is_terminal:
            done = f"{len(records)}/{self._total} {last}: {100 * known[last].accuracy:.1f} % of {self._seen[last]}"
            self._console.print(done, soft_wrap=True, markup=False)

    def _now(self) -> RenderableType:
        room = max(1, self._console.height - 4)
        return Group(table(self._summaries[:room], width=self._console.width), self._bar)
