"""Engine: a language model, a reward and a strategy that turn a prompt into a refined answer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

from nabla_agents.base_engine import BaseEngine
from nabla_agents.errors import ConfigurationError, ContextOverflowError, PromptError
from nabla_agents.models.decoding import Checked, RolloutBackend
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.loading import Loading, LoadingOptions
from nabla_agents.models.threads import release_threads
from nabla_agents.objective import Objective, check_parts
from nabla_agents.request import PromptLike, Request, check_budget, check_strategy, read_messages
from nabla_agents.rewards.base import Reward
from nabla_agents.run import Run
from nabla_agents.scheduling.progress import SearchProgress
from nabla_agents.scheduling.scheduler import Scheduler
from nabla_agents.search.base import Strategy
from nabla_agents.search.nabla import Nabla
from nabla_agents.search.sampling import Greedy
from nabla_agents.search.search import Search
from nabla_agents.types import Budget, Prompt


class Engine(BaseEngine):
    """Answers prompts with a strategy that refines the language model's own rollouts. Threads may share one engine.

    Args:
        model: a `LanguageModel`, a hub id, a folder, or `tiny` (embedded).
        reward: what the answer is judged by; without one, the likelihood alone.
        strategy: the search; by default `Nabla()`, and `Greedy()` where there is no reward to search by.
        budget: what one prompt may cost unless a call says otherwise.
        likelihood_weight: weight of log π in the objective (1 / the paper's λ).
        embedding_terms: False keeps only the direct term of the gradient: no backward pass, in rewards neither. One
            with a head has no such term, so it scores and accepts, and does not steer.
        rollouts: samples completions in the model's place, for example on a server.
        loading: options of `Loading` when `model` is a name: dtype, device_map, revision, ...

    Raises:
        ConfigurationError, ModelLoadError, VocabularyMismatchError: before any weight is loaded where possible.
    """

    def __init__(
        self,
        *,
        model: LanguageModel | str | Path,
        reward: Reward | None = None,
        strategy: Strategy | None = None,
        budget: Budget | None = None,
        likelihood_weight: float = 1.0,
        embedding_terms: bool = True,
        rollouts: RolloutBackend | None = None,
        **loading: Unpack[LoadingOptions],
    ) -> None:
        _check_parts(
            model=model,
            reward=reward,
            strategy=strategy,
            budget=budget,
            likelihood_weight=likelihood_weight,
            rollouts=rollouts,
            **loading,
        )
        self._own_strategy = strategy
        self.strategy: Strategy = (Greedy() if reward is None else Nabla()) if strategy is None else strategy
        self.budget = Budget() if budget is None else budget
        self.model = model if isinstance(model, LanguageModel) else LanguageModel.from_pretrained(model, **loading)
        self.objective = Objective(
            self.model, reward, likelihood_weight=likelihood_weight, embedding_terms=embedding_terms
        )
        self._rollouts = rollouts
        self._backend: RolloutBackend = self.model if rollouts is None else Checked(rollouts)
        self._scheduler = Scheduler.of(self.model.transformer.device)
        if reward is None and strategy is None:
            warnings.warn(
                "The engine has no reward, so nothing can tell a better answer: it decodes greedily. Give it a reward, "
                "or say strategy=Greedy().",
                stacklevel=2,
            )

    @classmethod
    def tiny(
        cls,
        *,
        model: LanguageModel | str | Path = "tiny",
        reward: Reward | Literal["tiny"] | None = "tiny",
        strategy: Strategy | None = None,
        budget: Budget | None = None,
        likelihood_weight: float = 1.0,
        embedding_terms: bool = True,
        rollouts: RolloutBackend | None = None,
        **loading: Unpack[LoadingOptions],
    ) -> Engine:
        """The embedded language model with its embedded process reward and `Nabla`; every keyword replaces a part."""
        parts: dict[str, Any] = {
            "model": model,
            "strategy": strategy,
            "budget": budget,
            "likelihood_weight": likelihood_weight,
            "embedding_terms": embedding_terms,
            "rollouts": rollouts,
            **loading,
        }
        if reward == "tiny":
            from nabla_agents.rewards.learned.implicit import ImplicitReward

            _check_parts(**parts)  # before the reward's weights are read
            reward = ImplicitReward.from_pretrained("tiny")
        return cls(reward=reward, **parts)

    def with_reward(self, reward: Reward | None, *, strategy: Strategy | None = None) -> Engine:
        """An engine that judges by another reward; the model, its rollouts and all settings are shared with this one.

        strategy: what it takes if this one has no strategy of its own; None is the default.

        Raises:
            ConfigurationError, VocabularyMismatchError: the reward does not fit the model.
        """
        return Engine(
            model=self.model,
            reward=reward,
            strategy=self.strategy if reward is None else self._own_strategy or strategy,
            budget=self.budget,
            likelihood_weight=self.objective.likelihood_weight,
            embedding_terms=self.objective.embedding_terms,
            rollouts=self._rollouts,
        )

    @property
    def busy_seconds(self) -> float:
        """For how long the thread that computes has been at one piece of work, such as a decode step or a batch of
        gradient passes; 0 while it waits for work.
        """
        return self._scheduler.busy_seconds

    def prompt(
        self, prompt: PromptLike, *, tools: Sequence[dict[str, Any]] | None = None, formatted: bool = False
    ) -> Prompt:
        """The prompt as the language model reads it; messages may be mappings with `role` and `content`."""
        if isinstance(prompt, Prompt):
            if tools or formatted:
                raise PromptError("A Prompt is rendered already: give tools and formatted to Engine.prompt instead.")
            return self._fitting(prompt)
        conversation = prompt if isinstance(prompt, str) else read_messages(prompt)
        return self.model.prompt(conversation, tools=tools, formatted=formatted)

    def submit(self, request: Request, *, on_demand: bool = False) -> Run:
        """Starts a search, which goes on beside others until it ends; with `on_demand`, one step further each time that
        a step is asked for. A run that nobody holds any more is cancelled.

        Raises:
            PromptError, ContextOverflowError, GrammarError, ConfigurationError, VocabularyMismatchError: before
                anything is computed.
        """
        strategy: Strategy = self.strategy if request.strategy is None else request.strategy
        check_strategy(strategy)
        if (check := getattr(strategy, "check", None)) is not None:
            check(self.model, request.prompt)
        if request.sampling.grammar is not None:
            self.model.constraint(request.sampling.grammar)
        # A prompt of its own: models keep what they have read of one for as long as it lasts.
        own = replace(request, prompt=replace(self._fitting(request.prompt)))
        search = Search(
            own,
            objective=self.objective,
            backend=self._backend,
            budget=self.budget if request.budget is None else request.budget,
            rule=strategy.rule,
            final=not getattr(strategy, "revises", True),
            draft=self.draft_ids(request),
        )
        searching = SearchProgress(own, search, strategy, wake=self._scheduler.wake)
        run = Run(request, searching, on_demand=on_demand)
        release_threads()  # of this thread: the scheduler's computes from here on
        self._scheduler.add(run, searching)
        return run

    def _at_once(self) -> AbstractContextManager[Any]:
        return self._scheduler.held()

    def _fitting(self, prompt: Prompt) -> Prompt:
        """A prompt that was rendered before, if it leaves room for a completion."""
        if not prompt.ids:
            raise PromptError("The prompt has no token ids; expected one that Engine.prompt made.")
        if not 0 <= min(prompt.ids) <= max(prompt.ids) < self.model.vocab_size:
            raise PromptError(
                f"The prompt has token ids from {min(prompt.ids)} to {max(prompt.ids)}, but {self.model.name} has "
                f"{self.model.vocab_size} tokens; expected one that Engine.prompt of this engine made."
            )
        if len(prompt.ids) >= self.model.context_length:
            raise ContextOverflowError(
                f"The prompt has {len(prompt.ids)} tokens; the context of {self.model.name} is "
                f"{self.model.context_length} and must also hold the completion."
            )
        return prompt

    def draft_ids(self, request: Request) -> tuple[int, ...] | None:
        """Token ids of a request's draft, up to where it ends by the model's end tokens or the request's stop strings.

        Raises:
            ContextOverflowError, ConfigurationError: it does not fit into the context, or the grammar.
        """
        if request.draft is None:
            return None
        prompt, grammar, tokenizer = request.prompt, request.sampling.grammar, self.model.tokenizer
        ends = [*request.sampling.stop, *(tokenizer.token_text(i) for i in self.model.eos_ids)]
        text = request.draft[: min((at for end in ends if (at := request.draft.find(end)) >= 0), default=None)]
        ids = tuple(tokenizer.encode(text))
        if len(prompt.ids) + len(ids) >= self.model.context_length:
            raise ContextOverflowError(
                f"The prompt has {len(prompt.ids)} tokens and the draft {len(ids)}, but the context of "
                f"{self.model.name} is {self.model.context_length} tokens. Shorten the draft."
            )
        ended = ids if request.draft_cut else (*ids, *sorted(self.model.eos_ids)[:1])
        if grammar is not None and self.model.constraint(grammar).take(ended) < len(ended):
            raise ConfigurationError("The draft does not keep to the request's grammar; leave one of the two out.")
        return ids


def _check_parts(
    *,
    model: Any,
    reward: Any = None,
    strategy: Any = None,
    budget: Any = None,
    likelihood_weight: Any = 1.0,
    embedding_terms: Any = True,
    rollouts: Any = None,
    **loading: Any,
) -> None:
    """Raises ConfigurationError for what can be refused before any weight is read."""
    if strategy is not None:
        check_strategy(strategy)
    if budget is not None:
        check_budget(budget)
    check_parts(reward, likelihood_weight)
    if not isinstance(model, LanguageModel | str | Path):
        raise ConfigurationError(f"model is {model!r}; expected a hub id, a folder, 'tiny' or a LanguageModel.")
    if not isinstance(model, LanguageModel):
        Loading(**loading)
    elif loading:
        raise ConfigurationError(f"{', '.join(loading)}: loading options need a model name, got a loaded model.")
    if rollouts is not None and (isinstance(rollouts, type) or not callable(getattr(rollouts, "rollout", None))):
        raise ConfigurationError(f"rollouts is {rollouts!r}; expected an object with rollout(jobs).")
