"""Pictures of results: one file for each view, the same for the same figures, and every arm in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nabla_agents.bench import plots


def arm(name: str, accuracy: float, *, varied: dict[str, Any] | None = None, oracle: bool = False) -> dict[str, Any]:
    course = [{"accuracy": accuracy - 0.1 * k, "reward": None, "log_likelihood": -1.0} for k in (1, 0)]
    return {
        "arm": name,
        "problems": 10,
        "accuracy": accuracy,
        "interval": [accuracy - 0.1, accuracy + 0.1],
        "oracle": oracle,
        "usage": {"rollouts": 2.0, "flops": 1e9, "seconds": 0.1},
        **({} if oracle else {"reward": "process", "varied": varied or {}, "course": course}),
    }


RESULTS = {
    "arms": [
        arm("best-of-8/process", 0.5),
        arm("pass@8", 0.9, oracle=True),
        *(arm(f"kl[dto.kl_budget={v:g}]/process", v, varied={"dto.kl_budget": v}) for v in (0.3, 0.6)),
    ]
}


def test_there_is_a_picture_for_every_view_and_every_sweep(tmp_path: Path) -> None:
    files = plots.draw(RESULTS, tmp_path)
    assert [f.name for f in files] == ["accuracy.svg", "cost.svg", "rollouts.svg", "vary-dto.kl_budget.svg"]
    text = files[0].read_text(encoding="utf-8")
    for name in ("best-of-8/process", "pass@8 (oracle)", "kl[dto.kl_budget=0.3]/process"):
        assert name in text
    assert all(f.read_text(encoding="utf-8").count("<path") > 3 for f in files)


def test_the_same_figures_give_the_same_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        plots.draw(json.loads(json.dumps(RESULTS)), folder)
    assert [(f.name, f.read_bytes()) for f in sorted(first.iterdir())] == [
        (f.name, f.read_bytes()) for f in sorted(second.iterdir())
    ]


def test_only_chosen_arms_have_their_course_drawn(tmp_path: Path) -> None:
    assert "rollouts.svg" not in {f.name for f in plots.draw(RESULTS, tmp_path, curves=("greedy",))}
    plots.draw(RESULTS, tmp_path, curves=("kl*",))
    assert "best-of-8" not in (tmp_path / "rollouts.svg").read_text(encoding="utf-8")


def test_strategies_with_several_rewards_are_shown_one_beside_the_other(tmp_path: Path) -> None:
    several = [{**arm(f"{s}/{r}", 0.5), "reward": r} for s in ("nabla", "best-of-8") for r in ("process", "both")]
    files = plots.draw({"arms": [*several, arm("once/process", 0.1)]}, tmp_path)
    text = (tmp_path / "rewards.svg").read_text(encoding="utf-8")
    assert tmp_path / "rewards.svg" in files
    assert all(name in text for name in ("nabla", "best-of-8", "process", "both"))
    assert "once" not in text
