"""What grew and what it cost, step by step: reward, log-likelihood and KL divergence as drawings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from nabla_agents.report.words import number
from nabla_agents.types import Step

_WIDTH: Final = 360  # of a curve, in its own units
_HEIGHT: Final = 150
_MARGIN: Final = 46


def curves(steps: Sequence[Step]) -> Iterator[str]:
    """A drawing for each quantity that at least two steps have: a line for what was kept, a dot for what was tried."""
    rewards = [s.score.value if s.score is not None and s.score.judged else math.nan for s in steps]
    likelihoods = [s.log_likelihood for s in steps]
    kept = [s.accepted for s in steps]
    for name, values, colour in (
        ("Reward", rewards, "--a"),
        ("Log-likelihood, nats", likelihoods, "--b"),
        ("KL divergence of the kept changes, nats", _spent(steps), "--c"),
    ):
        if sum(map(math.isfinite, values)) > 1:
            yield f"<figure><figcaption>{name}</figcaption>{_curve(name, values, kept, colour)}</figure>"


def _spent(steps: Sequence[Step]) -> list[float]:
    """For each step the sum of the KL divergences of the rows that made it; NaN everywhere where none changed a row."""
    if not any(step.kl for step in steps):
        return [math.nan] * len(steps)
    spent, sums = 0.0, list[float]()
    for step in steps:
        sums.append(spent + (step.kl or 0.0))
        spent = sums[-1] if step.accepted else spent
    return sums


def _curve(name: str, values: Sequence[float], kept: Sequence[bool], colour: str) -> str:
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite), max(finite)
    spread = high - low or 1.0

    def place(i: int, value: float) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - _MARGIN - 14) * i / max(1, len(values) - 1)
        return x, 12 + (_HEIGHT - 40) * (high - value) / spread

    dots, line, last = list[str](), list[str](), math.nan
    for i, (value, accepted) in enumerate(zip(values, kept, strict=True)):
        if math.isfinite(value):
            x, y = place(i, value)
            fill = f"var({colour})" if accepted else "none"
            dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="var({colour})"/>')
            last = value if accepted else last
        if math.isfinite(last):
            line.append("{:.1f},{:.1f}".format(*place(i, last)))
    labels = [_label(number(v), _MARGIN - 8, place(0, v)[1] + 4, "end") for v in dict.fromkeys((high, low))]
    every = 1 + len(values) // 12
    labels += [_label(str(i + 1), place(i, low)[0], _HEIGHT - 8, "middle") for i in range(0, len(values), every)]
    path = f'<polyline points="{" ".join(line)}" fill="none" stroke="var({colour})" stroke-width="2"/>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(name)}">'
        f"{path}{''.join([*dots, *labels])}</svg>"
    )


def _label(text: str, x: int | float, y: int | float, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="var(--dim)">{text}</text>'
