"""A trace as one HTML page, or as one element for a notebook: no script, no network, and everything that a model wrote
escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from html import escape
from typing import Final

from nabla_agents.report import words
from nabla_agents.report.curves import curves
from nabla_agents.report.diff import Diff, common
from nabla_agents.types import Span, Step, TokenGain, Usage

_HALVES: Final = re.compile("[\ud800-\udfff]")
_STRONG: Final = 5.0  # nats of ranking score at which a token's colour is full
_STYLE: Final = """
.nabla-report{--ink:#1b1f24;--dim:#5c6670;--line:#d9dee3;--page:#fff;--box:#f6f8fa;--good:#1a7f37;--bad:#cf222e;
--hot:235,110,0;--a:#0969da;--b:#8250df;--c:#1a7f37;color-scheme:light dark;font:15px/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--page);max-width:56rem;margin:0 auto;padding:1.5rem}
@media(prefers-color-scheme:dark){.nabla-report{--ink:#e6edf3;--dim:#9aa4ae;--line:#30363d;--page:#0d1117;--box:#161b22;
--good:#3fb950;--bad:#f85149;--hot:255,130,20;--a:#58a6ff;--b:#bc8cff;--c:#3fb950}}
.nabla-report h1{font-size:1.35rem;margin:0 0 .5rem}.nabla-report h2{font-size:1.05rem;margin:1.8rem 0 .5rem}
.nabla-report pre{font:14px/1.6 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:.4rem 0;
color:inherit;background:var(--box);border:1px solid var(--line);border-radius:6px;padding:.7rem .9rem;max-height:30rem;
overflow:auto}
.nabla-report .dim{color:var(--dim)}.nabla-report .good{color:var(--good)}.nabla-report .bad{color:var(--bad)}
.nabla-report .key{background:linear-gradient(90deg,transparent,rgba(var(--hot),.75));color:var(--ink);padding:0 .3rem;
border-radius:3px}
.nabla-report ins{text-decoration:none;background:color-mix(in srgb,var(--good) 26%,transparent);border-radius:3px}
.nabla-report del{background:color-mix(in srgb,var(--bad) 24%,transparent);border-radius:3px}
.nabla-report u{text-decoration:underline wavy var(--bad);text-underline-offset:3px}
.nabla-report b{font-weight:600}
.nabla-report table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.nabla-report td{padding:.25rem .6rem;border:0;border-bottom:1px solid var(--line);text-align:right}
.nabla-report td:first-child{text-align:left}
.nabla-report ol{list-style:none;margin:0;padding:0}.nabla-report summary{cursor:pointer;overflow-wrap:anywhere}
.nabla-report li{border-left:3px solid var(--line);margin:0 0 .6rem;padding:.1rem 0 .1rem .9rem}
.nabla-report li.kept{border-color:var(--good)}
.nabla-report .curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:1rem;margin:1.5rem 0}
.nabla-report figure{margin:0}.nabla-report svg{width:100%;height:auto;display:block}
.nabla-report code{font:13px ui-monospace,monospace;color:inherit;background:none;padding:0}
"""
_AROUND: Final = "body{margin:0}@media(prefers-color-scheme:dark){body{background:#0d1117}}"


def page(steps: Sequence[Step], *, title: str = "Trace", question: str = "") -> str:
    """The page of a trace; every text in it is escaped, and it can be written as UTF-8."""
    return _whole(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_AROUND}</style></head><body>"
        f"{fragment(steps, title=title, question=question)}</body></html>\n"
    )


def fragment(steps: Sequence[Step], *, title: str = "Trace", question: str = "") -> str:
    """The same as one element, for a notebook."""
    tried = [step for step in steps if step.kind != "commit"]
    parts = [f"<style>{_STYLE}</style>", f'<section class="nabla-report"><h1>{escape(title)}</h1>']
    if question:
        parts.append(f"<pre>{escape(question)}</pre>")
    if not tried:
        return _whole("".join([*parts, '<p class="dim">Nothing was tried.</p></section>']))
    parts += [_answer(tried, steps[-1]), "<h2>What was tried</h2><ol>", *_timeline(steps), "</ol>"]
    parts += ['<div class="curves">', *curves(tried), "</div>", _ledger(steps[-1].usage), "</section>"]
    return _whole("".join(parts))


def _whole(html: str) -> str:
    """With U+FFFD for halves of surrogate pairs."""
    return _HALVES.sub("\ufffd", html)


def _answer(tried: Sequence[Step], last: Step) -> str:
    """The draft and what it became, the verdict beneath; nothing where nothing was kept."""
    kept = [step for step in tried if step.accepted]
    best = last if last.done and last.text else kept[-1] if kept else None
    if best is None:
        return ""
    draft = tried[0].text
    pieces = Diff.of(draft, best.text).pieces
    before = "".join(escape(old) if old == new else _marked(old, "del") for old, new in pieces)
    after = "".join(escape(new) if old == new else _marked(new, "ins") for old, new in pieces)
    shown = "" if draft == best.text else f"<h2>Draft</h2><pre>{before}</pre>"
    return f"{shown}<h2>Answer</h2><pre>{after}</pre>{_verdict(best)}"


def _marked(text: str, tag: str) -> str:
    return f"<{tag}>{escape(text)}</{tag}>" if text else ""


def _timeline(steps: Sequence[Step]) -> Iterator[str]:
    """Items of a list, one for each step, and one before it where a gradient was taken."""
    incumbent, count = "", 0
    for step in steps:
        if any(gain.ranking_score > 0 for gain in step.gains):
            legend = (
                'Where a change of the best answer so far promises most: <span class="key">from 0 to 5 nats</span> of '
                "ranking score, the better token on pointing"
            )
            yield f'<li><span class="dim">{legend}</span><pre>{_heat(incumbent, step.gains)}</pre></li>'
        if step.kind == "commit":
            continue
        count += 1
        yield _tried(step, count, common(incumbent, step.text) if step.kind == "refine" else 0)
        if step.accepted:
            incumbent = step.text


def _tried(step: Step, count: int, shared: int) -> str:
    """A step, folded; its first `shared` characters are those of the answer that it branches from."""
    what = "rollout"
    if step.position is not None:
        what = f"token {step.position}: <del>{_token(step.old_token)}</del> → <ins>{_token(step.new_token)}</ins>"
    numbers = [words.promised(step)] if step.position is not None else []
    numbers += [words.judged(step.score)]
    numbers += [] if math.isnan(step.log_likelihood) else [words.likelihood(step.log_likelihood)]
    numbers += [] if step.kl is None else [f"KL {step.kl:.2f}"]
    kept = (
        f'<b class="good">{words.kept(step)}</b>' if step.accepted else f'<span class="dim">{words.kept(step)}</span>'
    )
    opened = " open" if step.accepted and count > 1 else ""
    shown = _judged(step.text, step.score.spans if step.score is not None and step.score.judged else (), shared)
    return (
        f'<li class="{"kept" if step.accepted else "left"}"><details{opened}><summary>{count}. {what} · {kept} '
        f'<span class="dim">{escape(" · ".join(numbers))}</span></summary><pre>{shown}</pre>{_verdict(step)}'
        "</details></li>"
    )


def _verdict(step: Step) -> str:
    """What the reward says of a step's text, and why."""
    score = step.score
    if score is None:
        return ""
    colour = {True: "good", False: "bad", None: "dim"}[score.verified]
    why = f" – {escape(score.explanation)}" if score.judged and score.explanation else ""
    told = f"<br>What a model is told: “{escape(score.feedback)}”" if score.feedback else ""
    return f'<p class="dim"><span class="{colour}">{escape(words.judged(score))}</span>{why}{told}</p>'


def _heat(text: str, gains: Sequence[TokenGain]) -> str:
    """A text whose tokens are the warmer, the higher the ranking score of their best alternative."""
    marks: list[tuple[int, int, str]] = []
    for gain in gains:
        strength = min(1.0, max(0.0, gain.ranking_score / _STRONG))
        hint = f"{_visible(gain.new)} instead: ranking score {gain.ranking_score:.2f} nats"
        colour = f"background:rgba(var(--hot),{0.75 * strength:.2f})"
        marks.append((gain.start, gain.end, f'span title="{escape(hint)}" style="{colour}"'))
    return _with_marks(text, marks)


def _judged(text: str, spans: Sequence[Span], shared: int) -> str:
    """A text with what a tool found wrong underlined, its reason the hint; what comes from another answer is pale."""
    marks: list[tuple[int, int, str]] = []
    for span in spans:
        hint = span.explanation + (f" (expected {span.expected})" if span.expected is not None else "")
        if span.value < 0:
            marks.append((span.start, span.end, f'u title="{escape(hint)}"'))
    same, new = _with_marks(text[:shared], marks), _with_marks(text, marks, shared)
    return f'<span class="dim">{same}</span>{new}' if same else new


def _with_marks(text: str, marks: Sequence[tuple[int, int, str]], first: int = 0) -> str:
    """The text from a character on, some of it within tags; marks that overlap or do not fit are left out."""
    parts, at = list[str](), first
    for start, end, tag in sorted(marks, key=lambda mark: mark[0]):
        if at <= start < end <= len(text):
            parts += [escape(text[at:start]), f"<{tag}>{escape(text[start:end])}</{tag.split()[0]}>"]
            at = end
    return "".join(parts) + escape(text[at:])


def _token(text: str | None) -> str:
    return f"<code>{escape(_visible(text))}</code>"


def _visible(text: str | None) -> str:
    return words.token(text).replace(" ", "␣")


def _ledger(usage: Usage) -> str:
    rows = [
        f"<tr><td>{f.name.replace('_', ' ')}</td><td>{words.number(getattr(usage, f.name))}</td></tr>"
        for f in fields(usage)
        if getattr(usage, f.name)
    ]
    return f"<h2>Spent</h2><table>{''.join(rows)}</table>"
