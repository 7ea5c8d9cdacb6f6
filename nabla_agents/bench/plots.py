"""Pictures of a comparison: accuracy of every arm, against what it costs, against rollouts, and along each sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#222222")  # Okabe and Ito
_MARKERS = "osD^vP*X<>hpd8"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "nabla",  # the same figures give the same file
}
_MOST_CURVES = 8
_ACCURACY = "accuracy in %, with its 95 % interval"
_Arm = Mapping[str, Any]  # as in `results.json`


def draw(results: Mapping[str, Any], folder: Path, *, curves: Sequence[str] = ("*",)) -> list[Path]:
    """The pictures of `results.json` as SVG files in a folder; arguments as in `figures`."""
    files: list[Path] = []
    with matplotlib.rc_context(STYLE):
        for name, figure in figures(results, curves=curves).items():
            files.append(folder / f"{name}.svg")
            figure.savefig(files[-1], bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return files


def figures(results: Mapping[str, Any], *, curves: Sequence[str] = ("*",)) -> dict[str, Figure]:
    """The pictures of `results.json` by name; `curves` are globs of the arms whose course is shown.

    `accuracy` has every arm with its interval, `cost` the same against rollouts, FLOPs and seconds, `rewards` every
    strategy that had several rewards, one beside the other, `rollouts` the course of some arms (accuracy, reward and
    log-likelihood of what would have been returned after each rollout: where the reward rises and the accuracy falls,
    the reward is being hacked), `allowed` their accuracy by what a question may cost in generated tokens and
    FLOPs, `vary-SETTING` what a sweep did.
    """
    arms: list[_Arm] = [arm for arm in results["arms"] if arm["problems"]]
    pictures: dict[str, Figure] = {}
    if arms:
        pictures["accuracy"] = _accuracy(arms)
        pictures["cost"] = _cost([arm for arm in arms if not arm["oracle"]])
    chosen = [a for a in arms if len(a.get("course", ())) > 1 and any(fnmatchcase(a["arm"], glob) for glob in curves)]
    if chosen:
        pictures["rollouts"] = _course(chosen[:_MOST_CURVES])
    priced = [a for a in arms if any(a.get("by_cost", {}).values()) and any(fnmatchcase(a["arm"], g) for g in curves)]
    if any(len(a.get("course", ())) > 1 for a in priced):
        pictures["allowed"] = _by_cost(priced[:_MOST_CURVES])
    families = _families([arm for arm in arms if arm.get("reward") and not arm.get("varied")])
    if len(families) > 1:
        pictures["rewards"] = _by_reward(families)
    swept = [arm for arm in arms if arm.get("varied")]
    for setting in dict.fromkeys(name for arm in swept for name in arm["varied"]):
        pictures[f"vary-{setting}"] = _sweep(setting, [arm for arm in swept if setting in arm["varied"]])
    return pictures


def _accuracy(arms: Sequence[_Arm]) -> Figure:
    """One row per arm: accuracy and its 95 % interval, coloured by reward; oracles are hollow."""
    figure = Figure(figsize=(7, 0.7 + 0.21 * len(arms)))
    axes: Axes = figure.add_subplot()
    rewards = list(dict.fromkeys(_reward(arm) for arm in arms))
    for row, arm in enumerate(arms):
        colour = _colour(rewards.index(_reward(arm)))
        low, high = (100 * edge for edge in arm["interval"])
        axes.plot([low, high], [row, row], color=colour, linewidth=1.4, solid_capstyle="butt")
        face = "white" if arm["oracle"] else colour
        axes.plot(100 * arm["accuracy"], row, "o", color=colour, markerfacecolor=face, markersize=5)
    axes.set_yticks(range(len(arms)), [arm["arm"] + (" (oracle)" if arm["oracle"] else "") for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(_ACCURACY)
    _keys(axes, [(name, _colour(i), "o") for i, name in enumerate(rewards)], title="reward")
    return figure


def _cost(arms: Sequence[_Arm]) -> Figure:
    """Accuracy against mean rollouts, FLOPs and seconds per question, one panel each."""
    figure = Figure(figsize=(11, 4))
    axes: Sequence[Axes] = list(figure.subplots(1, 3, sharey=True))
    families = list(dict.fromkeys(_family(arm) for arm in arms))
    rewards = list(dict.fromkeys(_reward(arm) for arm in arms))
    for panel, (field, label) in zip(
        axes, (("rollouts", "rollouts"), ("flops", "FLOPs"), ("seconds", "seconds")), strict=True
    ):
        for arm in arms:
            colour = _colour(rewards.index(_reward(arm)))
            marker = _MARKERS[families.index(_family(arm)) % len(_MARKERS)]
            low, high = (100 * edge for edge in arm["interval"])
            panel.plot([arm["usage"][field]] * 2, [low, high], color=colour, linewidth=0.8, alpha=0.5)
            panel.plot(arm["usage"][field], 100 * arm["accuracy"], marker, color=colour, markersize=6)
        panel.set_xlabel(f"{label} per question (mean)")
        panel.set_xlim(left=0)
    axes[0].set_ylabel(_ACCURACY)
    keys = [(name, "#555555", _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(families)]
    _keys(axes[-1], [*keys, *((name, _colour(i), "_") for i, name in enumerate(rewards))])
    return figure


def _course(arms: Sequence[_Arm]) -> Figure:
    """What would have been returned after each rollout: how often it is right, its reward, its log-likelihood. Where
    every search has ended, a dotted line goes on.
    """
    figure = Figure(figsize=(11, 4))
    longest = max(len(arm["course"]) for arm in arms)
    fields = (
        ("accuracy", "accuracy in %", 100),
        ("reward", "mean reward", 1),
        ("log_likelihood", "mean log-likelihood in nats", 1),
    )
    panels: Sequence[Axes] = list(figure.subplots(1, 3))
    for panel, (field, label, scale) in zip(panels, fields, strict=True):
        for i, arm in enumerate(arms):
            points = [(k, scale * p[field]) for k, p in enumerate(arm["course"], 1) if p[field] is not None]
            if points:
                panel.plot(*zip(*points, strict=True), "-o", color=_colour(i), markersize=3, linewidth=1.4)
                panel.plot([points[-1][0], longest], [points[-1][1]] * 2, ":", color=_colour(i), linewidth=1.2)
        panel.set_xlabel("rollouts allowed")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_title(label, fontsize=9)
    _keys(panels[-1], [(arm["arm"], _colour(i), "o") for i, arm in enumerate(arms)])
    figure.tight_layout()
    return figure


def _by_cost(arms: Sequence[_Arm]) -> Figure:
    """Accuracy against what a question may cost, in generated tokens and in FLOPs, with its interval as a band. Where
    every search has ended, a dotted line goes on.
    """
    figure = Figure(figsize=(11, 4))
    panels: Sequence[Axes] = list(figure.subplots(1, 2, sharey=True))
    for panel, field, label in zip(panels, ("generated_tokens", "flops"), ("generated tokens", "FLOPs"), strict=True):
        longest = max(arm["by_cost"][field][-1][0] for arm in arms)
        for i, arm in enumerate(arms):
            allowed, accuracy, low, high = zip(*arm["by_cost"][field], strict=True)
            shares = [[100 * share for share in line] for line in (accuracy, low, high)]
            panel.step(allowed, shares[0], where="post", color=_colour(i), linewidth=1.4)
            panel.fill_between(allowed, shares[1], shares[2], step="post", color=_colour(i), alpha=0.08, linewidth=0)
            panel.plot([allowed[-1], longest], [shares[0][-1]] * 2, ":", color=_colour(i), linewidth=1.2)
        panel.set_xlabel(f"{label} allowed per question")
        panel.set_xlim(left=0)
    panels[0].set_ylabel(_ACCURACY)
    _keys(panels[-1], [(arm["arm"], _colour(i), "_") for i, arm in enumerate(arms)])
    figure.tight_layout()
    return figure


def _by_reward(families: Mapping[str, Sequence[_Arm]]) -> Figure:
    """Accuracy and its interval with each reward, one line for each strategy."""
    rewards = list(dict.fromkeys(arm["reward"] for own in families.values() for arm in own))
    figure = Figure(figsize=(1.6 + max(1.1, 0.085 * max(map(len, rewards))) * len(rewards), 4))
    axes: Axes = figure.add_subplot()
    for i, (name, own) in enumerate(families.items()):
        at = [rewards.index(arm["reward"]) + 0.06 * (i - len(families) / 2) for arm in own]
        marker = _MARKERS[i % len(_MARKERS)]
        _with_intervals(axes, at, own, color=_colour(i), label=name, marker=marker, markersize=5, linewidth=1.0)
    axes.set_xticks(range(len(rewards)), rewards)
    axes.set_ylabel(_ACCURACY)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)
    return figure


def _sweep(setting: str, arms: Sequence[_Arm]) -> Figure:
    """Accuracy and rollouts against the values of one setting, one line for what is otherwise equal."""
    figure = Figure(figsize=(9, 3.6))
    panels: Sequence[Axes] = list(figure.subplots(1, 2))
    values = list(dict.fromkeys(_text(arm["varied"][setting]) for arm in arms))
    lines: dict[str, list[_Arm]] = {}
    for arm in arms:
        lines.setdefault(_without(setting, arm), []).append(arm)
    for i, own in enumerate(lines.values()):
        at = [values.index(_text(arm["varied"][setting])) for arm in own]
        _with_intervals(panels[0], at, own, color=_colour(i), marker="o", markersize=4, linewidth=1.2)
        panels[1].plot(at, [arm["usage"]["rollouts"] for arm in own], "-o", color=_colour(i), markersize=4)
    for panel, label in zip(panels, (_ACCURACY, "rollouts per question"), strict=True):
        panel.set_xticks(range(len(values)), values)
        panel.set_xlabel(setting)
        panel.set_ylabel(label)
    _keys(panels[-1], [(name, _colour(i), "o") for i, name in enumerate(lines)])
    figure.tight_layout()
    return figure


def _with_intervals(axes: Axes, at: Sequence[int | float], arms: Sequence[_Arm], **style: Any) -> None:
    """The accuracies of arms, each with its interval, along a line."""
    edges = [[100 * abs(arm["accuracy"] - arm["interval"][j]) for arm in arms] for j in (0, 1)]
    axes.errorbar(at, [100 * arm["accuracy"] for arm in arms], edges, capsize=2, **style)


def _keys(axes: Axes, keys: Sequence[tuple[str, str, str]], title: str | None = None) -> None:
    """A legend beside the axes: (label, colour, marker)."""
    for label, colour, marker in keys:
        axes.plot([], [], marker, color=colour, label=label, markersize=5, markeredgewidth=2 if marker == "_" else 1)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), title=title, fontsize=8)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _reward(arm: _Arm) -> str:
    return arm.get("reward") or "none"


def _families(arms: Sequence[_Arm]) -> dict[str, list[_Arm]]:
    """The strategies that were measured with more than one reward."""
    families: dict[str, list[_Arm]] = {}
    for arm in arms:
        families.setdefault(_family(arm), []).append(arm)
    return {name: own for name, own in families.items() if len({arm["reward"] for arm in own}) > 1}


def _family(arm: _Arm) -> str:
    """The arm's name without its reward, budget and changed settings."""
    return arm["arm"].split("[")[0].removesuffix(f"/{arm.get('reward')}").split(":")[0]


def _without(setting: str, arm: _Arm) -> str:
    """What an arm has beside one varied setting."""
    rest = ",".join(f"{k}={_text(v)}" for k, v in arm["varied"].items() if k != setting)
    tail = arm["arm"].rpartition("]")[2]
    return arm["arm"].split("[")[0] + (f"[{rest}]" if rest else "") + tail


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
