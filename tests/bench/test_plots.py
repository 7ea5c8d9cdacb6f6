"""Pictures of results: one file for each view, the same for the same figures, and every arm in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from nabla_agents.bench import plots
from nabla_agents.cli import app

COSTS = ("generated_tokens", "flops")


def arm(name: str, accuracy: float, *, varied: dict[str, Any] | None = None, oracle: bool = False) -> dict[str, Any]:
    course = [{"accuracy": accuracy - 0.1 * k, "reward": None, "log_likelihood": -1.0} for k in (1, 0)]
    by_cost = {
        field: [] if name.startswith("best") else [(50.0 * k, accuracy, accuracy - 0.1, accuracy + 0.1) for k in (1, 2)]
        for field in COSTS
    }
    return {
        "arm": name,
        "problems": 10,
        "accuracy": accuracy,
        "interval": [accuracy - 0.1, accuracy + 0.1],
        "oracle": oracle,
        "usage": {"rollouts": 2.0, "flops": 1e9, "seconds": 0.1},
        **({} if oracle else {"reward": "process", "varied": varied or {}, "course": course, "by_cost": by_cost}),
    }


RESULTS = {
    "arms": [
        arm("best-of-8/process", 0.5),
        arm("pass@8", 0.9, oracle=True),
        *(arm(f"kl[dto.kl_budget={v:g}]/process", v, varied={"dto.kl_budget": v}) for v in (0.3, 0.6)),
    ]
}


def test_there_is_a_picture_for_every_view_and_every_sweep_and_the_same_figures_give_the_same_files(
    tmp_path: Path,
) -> None:
    files = plots.draw(RESULTS, tmp_path)
    assert [f.name for f in files] == [
        "accuracy.svg",
        "cost.svg",
        "rollouts.svg",
        "allowed.svg",
        "vary-dto.kl_budget.svg",
    ]
    text = files[0].read_text(encoding="utf-8")
    for name in ("best-of-8/process", "pass@8 (oracle)", "kl[dto.kl_budget=0.3]/process"):
        assert name in text
    drawn = [f.read_bytes() for f in files]
    assert all(svg.count(b"<path") > 3 for svg in drawn)
    plots.draw(json.loads(json.dumps(RESULTS)), tmp_path)
    assert [f.read_bytes() for f in files] == drawn


def test_only_chosen_arms_have_their_course_drawn() -> None:
    assert "rollouts" not in plots.figures(RESULTS, curves=("greedy",))
    assert not [label for label in labels(plots.figures(RESULTS, curves=("kl*",))["rollouts"]) if "best-of-8" in label]


def test_strategies_with_several_rewards_are_shown_one_beside_the_other() -> None:
    several = [{**arm(f"{s}/{r}", 0.5), "reward": r} for s in ("nabla", "best-of-8") for r in ("process", "both")]
    figure = plots.figures({"arms": [*several, arm("once/process", 0.1)]})["rewards"]
    assert labels(figure) == ["nabla", "best-of-8"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["process", "both"]


def labels(figure: Figure) -> list[str]:
    """Of all legends."""
    legends = [axes.get_legend() for axes in figure.axes]
    return [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]


def test_what_brings_pictures_is_said_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nabla_agents.bench.report.find_spec", lambda name: None)
    folder = tmp_path / "a[bold]b"
    done = CliRunner().invoke(app, ["bench", "--problems", "1", "--arms", "greedy", "--out", str(folder)])
    assert "nabla-agents[plots]" in done.output + done.stderr
    assert str(folder) in done.output + done.stderr
