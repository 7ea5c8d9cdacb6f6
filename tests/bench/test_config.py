"""One file says what is compared; what is wrong in it is refused by name before anything is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nabla_agents import AdamDTO, BestOfN, Budget, ConfigurationError, MirrorDTO, Nabla, NablaParallel, NoDirection
from nabla_agents.bench import BenchConfig, Flipped, Shuffled, run
from nabla_agents.testing import random_model

FULL = """
problems = 2
seeds = [3, 4]
budgets = [2, { rollouts = 3, flops = 1e10 }]
compare = [["wide*", "greedy:2"]]
[rewards]
calculator = "arithmetic"
noisy = { of = "calculator", flip = 0.25 }
both = "2*calculator + noisy"
[strategies.greedy]
[strategies.best-of-n]
rewards = ["calculator"]
[strategies.wide]
kind = "nabla-parallel"
settings = { direction = "none" }
vary = { width = [1, 2], "dto.beta" = [0.5] }
rewards = ["both"]
"""


PEER = 'settings = { direction = "peer" }\n[rewards]\nprocess = "tiny"\n'


def read(folder: Path, text: str) -> BenchConfig:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return BenchConfig.read(path)


def test_arms_are_strategies_times_rewards_times_budgets(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    names = ["greedy", "best-of-n/calculator", "wide[width=1,dto.beta=0.5]/both", "wide[width=2,dto.beta=0.5]/both"]
    arms = config.arms()
    assert list(arms) == [f"{name}:{budget}" for budget in ("2", "rollouts=3,flops=1e+10") for name in names]
    few, many = (arms[f"best-of-n/calculator:{budget}"] for budget in ("2", "rollouts=3,flops=1e+10"))
    assert (few.strategy, few.budget) == (BestOfN(n=2), Budget(rollouts=2))
    assert (many.strategy, many.budget) == (BestOfN(n=3), Budget(rollouts=3, flops=1e10))
    wide = arms["wide[width=2,dto.beta=0.5]/both:2"]
    assert wide.strategy == NablaParallel(direction=NoDirection(), width=2, dto=MirrorDTO(beta=0.5))
    assert (wide.reward, dict(wide.varied)) == ("both", {"width": 2, "dto.beta": 0.5})
    assert arms["greedy:2"].reward is None


def test_without_strategies_every_reward_has_the_baselines_the_searches_and_their_controls() -> None:
    names = list(BenchConfig(rewards={"a": "arithmetic"}, budgets=4).arms())
    assert names[:4] == ["greedy", "majority@4", "weighted-vote@4/a", "best-of-4/a"]
    assert {"nabla/a", "nabla/none/a", "parallel/random/a"} < set(names)


def test_a_dto_of_another_kind_is_chosen_by_its_settings() -> None:
    strategies = {"nabla": {"settings": {"dto": {"steps": 7}}, "vary": {"dto.learning_rate": [0.1]}}}
    [arm] = BenchConfig(rewards={"a": "arithmetic"}, strategies=strategies).arms().values()
    assert arm.strategy == Nabla(dto=AdamDTO(steps=7, learning_rate=0.1))


@pytest.mark.parametrize(
    ("changed", "to", "says"),
    [
        ("problems = 2", "problms = 2", "did you mean 'problems'"),
        ("seeds = [3, 4]", "seeds = [3, 3]", "a seed occurs twice"),
        ("seeds = [3, 4]", "seeds = []", "seeds"),
        ("flops = 1e10", "flop = 1e10", "Unknown limit of a budget 'flop'; did you mean 'flops'"),
        ("rollouts = 3", "rollouts = 0", "Budget.rollouts is 0"),
        ("flip = 0.25", "flipp = 0.25", "did you mean 'flip'"),
        ("flip = 0.25", "flip = 2.5", "flip = 2.5"),
        ('kind = "nabla-parallel"', 'kind = "nabla-paralel"', "Unknown strategy 'nabla-paralel'; did you mean"),
        ('direction = "none"', 'directon = "none"', "did you mean 'direction'"),
        ("width = [1, 2]", "widht = [1, 2]", "did you mean 'width'"),
        (
            '["calculator"]',
            '["calculater"]',
            "Unknown reward of strategy 'best-of-n': 'calculater'; did you mean 'calculator'",
        ),
        ('rewards = ["both"]', 'rewards = ["both"]\nreader = "tiny"', "has a reader, but no direction that reads"),
        ('rewards = ["both"]', 'reward = ["both"]', "did you mean 'rewards'"),
        ('"arithmetic"', '"arithmetics"', "Unknown reward 'arithmetics'; did you mean 'arithmetic'"),
        ('"greedy:2"', '"gredy:2"', "Unknown arm to compare 'gredy:2'; did you mean 'greedy:2'"),
        ('"greedy:2"', '"best*"', "'wide*' with 4 arms (.*) and 'best*' with 2"),
        ("problems = 2", "problems = ", "cannot be read as TOML"),
        ("problems = 2", 'problems = 2\ntask = "poems"', "Unknown task 'poems'"),
        ("problems = 2", "problems = 2\nloading = { dtyp = 1 }", "did you mean 'dtype'"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, to: str, says: str
) -> None:
    loads = "nabla_agents.bench.config.LanguageModel.from_pretrained"
    monkeypatch.setattr(loads, lambda *_, **__: pytest.fail("loaded"))
    assert changed in FULL
    with pytest.raises(ConfigurationError, match=says.replace("*'", r"\*'")):
        read(tmp_path, FULL.replace(changed, to, 1)).bench()


def test_an_arm_may_have_a_reader_that_is_loaded_once_and_recorded(tmp_path: Path) -> None:
    told = '[strategies.told]\nkind = "nabla"\nsettings = { direction = "gradient+feedback" }\nreader = "tiny"\n'
    config = read(tmp_path, told + '[strategies.wide]\nkind = "nabla-parallel"\nreader = "tiny"\n' + PEER)
    told, wide = config.arms()["told/process"], config.arms()["wide/process"]
    assert (told.reader, told.settings()["reader"]) == ("tiny", "tiny")
    bench = config.bench()
    gradient, feedback = (direction for _, direction in bench._engines["told/process"].strategy.direction.terms)
    assert gradient == told.strategy.direction.terms[0][1]
    [(_, peer)] = bench._engines["wide/process"].strategy.direction.terms
    assert feedback.model is peer.model is not None
    assert type(peer) is type(wide.strategy.direction)


def test_a_file_of_questions_is_found_beside_its_config(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "1 + 1?", "answer": 2}\n', encoding="utf-8")
    config = read(tmp_path, '[task]\npath = "mine.jsonl"\n[rewards]\ncalculator = "arithmetic"\n')
    [question] = config.the_task().draw(3, 0)
    assert question.right(["Answer: 2"]) == [True]


def test_rewards_are_made_once_and_named_in_each_other(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    made = config.made_rewards(random_model(width=16, layers=1), config.the_task(), {"calculator", "noisy", "both"})
    noisy, both = made["noisy"], made["both"]
    assert isinstance(noisy, Flipped)
    assert noisy.inner is made["calculator"]
    assert [(w, r) for w, r in both.terms] == [(2.0, made["calculator"]), (1.0, noisy)]  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="made of itself: a -> b -> a"):
        BenchConfig(rewards={"a": "b", "b": "a"}).made_rewards(
            random_model(width=16, layers=1), config.the_task(), {"a"}
        )


def test_a_shuffled_reward_has_the_models_answers_to_questions_that_are_not_asked() -> None:
    config = BenchConfig(problems=3, max_tokens=4, rewards={"a": {"of": "arithmetic", "shuffle": True}})
    task = config.the_task()
    reward = config.made_rewards(random_model(width=16, layers=1), task, {"a"})["a"]
    assert isinstance(reward, Shuffled)
    donors = reward._donors
    assert len(donors) == 64
    assert not {d.prompt.question for d in donors} & {q.text for q in task.draw(300, 0)}
    assert all(0 < len(d.completion_ids) <= 4 for d in donors)


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    """The embedded model, in spawned processes, and the results of both in files."""
    config = BenchConfig(problems=3, batch=2, max_tokens=24, budgets=2, rewards={"a": "arithmetic"})
    config = config.replace(strategies={"greedy": {}, "nabla": {}})
    alone = list(run(config.bench(), tmp_path / "a"))
    together = list(run(config.replace(workers=2).bench(), tmp_path / "b", recipe=config.bench))
    assert [(r.key, r.text, r.curve) for r in together] == [(r.key, r.text, r.curve) for r in alone]
    assert [r.key for r in together] == [
        (arm, 0, i) for chunk in ((0, 1), (2,)) for arm in ("greedy", "nabla/a") for i in chunk
    ]
    kept = [json.loads(line) for line in (tmp_path / "b" / "records.jsonl").read_text().splitlines()]
    assert len(kept) == 6


def test_the_files_that_the_guide_shows_are_understood(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    names = list(read(tmp_path, first).arms())
    assert names[:3] == ["greedy", "nabla[min_promise=-4]/process", "nabla[min_promise=-4]/both"]
    assert names[-1] == "no-gradient/noisy"
    (tmp_path / "test.jsonl").write_text('{"question": "6 * 7?", "answer": "#### 42"}', encoding="utf-8")
    assert read(tmp_path, second).the_task().draw(1, 0)[0].text == "6 * 7?\nEnd with: Answer: <number>"
