"""One file says what is compared: strategies × rewards × budgets × seeds on the questions of a task."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

from nabla_agents.bench.arms import Arm, changed, choose, default_arms
from nabla_agents.bench.controls import ControlledReward, RewardChoice, check, made
from nabla_agents.bench.report import Report
from nabla_agents.bench.run import Bench, BenchSettings, budget_name
from nabla_agents.bench.summary import resolved
from nabla_agents.bench.tasks import TASKS, FileTask, Task, file_task
from nabla_agents.config import Sampling, Settings
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.loading import Loading
from nabla_agents.registry import STRATEGIES, known
from nabla_agents.rewards.base import Reward
from nabla_agents.types import Budget, Rollout

_UNREWARDED = ("greedy", "self-consistency", "power-sampling")  # these judge nothing unless they are told to
_DONORS = 64


class StrategyChoice(Settings):
    """A strategy and what it is measured with.

    kind: a name that `nabla solve --strategy` knows; by default the strategy's own name here.
    rewards: names in the table of rewards, all by default; `greedy`, `self-consistency` and `power-sampling` have none
        unless named.
    settings: changes of the strategy's settings, by dotted path: `{direction = "none", "dto.beta" = 0.3}`, and of
        `likelihood_weight` and `embedding_terms`.
    vary: the same with a list of values each: one arm for every combination.
    reader: a model that reads in the language model's place what directions such as `feedback` tell it; a folder, GGUF
        file or hub id, loaded with the `loading` of the comparison.
    """

    kind: str | None = None
    rewards: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)
    vary: Mapping[str, tuple[Any, ...]] = Field(default_factory=dict)
    reader: str | None = None


class BenchConfig(BenchSettings):
    """A whole comparison.

    task: `words`, `code`, or a table that names a file of questions (`FileTask`).
    model: `tiny`, a folder, a GGUF file or a hub id; `loading` has the options of `Loading`.
    rewards: name to expression (`tiny + 2*arithmetic`, `process:MODEL`, or names of this table) or to a table
        `{of = "process", shuffle = true}`; without any, the task's own.
    strategies: what is compared; without any, greedy decoding, the votes, best-of-n, both searches and their controls.
    compare: pairs of arms, or of globs with equal numbers of matches, whose paired difference is reported.
    curves: globs of the arms whose course over rollouts is drawn.
    """

    task: str | FileTask = "words"
    model: str = "tiny"
    loading: Mapping[str, Any] = Field(default_factory=dict)
    rewards: Mapping[str, RewardChoice] = Field(default_factory=dict)
    strategies: Mapping[str, StrategyChoice] = Field(default_factory=dict)
    compare: tuple[tuple[str, str], ...] = ()
    curves: tuple[str, ...] = ("*",)

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: ControlledReward(**r) if isinstance(r, Mapping) else r for name, r in value.items()}

    @field_validator("task", mode="before")
    @classmethod
    def _task(cls, value: Any) -> Any:
        return FileTask(**value) if isinstance(value, Mapping) else value

    @classmethod
    def read(cls, file: Path) -> BenchConfig:
        """The comparison that a TOML file describes; paths in it are relative to its folder.

        Raises:
            ConfigurationError: no such file, no TOML, or settings that are none.
        """
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise ConfigurationError(f"{file} cannot be read as TOML ({e}).") from e
        try:
            config = cls(**data)
        except ConfigurationError as e:
            raise ConfigurationError(f"{file}: {e}") from e
        if isinstance(config.task, FileTask):
            config = config.replace(task=config.task.replace(path=file.parent / config.task.path))
        return config

    def the_task(self) -> Task:
        """Raises ConfigurationError for an unknown name and for a file that has no such questions."""
        return known(dict(TASKS), self.task, "task") if isinstance(self.task, str) else file_task(self.task)

    def arms(self) -> dict[str, Arm]:
        """The table of arms, in order; their names are STRATEGY[SETTING=VALUE]/REWARD:BUDGET, as far as needed."""
        several, arms = len(self.budgets) > 1, dict[str, Arm]()
        for budget in self.budgets:
            for arm in self._with_budget(budget):
                name = f"{arm.name}:{budget_name(budget)}" if several else arm.name
                arms[name] = replace(arm, name=name, budget=budget if several else None)
        return arms

    def bench(self, expression: str = "*") -> Bench:
        """The chosen arms, loaded; can be pickled as `partial(config.bench, expression)`."""
        table, task = self.arms(), self.the_task()
        arms = choose(expression, table)
        for name in (name for pair in self.compare for name in pair):  # refused now, not when all is measured
            if name not in table and not any(fnmatchcase(arm, name) for arm in table):
                known(table, name, "arm to compare")
        resolved(self.compare, list(table))
        Loading(**self.loading)
        check(self.rewards)
        model = LanguageModel.from_pretrained(self.model, **self.loading)
        rewards = self.made_rewards(model, task, {arm.reward for arm in arms if arm.reward is not None})
        names = {arm.reader for arm in arms if arm.reader is not None}
        readers = {name: LanguageModel.from_pretrained(name, **self._loading_of_others) for name in names}
        return Bench(arms, model=model, rewards=rewards, readers=readers, settings=self, task=task)

    def report(self, file: str | None, expression: str = "*") -> Report:
        """How the results of a run are told that was read from `file`, or from the command line alone."""
        options = {"problems": self.problems, "rollouts": self.budget.rollouts, "max-tokens": self.max_tokens}
        options = {"seed": self.seeds[0], **options} if len(self.seeds) == 1 else options
        what = f"--task {self.task} " + " ".join(f"--{k} {v}" for k, v in options.items()) if file is None else file
        command = f"nabla bench {what}" + (f' --arms "{expression}"' if expression != "*" else "")
        settings = self.model_dump(mode="json", exclude_defaults=True, exclude={"workers", "batch"})
        return Report(command, settings, self.compare, self.curves, self.the_task().notes if not self.rewards else "")

    def made_rewards(self, model: LanguageModel, task: Task, needed: set[str]) -> Mapping[str, Reward]:
        """The rewards of these names; the task's own where the table is empty."""
        donors = cache(partial(self._donors, model, task))
        return made(self.rewards or task.rewards, needed, loading=self._loading_of_others, donors=donors)

    @property
    def _loading_of_others(self) -> Mapping[str, Any]:
        return {name: option for name, option in self.loading.items() if name != "gguf_file"}  # that is the model's own

    def _with_budget(self, budget: Budget) -> list[Arm]:
        n = budget.rollouts or 8
        if self.strategies:
            return [arm for name, choice in self.strategies.items() for arm in self._arms_of(name, choice, n)]
        if self.rewards:
            return list(default_arms(n, tuple(self.rewards)).values())
        return list(self.the_task().arms(n).values())

    def _arms_of(self, name: str, choice: StrategyChoice, n: int) -> list[Arm]:
        kind = choice.kind or name
        strategy = known(STRATEGIES, kind, "strategy")(n)
        rewards = self._rewards_of(name, choice) if choice.rewards is not None or kind not in _UNREWARDED else ()
        arms: list[Arm] = []
        for values in product(*choice.vary.values()):
            varied = dict(zip(choice.vary, values, strict=True))
            suffix = f"[{','.join(f'{k}={_shown(v)}' for k, v in varied.items())}]" if varied else ""
            for reward in rewards or (None,):
                plain = Arm(f"{name}{suffix}" + (f"/{reward}" if reward else ""), strategy, reward)
                arm = changed(plain, {**choice.settings, **varied})
                arms.append(replace(arm, varied=varied, reader=choice.reader))
        return arms

    def _rewards_of(self, strategy: str, choice: StrategyChoice) -> tuple[str, ...]:
        table = self.rewards or self.the_task().rewards
        for reward in choice.rewards or ():
            known(table, reward, f"reward of strategy {strategy!r}:")
        return tuple(table) if choice.rewards is None else choice.rewards

    def _donors(self, model: LanguageModel, task: Task) -> list[Rollout]:
        """The model's answers to questions that are not asked, or, in a file, to those that are."""
        engine = Engine(model=model, strategy=STRATEGIES["best-of-n"](1), budget=Budget(rollouts=1))
        questions = [question.text for question in task.draw(_DONORS, max(self.seeds) + 1_000_003)]
        results = engine.generate_batch(questions, sampling=Sampling(max_tokens=self.max_tokens), max_batch=self.batch)
        return [
            Rollout(engine.prompt(question), r.token_ids, r.text, torch.tensor(r.log_probs))
            for question, r in zip(questions, results, strict=True)
        ]


def _shown(value: Any) -> str:
    """A varied value as it stands in an arm's name."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
