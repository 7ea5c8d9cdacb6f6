"""The figures as a table: for the terminal, and as Markdown with what they were measured on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nabla_agents.bench.results import Results
from nabla_agents.bench.summary import ArmSummary, Comparison, points

_LEFT_OUT = (
    (),
    ("pool", "generated", "passes"),
    ("pool", "generated", "passes", "n", "forward", "backward", "s"),
    ("pool", "generated", "passes", "n", "forward", "backward", "s", "rollouts", "FLOPs"),
    ("pool", "generated", "passes", "n", "forward", "backward", "s", "rollouts", "FLOPs", "− greedy"),
)
_HEADINGS = (
    "arm",
    "n",
    "accuracy %",
    "− greedy",
    "pool",
    "rollouts",
    "generated",
    "forward",
    "backward",
    "passes",
    "FLOPs",
    "s",
)
_UNLIMITED = Console(width=1000)
_NOTES = """\
Means per question. Accuracy has its 95 % Wilson interval. “− greedy” is the paired difference in points, with its 95 %
bootstrap interval over problems. “pool” is the accuracy of a perfect choice among the completions that the arm saw;
pass@n is the same as a row: oracles, not strategies. Tokens and FLOPs are those of language model and rewards together:
2·N per token forward, 2·N more backward. Seconds are wall-clock of the batch, shared out by FLOPs."""


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
        kept = [i for i, heading in enumerate(_HEADINGS) if heading not in left_out]
        for i in kept:
            made.add_column(_HEADINGS[i], justify="left" if i == 0 else "right", no_wrap=True)
        for summary in summaries:
            row = cells(summary)
            made.add_row(*(Text(row[i]) for i in kept), style="dim italic" if summary.oracle else None)
        if _UNLIMITED.measure(made).maximum <= width:
            break
    return made


def markdown(found: Results, command: str, notes: str = "") -> str:
    """The whole report; `command` is what measures it anew."""
    lines = [
        *(f"**{line}**  " for line in found.trust),
        "",
        f"`{command}`",
        "",
        *rows(_HEADINGS, [cells(s) for s in found.arms]),
        "",
        *(_compared(found.comparisons) if found.comparisons else ()),
        _NOTES + ("\n\n" + notes if notes else ""),
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
