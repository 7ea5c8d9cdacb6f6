"""How a comparison is told: the table so far on a terminal, and in the end JSON, a Markdown table and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nabla_agents.bench.arms import Arm
from nabla_agents.bench.records import Record
from nabla_agents.bench.run import Bench
from nabla_agents.bench.summary import ArmSummary, Comparison, Results, points, summarise, trust, write
from nabla_agents.errors import to_install

_DETAILS = ("pool", "generated", "passes")
_COSTS = ("n", "forward", "backward", "s")
_LEFT_OUT = (  # what goes where a terminal is too narrow
    (),
    _DETAILS,
    (*_DETAILS, *_COSTS),
    (*_DETAILS, *_COSTS, "rollouts", "FLOPs"),
    (*_DETAILS, *_COSTS, "rollouts", "FLOPs", "− greedy"),
)
_HEADINGS = (
    *("arm", "n", "accuracy %", "claimed %", "− greedy", "pool", "rollouts"),
    *("generated", "forward", "backward", "passes", "FLOPs", "s"),
)
_WIDE = 200  # columns where there is no terminal
_UNLIMITED = Console(width=1000)
_NOTES = """\
Means per question. Accuracy has its 95 % Wilson interval. “− greedy” is the paired difference in points, with its 95 %
bootstrap interval over problems. “pool” is the accuracy of a perfect choice among the completions that the arm saw;
pass@n is the same as a row: oracles, not strategies. Tokens and FLOPs are those of language model and rewards together:
2·N per token forward, 2·N more backward, and rows over the vocabulary. Seconds are wall-clock of the batch, shared out
by FLOPs."""

_CLAIMED = """\
“claimed” are answers that pass tests which run beside them, so that nobody outside has seen it: they may be right, and
count as wrong."""


@dataclass(frozen=True)
class Report:
    """How results are told: the command that measures them anew, the settings, which arms are compared in pairs, whose
    course is drawn, and notes for the reader.
    """

    command: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    compare: Sequence[tuple[str, str]] = ()
    curves: Sequence[str] = ("*",)
    notes: str = ""

    def write(self, records: Sequence[Record], arms: Sequence[Arm], folder: Path) -> list[str]:
        """The names of the files written: `results.json`, `table.md`, and pictures where matplotlib is installed."""
        results = Results.of(records, self.compare)
        content = results.as_json(arms, self.settings)
        write(content, folder)
        (folder / "table.md").write_text(markdown(results, self.command, self.notes), encoding="utf-8")
        written = ["results.json", "table.md"]
        if not self.hint:
            from nabla_agents.bench import plots

            written += [file.name for file in plots.draw(content, folder, curves=self.curves)]
        return written

    @property
    def hint(self) -> str:
        """What is missing for the pictures; empty if nothing is."""
        return "" if find_spec("matplotlib") else f"For pictures: {to_install('plots')}"


# ── as it is measured ─────────────────────────────────────────────────────────────────────────────────────────────


def follow(records: Iterator[Record], console: Console, *, bench: Bench, out: Path, report: Report) -> bool:
    """Takes all records, then prints and writes what they say. False if Ctrl-C ended it early; what is done is kept."""
    measured: list[Record] = []
    arms, total = list(bench.arms), len(bench.arms) * sum(map(len, bench.questions.values()))
    complete = True
    with _Progress(console, arms, total, bench.settings.batch) as progress:
        try:
            for record in records:
                measured.append(record)
                progress.update(measured)
        except KeyboardInterrupt:
            complete = False
    order = {name: i for i, name in enumerate(arms)}
    measured.sort(key=lambda r: (order[r.arm], r.seed, r.problem))
    written = report.write(measured, list(bench.arms.values()), out) if measured else []
    if measured:
        _show(measured, console)
    if not complete:
        console.print(
            f"Interrupted: {len(measured)} of {total} done and kept in {out}; the same command goes on.",
            style="yellow",
            soft_wrap=True,
            markup=False,
        )
    elif measured:
        console.print(
            f"Written to {out}: records.jsonl, {', '.join(written)}", style="dim", soft_wrap=True, markup=False
        )
        if report.hint:
            console.print(report.hint, style="dim", soft_wrap=True, markup=False)
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
        summaries = {s.arm: s for s in summarise(records)}
        self._summaries = [summaries[name] for name in self._names if name in summaries]
        if not self._console.is_terminal:
            done = f"{len(records)}/{self._total} {last}: {100 * summaries[last].accuracy:.1f} % of {self._seen[last]}"
            self._console.print(done, soft_wrap=True, markup=False)

    def _now(self) -> RenderableType:
        room = max(1, self._console.height - 4)
        return Group(table(self._summaries[:room], width=self._console.width), self._bar)


# ── as a table ────────────────────────────────────────────────────────────────────────────────────────────────────


def cells(summary: ArmSummary) -> tuple[str, ...]:
    """One row, as text."""
    u, (low, high) = summary.usage, summary.interval
    gain = "–"
    if summary.gain is not None and summary.gain_interval is not None:
        gain = f"{points(summary.gain)} [{points(summary.gain_interval[0])}, {points(summary.gain_interval[1])}]"
    return (
        summary.arm + (" (oracle)" if summary.oracle else ""),
        str(summary.problems),
        f"{100 * summary.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{100 * summary.claimed:.1f}",
        gain,
        f"{100 * summary.pool_accuracy:.1f}",
        f"{u['rollouts']:.2f}",
        f"{u['generated_tokens']:.0f}",
        f"{u['lm_forward_tokens'] + u['reward_forward_tokens']:.0f}",
        f"{u['lm_backward_tokens'] + u['reward_backward_tokens']:.0f}",
        f"{u['gradient_passes']:.2f}",
        f"{u['flops']:.2e}".replace("e+0", "e"),
        f"{u['seconds']:.2f}",
    )


def table(summaries: Sequence[ArmSummary], *, width: int) -> Table:
    """As many columns as fit; those that matter most are left out last."""
    made = Table()
    for left_out in _LEFT_OUT:
        made = Table(box=None, header_style="bold", pad_edge=False)
        kept = [i for i in _columns(summaries) if _HEADINGS[i] not in left_out]
        for i in kept:
            made.add_column(_HEADINGS[i], justify="left" if i == 0 else "right", no_wrap=True)
        for summary in summaries:
            row = cells(summary)
            made.add_row(*(Text(row[i]) for i in kept), style="dim italic" if summary.oracle else None)
        if _UNLIMITED.measure(made).maximum <= width:
            break
    return made


def _columns(summaries: Sequence[ArmSummary]) -> list[int]:
    """All of them; that of claims only where there are any."""
    claimed = any(summary.claimed for summary in summaries)
    return [i for i, heading in enumerate(_HEADINGS) if claimed or heading != "claimed %"]


def markdown(results: Results, command: str, notes: str = "") -> str:
    """The whole report; `command` is what measures it anew."""
    columns = _columns(results.arms)
    lines = [
        *(f"**{line}**  " for line in results.trust),
        "",
        f"`{command}`",
        "",
        *rows([_HEADINGS[i] for i in columns], [[cells(s)[i] for i in columns] for s in results.arms]),
        "",
        *(_compared(results.comparisons) if results.comparisons else ()),
        "\n\n".join(filter(None, (_NOTES, _CLAIMED if len(columns) == len(_HEADINGS) else "", notes))),
    ]
    return "\n".join(lines).lstrip("\n") + "\n"


def rows(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, its first column left and the others right."""
    return [
        f"| {' | '.join(headings)} |",
        f"|---|{'---:|' * (len(headings) - 1)}",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]


def _compared(comparisons: Sequence[Comparison]) -> list[str]:
    """Paired differences, those whose interval excludes 0 in bold."""
    table = [
        (
            f"{c.arm} − {c.other}",
            str(c.cases),
            _bold(f"{points(c.difference)} [{points(c.interval[0])}, {points(c.interval[1])}]", c.interval),
            f"{c.rollouts:+.2f} [{c.rollouts_interval[0]:+.2f}, {c.rollouts_interval[1]:+.2f}]",
        )
        for c in comparisons
    ]
    return ["Paired, with 95 % bootstrap intervals:", "", *rows(("difference", "n", "points", "rollouts"), table), ""]


def _bold(text: str, interval: tuple[float, float]) -> str:
    return f"**{text}**" if interval[0] > 0 or interval[1] < 0 else text
