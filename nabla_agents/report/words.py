"""Steps, scores and costs in words, the same wherever they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from nabla_agents.types import Doing, FinishReason, Score, Step, Usage

_ENDED = {
    FinishReason.VERIFIED: "verified by a tool",
    FinishReason.BUDGET: "budget spent",
    FinishReason.INTERRUPTED: "interrupted, the best so far is shown",
}


def draft(steps: Sequence[Step]) -> str:
    """The first rollout of a search; empty where there was none."""
    return next((step.text for step in steps if step.kind == "rollout"), "")


def judged(score: Score | None) -> str:
    """A score in a few words."""
    if score is None:
        return "no reward"
    if not score.judged:
        return f"not judged: {printable(' '.join(score.explanation.split()))}"
    verdict = "" if score.verdict in (None, score.value) else f", tools {score.verdict:.2f}"
    return f"reward {round(score.value, 2) + 0.0:.2f}{verdict}{', verified' if score.verified else ''}"


def promised(step: Step) -> str:
    """What the gradient promised of a change, and what it gave."""
    return f"ranked by {_signed(step.ranking_score)} · realised {_signed(step.gain)}"


def likelihood(nats: float) -> str:
    return f"log-likelihood {nats:.2f}"


def kept(step: Step) -> str:
    """Whether it was."""
    return "accepted" if step.accepted else "rejected"


def ended(reason: FinishReason, detail: str, *, truncated: bool, searched: bool) -> str:
    """Why a search ended; `searched` says whether it looked for changes."""
    why = _ENDED.get(reason) or ("nothing promising left to change" if searched else "nothing left to do")
    why += f": {detail}" if reason is FinishReason.BUDGET else ""
    return why + " · cut by the length limit" * truncated


def doing(now: Doing | None) -> str:
    """What a search is at, with its rate where it writes; empty where that is not known."""
    if now is None:
        return ""
    if not now.tokens:
        return now.what
    rate = f", {now.tokens / now.seconds:.3g} tokens/s" if now.seconds >= 1 else ""
    return f"{now.what} {_count(now.answers, 'answer', 'answers')}: {_count(now.tokens, 'token', 'tokens')}{rate}"


def spent(usage: Usage) -> str:
    """What a person counts of the ledger."""
    passes = _count(usage.gradient_passes, "gradient pass", "gradient passes")
    return f"{_count(usage.rollouts, 'rollout', 'rollouts')} · {passes}"


def computed(usage: Usage) -> str:
    """What the models, language model and rewards together, had to compute."""
    forward = usage.lm_forward_tokens + usage.reward_forward_tokens
    backward = usage.lm_backward_tokens + usage.reward_backward_tokens
    return f"{human(forward)} tokens forward · {human(backward)} backward · {human(usage.flops, ' ')}FLOP"


def human(number: int | float, gap: str = "") -> str:
    """A count in three digits with a prefix, `12.3k`; `gap` goes before the prefix."""
    prefixes = iter("kMGTPE")
    prefix = ""
    while number >= 999.5 and (larger := next(prefixes, None)):
        number, prefix = number / 1000, larger
    return f"{number:.3g}{gap}{prefix}"


def number(value: int | float) -> str:
    """Four digits; whole numbers in full."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e7 else f"{value:.4g}"


def printable(text: str) -> str:
    """Text that cannot drive a terminal: control characters, but for line ends and tabs, become visible."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def token(text: str | None) -> str:
    """A token on one line, its line ends and tabs made visible."""
    return printable((text or "").replace("\n", "⏎").replace("\t", "⇥"))


def _signed(nats: float | None) -> str:
    return "unknown" if nats is None or math.isnan(nats) else f"{nats:+.2f}"


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
