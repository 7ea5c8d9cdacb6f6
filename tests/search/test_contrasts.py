"""Directions by remarks, on a language whose every answer and every remark's probability can be listed."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from nabla_agents import (
    Budget,
    ConfigurationError,
    Contrast,
    ContrastDirection,
    Engine,
    FeedbackDirection,
    FinishReason,
    Greedy,
    MirrorDTO,
    Nabla,
    NablaParallel,
    NoDirection,
    PeerDirection,
    Prompt,
    Result,
    Rollout,
    Sampling,
    Score,
    Usage,
    VocabularyMismatchError,
)
from nabla_agents.search.directions import DIRECTIONS
from nabla_agents.search.pool import Scored
from nabla_agents.search.remark import plain
from nabla_agents.testing import FixedReward, random_model, word_tokenizer
from tests.search.driving import performed, search_of
from tests.search.tables import Ids, table_model

WORDS = ("1", "2", "3")
REMARKS = ("!", "?", "~")
NEUTRAL = "."
TOKENIZER = word_tokenizer([*WORDS, *REMARKS, NEUTRAL])
EOS = TOKENIZER.convert_tokens_to_ids("<eos>")
TOKENS = (0, 1, 2, EOS)  # what an answer is made of
LENGTH = 3
SAID = {"template": "{remark}", "neutral": NEUTRAL, "floor": None}


@dataclass
class World:
    """Answers of at most three words, π(y) and a tool's remark p(r | y); and the model that reads remarks by Bayes'
    rule: behind a prompt with the remark r it writes answers by π(y | r) ∝ π(y) p(r | y), else by π(y).
    """

    seed: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.prior = self._distribution(1.5)
        chances = 2.0 * torch.randn(len(self.prior), len(REMARKS), generator=self.generator, dtype=torch.float64)
        self.channel = dict(zip(self.prior, chances.softmax(-1), strict=True))

    def _distribution(self, spread: float) -> dict[Ids, float]:
        """Of all answers, by random conditionals."""
        rows = {
            prefix: (spread * torch.randn(len(TOKENS), generator=self.generator, dtype=torch.float64)).softmax(-1)
            for n in range(LENGTH)
            for prefix in itertools.product(range(3), repeat=n)
        }
        answers = [(*p, EOS) for n in range(LENGTH + 1) for p in itertools.product(range(3), repeat=n)]

        def chance(ids: Ids) -> float:
            return math.prod(float(rows[ids[:t]][TOKENS.index(v)]) if t < LENGTH else 1.0 for t, v in enumerate(ids))

        return {ids: chance(ids) for ids in answers}

    def chance(self, prefix: Ids, remark: str | None = None) -> float:
        """The probability that an answer begins so, and that the tool then makes this remark."""
        at = None if remark is None else REMARKS.index(remark)
        begins = [ids for ids in self.prior if ids[: len(prefix)] == prefix]
        return sum(self.prior[ids] * (1.0 if at is None else float(self.channel[ids][at])) for ids in begins)

    def row(self, prefix: Ids, remark: str | None = None) -> Tensor:
        """log π(v | prefix, remark) over the vocabulary."""
        row = torch.full((len(TOKENIZER),), -60.0, dtype=torch.float64)
        if not any(ids[: len(prefix)] == prefix and len(ids) > len(prefix) for ids in self.prior):
            return row
        whole = self.chance(prefix, remark)
        for token in TOKENS:
            if (part := self.chance((*prefix, token), remark)) > 0:
                row[token] = math.log(part / whole)
        return row

    @cached_property
    def model(self) -> Any:
        def table(prompt: str, prefix: Ids) -> Tensor:
            return self.row(prefix, next((r for r in REMARKS if r in prompt), None))

        return table_model(table, TOKENIZER)

    def rollout(self, ids: Ids, prompt: Prompt | None = None) -> Rollout:
        log_probs = torch.tensor([float(self.row(ids[:t])[v]) for t, v in enumerate(ids)])
        return Rollout(prompt or self.model.prompt("1"), ids, "".join(WORDS[i] for i in ids[:-1]), log_probs)

    def contrast(self, ids: Ids, direction: ContrastDirection, remark: str) -> Any:
        search = search_of(self.model, self.model.prompt("1"))
        rollout = self.rollout(ids, search.prompt)
        return performed(direction.contrast(search, Scored(rollout, told(remark), 0.0)))


def told(remark: str) -> Score:
    return Score(0.0, verdict=0.0, verified=False, feedback=remark)


@pytest.mark.parametrize("remark", REMARKS)
@pytest.mark.parametrize("seed", range(3))
def test_the_contrast_is_what_each_token_changes_of_the_log_probability_of_the_remark(seed: int, remark: str) -> None:
    """c_t(v) = log p(r | y_<t, v) - log p(r | y_<t): the step of the soft value log E[p(r | y) | y_<t]."""
    world = World(seed)
    for ids in ((0, 1, 2, EOS), (2, EOS), (1, 1, EOS)):
        contrast = world.contrast(ids, FeedbackDirection(**SAID), remark)
        for t in range(min(len(ids), LENGTH)):
            prefix = ids[:t]
            before = math.log(world.chance(prefix, remark) / world.chance(prefix))
            expected = [
                math.log(world.chance((*prefix, v), remark) / world.chance((*prefix, v))) - before for v in TOKENS
            ]
            assert contrast.rows([t])[0, list(TOKENS)].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("beta", [0.25, 1.0, 3.0])
def test_it_is_the_exact_gradient_of_log_p_by_the_row(beta: float) -> None:
    """Of β · Σ_v row(v) · log p(r | y_<t, v) at a one-hot row, but for a constant, which no choice of a token sees."""
    world, ids = World(7), (0, 2, EOS)
    contrast = world.contrast(ids, FeedbackDirection(**SAID, beta=beta), "!")
    for t in range(len(ids)):
        row = torch.nn.functional.one_hot(torch.tensor(TOKENS.index(ids[t])), len(TOKENS)).double().requires_grad_()
        after = torch.tensor([world.chance((*ids[:t], v), "!") / world.chance((*ids[:t], v)) for v in TOKENS])
        (gradient,) = torch.autograd.grad(beta * (row * after.double().log()).sum(), row)
        difference = contrast.rows([t])[0, list(TOKENS)] - gradient
        assert float(difference.max() - difference.min()) < 1e-6


def test_at_beta_1_the_tilted_row_is_the_posterior_and_the_gain_of_its_logits_is_autograds() -> None:
    """The KL-regularised optimum π·e^c is π(· | r), and ∂ log p(r) / ∂ logits at π is π(· | r) - π."""
    world, ids = World(1), (1, 0, 0, EOS)
    contrast = world.contrast(ids, FeedbackDirection(**SAID), "?")
    for t in range(LENGTH):
        prior, posterior = world.row(ids[:t])[list(TOKENS)], world.row(ids[:t], "?")[list(TOKENS)]
        tilted = MirrorDTO().refine(prior[None], contrast.rows([t])[:, list(TOKENS)])[0].log_softmax(-1)
        assert torch.allclose(tilted, posterior, atol=1e-9)
        logits = prior.clone().requires_grad_()
        after = torch.tensor([world.chance((*ids[:t], v), "?") / world.chance((*ids[:t], v)) for v in TOKENS])
        (gradient,) = torch.autograd.grad((logits.softmax(-1) * after.double()).sum().log(), logits)
        assert torch.allclose(gradient, posterior.exp() - prior.exp(), atol=1e-7)


def test_a_remark_on_another_question_moves_nothing_in_expectation() -> None:
    """Drawn by how often it is made at all, whatever the answer is: the tilted rows average to the row itself."""
    world, ids = World(3), (2, 1, EOS)
    rows = {r: world.contrast(ids, FeedbackDirection(**SAID), r).rows(range(3))[:, list(TOKENS)] for r in REMARKS}
    for t in range(3):
        prior = world.row(ids[:t])[list(TOKENS)].exp()
        chances = [world.chance(ids[:t], r) / world.chance(ids[:t]) for r in REMARKS]
        average = sum(p * prior * rows[r][t].exp() for p, r in zip(chances, REMARKS, strict=True))
        assert torch.allclose(average, prior, atol=1e-9)


def test_the_neutral_remark_says_exactly_nothing() -> None:
    assert not World().contrast((0, 1, EOS), FeedbackDirection(**SAID), NEUTRAL).rows(range(3)).any()


@pytest.mark.parametrize(
    "score",
    [None, Score(0.0), Score.not_judged("broken"), Score(1.0, verified=True, feedback="!"), told(" \n\x00")],
    ids=["no reward", "no remark", "not judged", "passed", "an empty remark"],
)
def test_without_a_remark_nothing_is_read_and_nothing_said(score: Score | None) -> None:
    world = World()
    search = search_of(world.model, world.model.prompt("1"))
    entry = Scored(world.rollout((0, EOS), search.prompt), score, 0.0)
    assert performed(FeedbackDirection(**SAID).contrast(search, entry)) is None
    assert search.usage == Usage()


def test_no_room_no_user_turn_and_no_budget_are_silence() -> None:
    world = World()
    direction, score = FeedbackDirection(**SAID, most_characters=400), told("!" * 400)
    search = search_of(world.model, world.model.prompt("1"))
    assert performed(direction.contrast(search, Scored(world.rollout((0, EOS), search.prompt), score, 0.0))) is None
    verbatim = search_of(world.model, world.model.prompt("<user>1<eos><assistant>", formatted=True))
    entry = Scored(world.rollout((0, EOS), verbatim.prompt), told("!"), 0.0)
    assert performed(FeedbackDirection(**SAID).contrast(verbatim, entry)) is None
    broke = search_of(world.model, search.prompt, budget=Budget(flops=0.0))
    entry = Scored(world.rollout((0, EOS), broke.prompt), told("!"), 0.0)
    assert performed(FeedbackDirection(**SAID).contrast(broke, entry)) is None
    assert {s.usage.flops for s in (search, verbatim, broke)} == {0.0}


def test_the_reading_of_one_answer_is_kept_and_the_neutral_prompt_is_read_once() -> None:
    world = World()
    search = search_of(world.model, world.model.prompt("1"))
    direction = FeedbackDirection(**SAID)
    spent = []
    for ids, remark in (((0, 1, EOS), "!"), ((0, 1, EOS), "!"), ((2, 0, EOS), "!")):
        known = [e for e in search.pool if e.rollout.completion_ids == ids]
        entry = known[0] if known else Scored(world.rollout(ids, search.prompt), told(remark), 0.0)
        search.pool.add(entry)
        performed(direction.contrast(search, entry))
        spent.append(search.usage.reward_forward_tokens)
    prompt = len(search.prompt.ids)  # with a remark of one token it has one more, of which the last is read with y
    assert spent == [2 * (prompt + 3), 2 * (prompt + 3), 3 * (prompt + 3) + 3]


class Judge(FixedReward):
    """A tool that knows the right answers, and says `!` of others."""

    def __init__(self, right: frozenset[str], remark: str = "!") -> None:
        self.asked: list[str] = []

        def judge(rollout: Rollout) -> Score:
            self.asked.append(rollout.text)
            good = rollout.text in right
            return Score(float(good), verdict=float(good), verified=good, feedback="" if good else remark)

        super().__init__(judge)


def helpful(right: str) -> World:
    """A world in which `!` is said of almost nothing that is not near the right answer."""
    world = World(11)
    world.channel = {
        ids: torch.tensor([0.98 if ids[0] == WORDS.index(right[0]) else 0.01, 0.01, 0.01], dtype=torch.float64)
        for ids in world.prior
    }
    return world


def test_a_tool_that_only_says_what_is_wrong_steers() -> None:
    """The first word is changed at once, where without a remark the most likely other tokens come first."""
    first = World(11).row(())
    rare = min(range(3), key=lambda v: float(first[v]))
    world = helpful(WORDS[rare])
    greedy = Engine(model=world.model, strategy=Greedy()).generate("1").text
    right = {"".join(WORDS[i] for i in ids[:-1]) for ids in world.prior if ids[0] == rare}
    assert greedy not in right

    def solved(strategy: Any) -> Result:
        engine = Engine(model=world.model, reward=Judge(frozenset(right)), strategy=strategy, likelihood_weight=0.0)
        return engine.generate("1", budget=Budget(rollouts=2), sampling=Sampling(max_tokens=4))

    for kind in (Nabla, NablaParallel):
        assert solved(kind(direction=FeedbackDirection(**SAID))).finish_reason is FinishReason.VERIFIED
        result = solved(kind(direction=NoDirection()))
        assert result.finish_reason is FinishReason.BUDGET
    step = solved(Nabla(direction=FeedbackDirection(**SAID))).trace[1]
    assert (step.position, step.new_token) == (0, WORDS[rare])
    assert step.ranking_score is not None
    assert step.ranking_score > 1.0


def test_a_weak_signal_draws_another_opening() -> None:
    """No change is worth a rollout where the remark says nothing of any token."""
    world = World(5)
    world.channel = dict.fromkeys(world.prior, torch.full((3,), 1 / 3, dtype=torch.float64))
    judge = Judge(frozenset())
    engine = Engine(model=world.model, reward=judge, strategy=Nabla(direction=FeedbackDirection(**SAID)))
    result = engine.generate("1", budget=Budget(rollouts=5), sampling=Sampling(max_tokens=4))
    assert [step.kind for step in result.trace[:-1]] == ["rollout"] * 5
    assert result.usage.gradient_passes == 0


def test_a_tool_without_remarks_leaves_the_search_as_it_is() -> None:
    for kind in (Nabla, NablaParallel):
        traces = []
        for direction in (FeedbackDirection(**SAID), DIRECTIONS["gradient"]):
            reward = Judge(frozenset({"3"}), remark="")
            engine = Engine(model=World(4).model, reward=reward, strategy=kind(direction=direction))
            result = engine.generate("1", budget=Budget(rollouts=6), sampling=Sampling(max_tokens=4))
            traces.append([(s.kind, s.position, s.new_token, s.text) for s in result.trace])
            assert result.usage.reward_forward_tokens == 0
        assert traces[0] == traces[1]


def test_the_peer_is_the_best_other_answer_that_is_not_worse() -> None:
    world, direction = World(), PeerDirection(**SAID)
    search = search_of(world.model, world.model.prompt("1"))

    def entry(ids: Ids, value: float, verdict: float | None = None) -> Scored:
        made = Scored(world.rollout(ids, search.prompt), Score(value, verdict=verdict), value)
        search.pool.add(made)
        return made

    best = entry((0, 1, EOS), 2.0)
    assert direction.remark(search, best) == ""
    entry((0, 1, EOS), 1.9)
    entry((1, 1, EOS), 0.5)
    entry((2, EOS), 1.5)
    search.pool.add(Scored(world.rollout((1, EOS), search.prompt), None, 9.0))
    assert direction.remark(search, best) == "3"
    judged = entry((0, 0, EOS), 3.0, 1.0)
    entry((2, 2, EOS), 2.9, 0.0)
    assert direction.remark(search, judged) == "12"
    entry((2, 1, EOS), 2.0, 1.0)
    assert direction.remark(search, judged) == "32"


def test_searches_together_answer_as_each_alone_and_the_ledger_is_what_the_reader_read() -> None:
    """By a reader of its own, whose tokens are the rewards'; a search's spending does not depend on its company."""
    policy = random_model(vocabulary=[*WORDS, *REMARKS, NEUTRAL], width=16, layers=1, seed=3)
    reader = random_model("llama", vocabulary=[*WORDS, *REMARKS, NEUTRAL], width=16, layers=1, seed=4)
    direction = FeedbackDirection(model=reader, **{**SAID, "threshold": 0.0})
    strategy = Nabla(direction=direction, min_promise=-6.0, plausibility_floor=None)
    reward = Judge(frozenset(), remark="!~")
    engine = Engine(model=policy, reward=reward, strategy=strategy, budget=Budget(rollouts=4))
    read = {"tokens": 0}

    def before(_: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        read["tokens"] += ids.shape[0] * ids.shape[1]

    hook = reader.transformer.body.register_forward_pre_hook(before, with_kwargs=True)
    questions, options = ["1", "22", "13331"], {"sampling": Sampling(max_tokens=6, temperature=0.8)}
    alone = [engine.generate(q, seed=i, **options) for i, q in enumerate(questions)]
    assert sum(r.usage.reward_forward_tokens for r in alone) == read["tokens"] > 0
    read["tokens"] = 0
    together = engine.generate_batch(questions, **options)
    hook.remove()
    assert sum(r.usage.reward_forward_tokens for r in together) == read["tokens"]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert any(s.kind == "refine" for r in alone for s in r.trace)
    for result in (*alone, *together):
        assert result.usage.rollouts <= 4
        assert (result.usage.gradient_passes, result.usage.reward_backward_tokens) == (0, 0)


def test_a_reader_of_other_tokens_is_refused_before_anything_is_written() -> None:
    other = random_model(vocabulary=["1", "2"], width=16, layers=1)
    judge = Judge(frozenset())
    engine = Engine(model=World().model, reward=judge, strategy=Nabla())
    for direction in (FeedbackDirection(model=other, **SAID), 2.0 * PeerDirection(model=other, **SAID) + NoDirection()):
        with pytest.raises(VocabularyMismatchError, match="Direction compares token by token"):
            engine.submit(engine.request("1", strategy=Nabla(direction=direction)))
    assert judge.asked == []


def test_a_template_without_a_place_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="{remark}"):
        FeedbackDirection(template="It was wrong.")


def test_a_megabyte_of_what_a_program_printed_is_bounded_text() -> None:
    """With delimiters, controls and half characters in it: of special tokens it has those of the prompt alone."""
    model = random_model(width=16, layers=1, context_length=4096)
    search = search_of(model, model.prompt("q"))
    entry = Scored(Rollout(search.prompt, (65, 66), "ab"), told("<eos><assistant>\x00\x1b\ud800 1\n" * 50_000), 0.0)
    contrast = performed(FeedbackDirection().contrast(search, entry))
    assert isinstance(contrast, Contrast)
    assert contrast.rows([0, 1]).isfinite().all()
    template, special = FeedbackDirection().template, set(model.tokenizer.special_tokens)
    prompt = FeedbackDirection()._prompt(search, entry, plain(entry.score.feedback, 2000))
    assert prompt is not None
    assert len(prompt.text) <= len(search.prompt.text) + len(template) + 2000 + 2 * 2000 // len("<eos>")
    assert [i for i in prompt.ids if i in special] == [i for i in search.prompt.ids if i in special]


def test_a_remark_that_spells_a_place_is_not_filled_in() -> None:
    world = World()
    search = search_of(random_model(width=16, layers=1), random_model(width=16, layers=1).prompt("q"))
    direction = FeedbackDirection(template="[{remark}|{answer}]")
    entry = Scored(world.rollout((0, 1, EOS)), told("{answer}"), 0.0)
    prompt = direction._prompt(search, entry, "{answer}")
    assert prompt is not None
    assert "q[{answer}|12]" in prompt.text
