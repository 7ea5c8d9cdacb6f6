"""What was tried, in order: each change with its promise, what it gave and the verdict on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from nabla_agents.report.markup import heat, judged, number, token
from nabla_agents.types import Step


def timeline(steps: Sequence[Step]) -> Iterator[str]:
    """Items of a list, one for each step, and one before it where a gradient was taken."""
    incumbent, count = "", 0
    for step in steps:
        if step.gains:
            said = (
                'What the gradient says of the best answer so far: <span class="key">from 0 to 5 nats</span> of '
                "predicted gain, the better token on pointing"
            )
            yield f'<li><span class="dim">{said}</span><pre>{heat(incumbent, step.gains)}</pre></li>'
        if step.kind == "commit":
            continue
        count += 1
        yield _tried(step, count)
        if step.accepted:
            incumbent = step.text


def verdict(step: Step) -> str:
    """What the reward says of a step's text, and why."""
    score = step.score
    if score is None:
        return ""
    sign = {True: ' <b class="good">verified</b>', False: ' <b class="bad">rejected</b>', None: ""}[score.verified]
    value = number(score.value) if score.judged else "not judged"
    why = f" – {escape(score.explanation)}" if score.explanation else ""
    return f'<p class="dim">reward {value}{sign}{why}</p>'


def _tried(step: Step, count: int) -> str:
    what = "completion"
    if step.position is not None:
        what = f"token {step.position}: <del>{token(step.old_token)}</del> → <ins>{token(step.new_token)}</ins>"
    numbers = " · ".join(f"{name} {number(value)}" for name, value in _numbers(step) if value is not None)
    sign = '<b class="good">kept</b>' if step.accepted else '<span class="dim">not kept</span>'
    opened = " open" if step.accepted and count > 1 else ""
    shown = judged(step.text, step.score.spans if step.score is not None and step.score.judged else ())
    return (
        f'<li class="{"kept" if step.accepted else "left"}"><details{opened}><summary>{count}. {what} · {sign} '
        f'<span class="dim">{numbers}</span></summary><pre>{shown}</pre>{verdict(step)}</details></li>'
    )


def _numbers(step: Step) -> list[tuple[str, float | None]]:
    value = step.score.value if step.score is not None and step.score.judged else None
    return [
        ("predicted gain", step.predicted_gain),
        ("gain", step.gain),
        ("reward", value),
        ("log-likelihood", None if math.isnan(step.log_likelihood) else step.log_likelihood),
        ("KL", step.kl),
    ]
