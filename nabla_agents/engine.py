"""Engine: a language model, a reward and a strategy that turn a prompt into a refined answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nabla_agents.batching import Coalescer
from nabla_agents.config import Sampling
from nabla_agents.errors import ConfigurationError, ContextOverflowError, PromptError
from nabla_agents.models.decoding import RolloutBackend
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.loading import Loading
from nabla_agents.objective import Objective, check_parts
from nabla_agents.result import Result
from nabla_agents.rewards.base import Reward
from nabla_agents.rewards.learned.implicit import ImplicitReward
from nabla_agents.run import Run
from nabla_agents.strategies.base import Strategy
from nabla_agents.strategies.nabla import Nabla
from nabla_agents.strategies.search import LocalWorker, Search, Worker
from nabla_agents.types import Budget, Message, Prompt, Rollout, Usage

PromptLike = str | Prompt | Sequence[Message] | Sequence[Mapping[str, Any]]


class Engine:
    """Answers prompts with a strategy that refines the language model's own rollouts. Threads may share one engine.

    Args:
        model: a `LanguageModel`, a hub id, a folder, or `tiny` (embedded).
        reward: what the answer is judged by; without one, the likelihood alone.
        strategy: the search; `Nabla()` by default.
        budget: what one prompt may cost unless a call says otherwise.
        likelihood_weight: weight of log π in the objective (1 / the paper's λ).
        embedding_terms: False keeps only the direct term of the gradient: no backward pass.
        rollouts: samples completions in the model's place, for example on a server.
        loading: options of `Loading` when `model` is a name: dtype, device_map, revision, ...

    Raises:
        ConfigurationError, ModelLoadError, VocabularyMismatchError: before any weight is loaded where possible.
    """

    takes_turns = True
    """Whether callers wait for each other, operation by operation: one device has one engine."""
    has_alternatives = True

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
        **loading: Any,
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
        self.strategy: Strategy = Nabla() if strategy is None else strategy
        self.budget = Budget() if budget is None else budget
        self.model = model if isinstance(model, LanguageModel) else LanguageModel.from_pretrained(model, **loading)
        self.objective = Objective(
            self.model, reward, likelihood_weight=likelihood_weight, embedding_terms=embedding_terms
        )
        self._rollouts: RolloutBackend = rollouts or self.model
        self.worker: Worker = LocalWorker(self.objective, self._rollouts)

    @classmethod
    def tiny(cls, **options: Any) -> Engine:
        """The embedded language model with its embedded process reward and `Nabla`; every keyword replaces a part."""
        options = {"model": "tiny", **options}
        if "reward" not in options:
            _check_parts(**options)  # before the reward's weights are read
            options["reward"] = ImplicitReward.from_pretrained("tiny")
        return cls(**options)

    def strategy_of(self, strategy: Strategy | None) -> Strategy:
        """The strategy as this engine runs it; without one, its own.

        Raises:
            ConfigurationError: it is no strategy.
        """
        return self.strategy if strategy is None else _strategy(strategy)

    def with_reward(self, reward: Reward | None) -> Engine:
        """An engine that judges by another reward; the model, its rollouts and all settings are shared with this one.

        Raises:
            ConfigurationError, VocabularyMismatchError: the reward does not fit the model.
        """
        return Engine(
            model=self.model,
            reward=reward,
            strategy=self.strategy,
            budget=self.budget,
            likelihood_weight=self.objective.likelihood_weight,
            embedding_terms=self.objective.embedding_terms,
            rollouts=self._rollouts,
        )

    def generate(self, prompt: PromptLike, **options: Any) -> Result:
        """The best completion found within the budget; options as in `steps`. Ctrl-C returns the best so far."""
        run = self.steps(prompt, **options)
        try:
            for _ in run:
                pass
        except KeyboardInterrupt:
            run.interrupt()
        return run.result

    def steps(
        self,
        prompt: PromptLike,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        strategy: Strategy | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        formatted: bool = False,
        draft: str | None = None,
        worker: Worker | None = None,
    ) -> Run:
        """An iterator over the search's steps, whose `result` is the best so far at any time.

        `formatted=True` takes a string verbatim instead of as a user turn. `draft` is an answer from elsewhere, which
        the search starts from in place of its own first completion: it is judged, and what follows is to be better.
        `worker` runs the search's operations in place of the engine's own; an `OpenBatch` on that joins them with those
        of other threads. The same seed gives the same text, in any order and on any thread.

        Raises:
            PromptError, ContextOverflowError, GrammarError, ConfigurationError: before anything is computed.
        """
        worker = self.worker if worker is None else worker
        return self._start(worker, prompt, budget, seed, sampling, strategy, tools, formatted, draft)

    def generate_batch(
        self,
        prompts: Sequence[PromptLike],
        *,
        budget: Budget | None = None,
        seeds: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        strategy: Strategy | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        formatted: bool = False,
        max_batch: int = 32,
    ) -> list[Result]:
        """One result per prompt, as `generate` gives it for the same seed; the prompts' rollouts, scores and gradient
        passes run together, `max_batch` prompts at a time. Every prompt has the whole budget; seeds default to
        0, 1, 2, ... `usage.seconds` is the batch's wall-clock shared out by FLOPs.
        """
        seeds = _seeds(prompts, seeds, max_batch)
        coalescer = Coalescer(self.worker, max_batch=max_batch)
        runs = {
            i: self._start(coalescer, prompt, budget, seed, sampling, strategy, tools, formatted)
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        }
        started = time.perf_counter()
        # A run leaves the table when its turn comes, so that the tensors it needs are freed when it ends.
        results = coalescer.run([lambda i=i: runs.pop(i).drain() for i in list(runs)])
        seconds, flops = time.perf_counter() - started, sum(r.usage.flops for r in results)
        return [
            r.with_usage(replace(r.usage, seconds=seconds * (r.usage.flops / flops if flops else 1 / len(results))))
            for r in results
        ]

    def alternatives(
        self, prompt: Prompt, result: Result, *, top: int, worker: Worker | None = None
    ) -> tuple[list[list[tuple[int, float]]], Usage]:
        """At each place of the result the `top` likeliest tokens with log π in nats, and the cost: one forward pass."""
        if not (top and result.token_ids):
            return [], Usage()
        rollout = Rollout(prompt, result.token_ids, result.text)
        worker = worker or self.worker
        [states] = worker.states([rollout], [0], [None])

        def likeliest() -> list[list[tuple[int, float]]]:
            rows = states.carrier.logits(range(len(result.token_ids))).float().log_softmax(-1)
            values, tokens = rows.topk(min(top, rows.shape[-1]))
            pairs = zip(tokens.tolist(), values.tolist(), strict=True)
            return [list(zip(ids, found, strict=True)) for ids, found in pairs]

        return worker.compute(likeliest), states.usage

    def prompt(
        self, prompt: PromptLike, *, tools: Sequence[dict[str, Any]] | None = None, formatted: bool = False
    ) -> Prompt:
        """The prompt as the language model reads it; messages may be mappings with `role` and `content`."""
        if isinstance(prompt, Prompt):
            if tools or formatted:
                raise PromptError("A Prompt is rendered already: give tools and formatted to Engine.prompt instead.")
            return self._fitting(prompt)
        if not isinstance(prompt, str):
            if isinstance(prompt, Message | Mapping | bytes) or not isinstance(prompt, Sequence):
                raise PromptError(f"The prompt is {prompt!r}; expected a string or a list of messages.")
            prompt = [m if isinstance(m, Message) else _message(m) for m in prompt]
        return self.model.prompt(prompt, tools=tools, formatted=formatted)

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

    def _draft(self, draft: Any, prompt: Prompt, sampling: Sampling) -> tuple[int, ...]:
        """Token ids of an answer from elsewhere, ended; read whole, so it must fit into the context and the grammar."""
        if not isinstance(draft, str):
            raise PromptError(f"draft is {draft!r}; expected the text of an answer.")
        eos = self.model.tokenizer.eos_id
        ids = (*self.model.tokenizer.encode(draft), *(() if eos is None else (eos,)))
        if len(prompt.ids) + len(ids) > self.model.context_length:
            raise ContextOverflowError(
                f"The prompt has {len(prompt.ids)} tokens and the draft {len(ids)}, but the context of "
                f"{self.model.name} is {self.model.context_length} tokens. Shorten the draft."
            )
        if sampling.grammar is not None and self.model.constraint(sampling.grammar).take(ids) < len(ids):
            raise ConfigurationError("The draft does not keep to the request's grammar; leave one of the two out.")
        return ids

    def _start(
        self,
        worker: Worker,
        prompt: PromptLike,
        budget: Budget | None,
        seed: int,
        sampling: Sampling | None,
        strategy: Strategy | None,
        tools: Sequence[dict[str, Any]] | None,
        formatted: bool,
        draft: str | None = None,
    ) -> Run:
        strategy = self.strategy_of(strategy)
        sampling = Sampling() if sampling is None else _sampling(sampling)
        if sampling.grammar is not None:
            self.model.constraint(sampling.grammar)
        rendered = replace(self.prompt(prompt, tools=tools, formatted=formatted))  # its own: models keep what they read
        search = Search(
            objective=self.objective,
            worker=worker,
            prompt=rendered,
            sampling=sampling,
            budget=self.budget if budget is None else _budget(budget),
            seed=_seed(seed),
            rule=strategy.rule,
            draft=() if draft is None else self._draft(draft, rendered, sampling),
        )
        return Run(search, strategy)


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
        _strategy(strategy)
    if budget is not None:
        _budget(budget)
    check_parts(reward, likelihood_weight)
    if not isinstance(model, LanguageModel | str | Path):
        raise ConfigurationError(f"model is {model!r}; expected a hub id, a folder, 'tiny' or a LanguageModel.")
    if not isinstance(model, LanguageModel):
        Loading(**loading)
    elif loading:
        raise ConfigurationError(f"{', '.join(loading)}: loading options need a model name, got a loaded model.")
    if rollouts is not None and (isinstance(rollouts, type) or not callable(getattr(rollouts, "rollout", None))):
        raise ConfigurationError(f"rollouts is {rollouts!r}; expected an object with rollout(jobs).")


def _message(given: Any) -> Message:
    if not isinstance(given, Mapping) or "role" not in given:
        raise PromptError(f"A message is {given!r}; expected Message(role, content) or a mapping with both.")
    extra = {k: v for k, v in given.items() if k not in ("role", "content")}
    content = given.get("content")
    return Message(given["role"], "" if content is None else content, extra)  # tool calls have no content


def _strategy(strategy: Any) -> Strategy:
    if isinstance(strategy, type) or not all(hasattr(strategy, name) for name in ("steps", "select", "rule")):
        raise ConfigurationError(
            f"strategy is {strategy!r}; expected a strategy object such as Nabla() or BestOfN(n=8)."
        )
    return strategy


def _budget(budget: Any) -> Budget:
    if not isinstance(budget, Budget):
        raise ConfigurationError(f"budget is {budget!r}; expected for example Budget(rollouts=8).")
    return budget


def _sampling(sampling: Any) -> Sampling:
    if not isinstance(sampling, Sampling):
        raise ConfigurationError(f"sampling is {sampling!r}; expected for example Sampling(temperature=0.7).")
    return sampling


def _seed(seed: Any) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(1 << 63) <= seed < 1 << 64:
        raise ConfigurationError(f"seed is {seed!r}; expected a 64-bit integer.")
    return seed


def _seeds(prompts: Any, seeds: Any, max_batch: Any) -> Sequence[int]:
    """One seed per prompt of a batch."""
    if not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 1:
        raise ConfigurationError(f"max_batch is {max_batch!r}; expected a whole number of at least 1.")
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise ConfigurationError(f"generate_batch got {prompts!r}; expected a list of prompts.")
    seeds = range(len(prompts)) if seeds is None else seeds
    if not isinstance(seeds, Sequence):
        raise ConfigurationError(f"seeds is {seeds!r}; expected a list of integers.")
    if len(seeds) != len(prompts):
        raise ConfigurationError(f"Got {len(seeds)} seeds for {len(prompts)} prompts; expected one each.")
    return seeds
