"""One self-contained HTML page that shows what a search did to an answer: no script, no network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from difflib import SequenceMatcher
from html import escape
from typing import Final

from nabla_agents.types import Span, Step, TokenGain, Usage

_WIDTH: Final = 640  # of a curve, in its own units
_HEIGHT: Final = 150
_MARGIN: Final = 46
_STRONG: Final = 5.0  # nats of predicted gain at which a token's colour is full
_WORDS: Final = re.compile(r"\d+|[^\W\d]+|\s|[^\w\s]|_")
_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#66707b;--line:#d9dee3;--page:#fff;--box:#f6f8fa;--good:#1a7f37;
--bad:#cf222e;--hot:210,90,0;--a:#0969da;--b:#8250df;--c:#1a7f37}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#8d96a0;--line:#30363d;--page:#0d1117;--box:#161b22;
--good:#3fb950;--bad:#f85149;--hot:255,150,50;--a:#58a6ff;--b:#bc8cff;--c:#3fb950}}
.nabla-report{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:56rem;margin:0 auto;
padding:1.5rem}
.nabla-report h1{font-size:1.35rem;margin:0 0 .5rem}.nabla-report h2{font-size:1.05rem;margin:1.8rem 0 .5rem}
.nabla-report pre{font:14px/1.6 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:.4rem 0;
background:var(--box);border:1px solid var(--line);border-radius:6px;padding:.7rem .9rem}
.nabla-report .dim{color:var(--dim)}.nabla-report .good{color:var(--good)}.nabla-report .bad{color:var(--bad)}
.nabla-report ins{text-decoration:none;background:color-mix(in srgb,var(--good) 22%,transparent);border-radius:3px}
.nabla-report del{background:color-mix(in srgb,var(--bad) 18%,transparent);border-radius:3px}
.nabla-report u{text-decoration:underline wavy var(--bad);text-underline-offset:3px}
.nabla-report b{font-weight:600}
.nabla-report table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.nabla-report td,.nabla-report th{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;
font-weight:400}.nabla-report th{color:var(--dim)}
.nabla-report td:first-child,.nabla-report th:first-child{text-align:left}
.nabla-report ol{list-style:none;margin:0;padding:0}
.nabla-report li{border-left:3px solid var(--line);margin:0 0 .6rem;padding:.1rem 0 .1rem .9rem}
.nabla-report li.kept{border-color:var(--good)}.nabla-report summary{cursor:pointer}
.nabla-report svg{width:100%;height:auto}.nabla-report code{font:13px ui-monospace,monospace}
"""


def page(steps: Sequence[Step], *, title: str = "Trace", question: str = "") -> str:
    """The page of a trace; every text in it is escaped."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<title>{escape(title)}</title></head><body style="margin:0">'
        f"{fragment(steps, title=title, question=question)}</body></html>\n"
    )


def fragment(steps: Sequence[Step], *, title: str = "Trace", question: str = "") -> str:
    """The same as one element, for a notebook."""
    tried = [step for step in steps if step.kind != "commit"]
    kept = [step for step in tried if step.accepted]
    parts = [f"<style>{_STYLE}</style>", f'<section class="nabla-report"><h1>{escape(title)}</h1>']
    if question:
        parts.append(f"<pre>{escape(question)}</pre>")
    if not tried:
        return "".join([*parts, '<p class="dim">Nothing was tried.</p></section>'])
    parts.append(_answer(kept[0], kept[-1]) if kept else "")
    parts += ["<h2>What was tried</h2><ol>", *_timeline(steps), "</ol>"]
    parts += [*_curves(tried), _ledger(steps[-1].usage), "</section>"]
    return "".join(parts)


def _answer(first: Step, last: Step) -> str:
    """The draft and what it became, the verdict beneath."""
    same = first.text == last.text
    before, after = _changed(first.text, last.text)
    shown = "" if same else f"<h2>Draft</h2><pre>{before}</pre>"
    return f"{shown}<h2>Answer</h2><pre>{after}</pre>{_verdict(last)}"


def _changed(old: str, new: str) -> tuple[str, str]:
    """Both texts, with the words marked that only one of them has."""
    before, after = _WORDS.findall(old), _WORDS.findall(new)
    left, right = list[str](), list[str]()
    for kind, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        left.append(_marked("".join(before[i:j]), "" if kind == "equal" else "del"))
        right.append(_marked("".join(after[k:m]), "" if kind == "equal" else "ins"))
    return "".join(left), "".join(right)


def _marked(text: str, tag: str) -> str:
    return f"<{tag}>{escape(text)}</{tag}>" if tag and text else escape(text)


def _verdict(step: Step) -> str:
    score = step.score
    if score is None:
        return ""
    sign = {True: ' <b class="good">verified</b>', False: ' <b class="bad">rejected</b>', None: ""}[score.verified]
    value = _number(score.value) if score.judged else "not judged"
    why = f" – {escape(score.explanation)}" if score.explanation else ""
    return f'<p class="dim">reward {value}{sign}{why}</p>'


def _timeline(steps: Sequence[Step]) -> Iterator[str]:
    incumbent, number = "", 0
    for step in steps:
        if step.gains:
            said = "What the gradient says of the best answer so far (point at a token):"
            yield f'<li class="dim">{said}<pre>{_heat(incumbent, step.gains)}</pre></li>'
        if step.kind == "commit":
            continue
        number += 1
        yield _tried(step, number)
        if step.accepted:
            incumbent = step.text


def _tried(step: Step, number: int) -> str:
    what = "completion"
    if step.position is not None:
        what = f"token {step.position}: <del>{_token(step.old_token)}</del> → <ins>{_token(step.new_token)}</ins>"
    numbers = " · ".join(f"{name} {_number(value)}" for name, value in _numbers(step) if value is not None)
    sign = '<b class="good">kept</b>' if step.accepted else '<span class="dim">not kept</span>'
    opened = " open" if step.accepted and number > 1 else ""
    shown = _spans(step.text, step.score.spans if step.score is not None and step.score.judged else ())
    return (
        f'<li class="{"kept" if step.accepted else "left"}"><details{opened}><summary>{number}. {what} · {sign} '
        f'<span class="dim">{numbers}</span></summary><pre>{shown}</pre>{_verdict(step)}</details></li>'
    )


def _numbers(step: Step) -> list[tuple[str, float | None]]:
    value = step.score.value if step.score is not None and step.score.judged else None
    return [
        ("predicted gain", step.predicted_gain),
        ("gain", step.gain),
        ("reward", value),
        ("log-likelihood", None if math.isnan(step.log_likelihood) else step.log_likelihood),
    ]


def _heat(text: str, gains: Sequence[TokenGain]) -> str:
    """A text whose tokens are the warmer, the more the objective is predicted to gain by their best alternative."""
    parts, at = list[str](), 0
    for gain in sorted(gains, key=lambda g: g.start):
        if gain.start < at or gain.end > len(text):
            continue
        strength = min(1.0, max(0.0, gain.predicted_gain / _STRONG))
        hint = f"{_visible(gain.new)} instead: predicted gain {_number(gain.predicted_gain)} nats"
        parts.append(escape(text[at : gain.start]))
        parts.append(
            f'<span title="{escape(hint)}" style="background:rgba(var(--hot),{0.75 * strength:.2f})">'
            f"{escape(text[gain.start : gain.end])}</span>"
        )
        at = gain.end
    return "".join(parts) + escape(text[at:])


def _spans(text: str, spans: Sequence[Span]) -> str:
    """A text with what a tool found wrong underlined; its reason is the hint."""
    parts, at = list[str](), 0
    for span in sorted((s for s in spans if s.value < 0), key=lambda s: s.start):
        if span.start < at or span.end > len(text) or span.start == span.end:
            continue
        hint = span.explanation + (f" (expected {span.expected})" if span.expected is not None else "")
        parts += [escape(text[at : span.start]), f'<u title="{escape(hint)}">{escape(text[span.start : span.end])}</u>']
        at = span.end
    return "".join(parts) + escape(text[at:])


def _curves(steps: Sequence[Step]) -> Iterator[str]:
    """Reward and log-likelihood of what was kept, step by step, with what was tried as dots."""
    rewards = [s.score.value if s.score is not None and s.score.judged else math.nan for s in steps]
    likelihoods = [s.log_likelihood for s in steps]
    kept = [s.accepted for s in steps]
    for name, values, colour in (("Reward", rewards, "--a"), ("Log-likelihood, nats", likelihoods, "--b")):
        if sum(map(math.isfinite, values)) > 1:
            yield f"<h2>{name}</h2>{_curve(values, kept, colour)}"


def _curve(values: Sequence[float], kept: Sequence[bool], colour: str) -> str:
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite), max(finite)
    spread = high - low or 1.0

    def place(i: int, value: float) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * i / max(1, len(values) - 1)
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
    labels = "".join(
        f'<text x="{_MARGIN - 8}" y="{place(0, v)[1] + 4:.1f}" text-anchor="end" font-size="11" fill="var(--dim)">'
        f"{_number(v)}</text>"
        for v in dict.fromkeys((high, low))
    )
    ticks = "".join(
        f'<text x="{place(i, low)[0]:.1f}" y="{_HEIGHT - 8}" text-anchor="middle" font-size="11" fill="var(--dim)">'
        f"{i + 1}</text>"
        for i in range(0, len(values), 1 + len(values) // 16)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><polyline points="{" ".join(line)}" fill="none" '
        f'stroke="var({colour})" stroke-width="2"/>{"".join(dots)}{labels}{ticks}</svg>'
    )


def _ledger(usage: Usage) -> str:
    rows = [
        f"<tr><td>{f.name.replace('_', ' ')}</td><td>{_number(getattr(usage, f.name))}</td></tr>"
        for f in fields(usage)
        if getattr(usage, f.name)
    ]
    return f"<h2>Spent</h2><table>{''.join(rows)}</table>"


def _token(text: str | None) -> str:
    return f"<code>{escape(_visible(text or ''))}</code>"


def _visible(token: str) -> str:
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def _number(value: int | float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 and abs(value) < 1e7 else f"{value:.4g}"
