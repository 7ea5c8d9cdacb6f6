"""Steps, scores and costs in words; the change from draft to answer; records as JSON."""

from __future__ import annotations

import dataclasses
import math
import re
from difflib import SequenceMatcher
from typing import Any

from rich.text import Text

from nabla_agents.result import Result
from nabla_agents.tiny import Problem, is_correct
from nabla_agents.types import FinishReason, Score, Step, Usage

NO_ANSWER = "(no answer yet)"
_CONTEXT = 32  # characters shown before a refined token
_ENDED = {
    FinishReason.VERIFIED: "verified by a tool",
    FinishReason.BUDGET: "budget spent",
    FinishReason.INTERRUPTED: "interrupted, the best so far is shown",
}


def draft(result: Result) -> str:
    """The first rollout of a search; empty where there was none."""
    return next((step.text for step in result.trace if step.kind == "rollout"), "")


def described(step: Step, number: int) -> Text:
    """One line: what was tried, what the gradient promised, what it gave, and whether it was kept."""
    line = Text.assemble(("✓ ", "green") if step.accepted else ("✗ ", "red"))
    if step.kind == "rollout":
        line.append(f"rollout {number}", style="bold")
        line.append(f"  {judged(step.score)} · log-likelihood {step.log_likelihood:.2f}", style="dim")
        return line
    written = step.old_token if not step.accepted else step.new_token
    before = step.committed_text.removesuffix(written or "").rsplit("\n", 1)[-1]
    line.append(printable(before[-_CONTEXT:]))
    line.append(_token(step.old_token), style="red strike" if step.accepted else "bold")
    line.append(" → ")
    line.append(_token(step.new_token), style="bold green" if step.accepted else "dim strike")
    line.append(f"  predicted {_signed(step.predicted_gain)} · realised {_signed(step.gain)}")
    line.append(f" · {judged(step.score)} · {'accepted' if step.accepted else 'rejected'}", style="dim")
    return line


def judged(score: Score | None) -> str:
    """A score in a few words."""
    if score is None:
        return "no reward"
    if not score.judged:
        return f"not judged: {printable(' '.join(score.explanation.split()))}"
    verdict = "" if score.verdict in (None, score.value) else f", tools {score.verdict:.2f}"
    return f"reward {round(score.value, 2) + 0.0:.2f}{verdict}{', verified' if score.verified else ''}"


def facts(result: Result, problem: Problem | None) -> list[tuple[str, Text]]:
    """Why a search ended, what its answer is worth, what it cost, and whether it is right where that is known."""
    searched = result.usage.gradient_passes or any(step.kind == "refine" for step in result.trace)
    why = _ENDED.get(result.finish_reason) or ("nothing promising left to change" if searched else "nothing left to do")
    why += f": {result.detail}" if result.finish_reason is FinishReason.BUDGET else ""
    rows = [("ended", Text(why + " · cut by the length limit" * result.truncated))]
    if not math.isnan(result.log_likelihood):
        rows.append(("score", Text(f"{judged(result.score)} · log-likelihood {result.log_likelihood:.2f}")))
    if result.score is not None and result.score.judged and result.score.explanation:
        rows.append(("tools", Text(printable(result.score.explanation))))
    rows += [
        ("spent", Text(f"{spent(result.usage)} · {result.usage.seconds:.1f} s")),
        ("computed", Text(computed(result.usage))),
    ]
    if problem is not None:
        rows.append(("expected", Text.assemble(f"{problem.answer} · answer ", _verdict(result.text, problem))))
        if draft(result) not in ("", result.text):
            rows[-1][1].append_text(Text.assemble(" · draft ", _verdict(draft(result), problem)))
    return rows


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


def changed(before: str, after: str) -> Text:
    """The answer, with what the draft had struck through and what is new in green."""
    before, after = printable(before), printable(after)
    if not after:
        return Text(NO_ANSWER, style="dim")
    a, b = _words(before), _words(after)
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if not before or before == after:
        return Text(after)
    if matcher.ratio() < 0.5:
        return Text.assemble((before, "red strike"), "\n\n", (after, "green"))
    text = Text()
    for kind, i, j, k, m in matcher.get_opcodes():
        text.append("".join(b[k:m]) if kind == "equal" else "")
        if kind != "equal":
            text.append("".join(a[i:j]), style="red strike")
            text.append(" " if i < j and k < m else "")
            text.append("".join(b[k:m]), style="bold green")
    return text


def printable(text: str) -> str:
    """Text that cannot drive a terminal: control characters, but for line ends and tabs, become visible."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def _words(text: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d]+|\s|[^\w\s]", text)


def _token(token: str | None) -> str:
    return printable((token or "").replace("\n", "⏎").replace("\t", "⇥"))


def _signed(nats: float | None) -> str:
    return "unknown" if nats is None or math.isnan(nats) else f"{nats:+.2f}"


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def indented(text: str) -> str:
    """A block of text below a heading."""
    return "\n".join(f"  {line}" for line in (printable(text) or NO_ANSWER).split("\n"))


def _verdict(text: str, problem: Problem) -> Text:
    return Text("correct", style="bold green") if is_correct(text, problem) else Text("wrong", style="bold red")


def as_json(value: Any) -> Any:
    """Records, sequences and numbers as JSON has them: NaN and infinities become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
