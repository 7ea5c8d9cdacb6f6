"""Rollouts on a server: greedy ones are those of the local model, others are so in distribution; the ledger."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from nabla_agents import (
    SGLANG,
    BestOfN,
    Budget,
    Engine,
    FinishReason,
    Grammar,
    Greedy,
    LanguageModel,
    Nabla,
    Sampling,
    ServerFormat,
    ServerRollouts,
)
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import FixedReward, random_model

from .completions_server import CompletionsServer, seeded

Connect = Callable[..., ServerRollouts]


def job(
    model: LanguageModel, prefix: str = "", *, prompt: str = "ab", n: int = 8, seed: int = 0, **sampling: Any
) -> RolloutJob:
    rendered = model.prompt(prompt)
    model.read_prompts([rendered])
    ids = tuple(model.tokenizer.encode(prefix))
    return RolloutJob(rendered, ids, Sampling(**sampling), n, torch.rand(n, generator=seeded(seed)))


RAGGED = (("ab", "", 10), ("abcdefgh", "cdab", 14), ("i", "efg", 4), ("hhii", "", 1), ("cd", "aaab", 12))


def test_greedy_rollouts_are_those_of_the_local_model(connect: Connect, model: LanguageModel) -> None:
    jobs = [job(model, prefix, prompt=prompt, n=n, temperature=0) for prompt, prefix, n in RAGGED]
    for here, there in zip(model.rollout(jobs), connect().rollout(jobs), strict=True):
        assert there.completion_ids == here.completion_ids
        assert (there.text, there.finish_reason) == (here.text, here.finish_reason)
        assert there.log_probs is not None
        assert here.log_probs is not None
        assert torch.allclose(there.log_probs, here.log_probs, atol=1e-4)
        assert there.usage.generated_tokens == here.usage.generated_tokens
        assert (there.usage.rollouts, there.prompt) == (1, here.prompt)


@pytest.mark.parametrize("strategy", [Greedy(), Nabla()], ids=lambda s: type(s).__name__)
def test_a_greedy_search_finds_on_a_server_what_it_finds_here(
    connect: Connect, model: LanguageModel, strategy: Any
) -> None:
    reward = FixedReward(lambda r: float(r.text.count("i")))
    sampling = Sampling(temperature=0.0, max_tokens=12)
    options: dict[str, Any] = {"strategy": strategy, "budget": Budget(rollouts=5)}
    here = Engine(model=model, reward=reward, **options).generate("ab", sampling=sampling)
    there = Engine(model=model, reward=reward, rollouts=connect(), **options).generate("ab", sampling=sampling)
    assert there.token_ids == here.token_ids
    assert there.log_likelihood == pytest.approx(here.log_likelihood, abs=1e-3)
    assert there.usage.rollouts == here.usage.rollouts
    assert there.usage.gradient_passes == here.usage.gradient_passes
    assert [s.accepted for s in there.trace] == [s.accepted for s in here.trace]


def test_sampled_pairs_have_the_distribution_of_local_ones(connect: Connect, server: CompletionsServer) -> None:
    """Chi-square of 600 pairs of tokens, 40 in a request, against the exact distribution; one false alarm in 10 000."""
    model, n = server.model, 600
    first = job(model, n=2, temperature=1.3, top_k=6)
    jobs = [replace(first, uniforms=torch.rand(2, generator=seeded(i))) for i in range(n)]
    rollouts = connect(format=ServerFormat(body=BODY, choices=40)).rollout(jobs)
    assert [body["n"] for body in server.requests] == [40] * 15
    counts, expected = Counter(r.completion_ids for r in rollouts), exact(model, 1.3, 6)
    assert set(counts) <= set(expected)
    rare = {pair for pair, p in expected.items() if n * p < 5}
    cells = [(counts[pair], n * p) for pair, p in expected.items() if pair not in rare]
    if rare:
        cells.append((sum(counts[p] for p in rare), n * sum(expected[p] for p in rare)))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    tail = torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2.0), torch.tensor(statistic / 2))
    assert len(cells) > 9
    assert tail > 1e-4


BODY = {"return_token_ids": True, "logprobs": 0}


def exact(model: LanguageModel, temperature: float, top_k: int) -> dict[tuple[int, ...], float]:
    """Probability of every pair by full forward passes; the end has no second token."""

    @torch.no_grad()
    def row(*before: int) -> list[float]:
        ids = torch.tensor([[*model.prompt("ab").ids, *before]])
        logits = model.transformer.module(input_ids=ids, use_cache=False).logits[0, -1] / temperature
        kept = torch.where(logits >= logits.topk(top_k).values[-1], logits, -torch.inf)
        return kept.double().softmax(-1).tolist()

    pairs: dict[tuple[int, ...], float] = {}
    for first, p in enumerate(row()):
        if first in model.eos_ids:
            pairs[(first,)] = p
        elif p:
            pairs |= {(first, second): p * q for second, q in enumerate(row(first)) if q}
    return {pair: p for pair, p in pairs.items() if p}


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(connect: Connect, model: LanguageModel) -> None:
    engine = Engine(model=model, rollouts=connect(), strategy=BestOfN(n=1))
    sampling = Sampling(max_tokens=20, temperature=1.0)
    texts = [engine.generate("ab", seed=s, sampling=sampling).token_ids for s in (1, 1, 2, 3, 4, 5)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


# ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_jobs_that_go_on_from_the_same_tokens_are_one_request_in_the_order_of_their_tokens(
    connect: Connect, server: CompletionsServer, model: LanguageModel
) -> None:
    prefixes = ("cd", "ab", "", "cd", "ab", "ab", "cdi")
    jobs = [job(model, prefix, seed=i, temperature=1.0) for i, prefix in enumerate(prefixes)]
    rollouts = connect(concurrency=1).rollout(jobs)
    for each, rollout in zip(jobs, rollouts, strict=True):
        assert rollout.completion_ids[: len(each.prefix_ids)] == each.prefix_ids
    prompts = [tuple(body["prompt"]) for body in server.requests]
    assert prompts == sorted(prompts)
    assert sorted(body["n"] for body in server.requests) == [1, 1, 2, 3]
    assert all(body["max_tokens"] == 8 - (len(body["prompt"]) - len(jobs[2].prompt.ids)) for body in server.requests)
    assert len({body["seed"] for body in server.requests}) == 4


def test_what_a_request_says_is_the_whole_sampling(connect: Connect, server: CompletionsServer) -> None:
    """A server's own defaults are often those of a generation config: nothing is left to them."""
    model = server.model
    connect().rollout([job(model, temperature=0.5, top_p=0.9, min_p=0.1, stop=("cd",)), job(model)])
    own, plain = sorted(server.requests, key=lambda body: body["temperature"])
    assert [own[name] for name in ("temperature", "top_p", "top_k", "min_p", "stop")] == [0.5, 0.9, -1, 0.1, ["cd"]]
    assert [plain[name] for name in ("temperature", "top_p", "top_k", "min_p", "stop")] == [1.0, 1.0, -1, 0.0, []]
    for body in (own, plain):
        assert body["stop_token_ids"] == sorted(model.eos_ids)
        assert (body["repetition_penalty"], body["presence_penalty"], body["frequency_penalty"]) == (1.0, 0.0, 0.0)


def test_greedy_jobs_share_one_choice_which_the_ledger_counts_once(
    connect: Connect, server: CompletionsServer, model: LanguageModel
) -> None:
    rollouts = connect().rollout([job(model, seed=i, temperature=0) for i in range(3)])
    assert [body["n"] for body in server.requests] == [1]
    assert len({r.completion_ids for r in rollouts}) == 1
    assert [r.usage.rollouts for r in rollouts] == [1, 1, 1]
    assert [r.usage.generated_tokens for r in rollouts] == [len(rollouts[0].completion_ids), 0, 0]


def test_a_server_whose_choices_of_one_seed_are_alike_is_asked_for_one_at_a_time(
    connect: Connect, server: CompletionsServer, model: LanguageModel
) -> None:
    connect(format=SGLANG).rollout([job(model, seed=i, temperature=1.0) for i in range(3)])
    drawn = [body for body in server.seen if body["seed"]]
    assert [body["n"] for body in drawn] == [1, 1, 1]
    assert len({body["seed"] for body in drawn}) == 3


def test_what_is_complete_already_and_what_has_a_grammar_is_not_asked_for(
    connect: Connect, server: CompletionsServer
) -> None:
    model = random_model(context_length=64)
    rollouts = connect(model)
    whole = job(model, "cdab", n=4)
    ended = replace(whole, prefix_ids=(*whole.prefix_ids[:2], model.tokenizer.eos_id), max_tokens=9)
    stopped = job(model, "cda", n=9, stop=("da",))
    jobs = [whole, ended, stopped, job(model, grammar=Grammar.regex("(ab)+"), n=6)]
    for here, there in zip(model.rollout(jobs), rollouts.rollout(jobs), strict=True):
        assert (there.completion_ids, there.text) == (here.completion_ids, here.text)
        assert there.finish_reason is here.finish_reason
        assert there.log_probs is not None
        assert here.log_probs is not None
        assert torch.allclose(there.log_probs, here.log_probs, atol=1e-4)
    assert server.seen == []


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_string_that_begins_in_the_prefix_ends_the_completion_as_it_does_here(
    connect: Connect, model: LanguageModel
) -> None:
    """The server sees only what it wrote, so it goes on; what is too much is cut, and counted as generated."""
    plain = job(model, "cd", n=12, temperature=0)
    [whole] = model.rollout([plain])
    stop = whole.text[1:3]
    stopping = replace(plain, sampling=Sampling(temperature=0, stop=(stop,)))
    [here], [there] = model.rollout([stopping]), connect().rollout([stopping])
    assert (there.completion_ids, there.text) == (here.completion_ids, here.text) != (whole.completion_ids, whole.text)
    assert there.log_probs is not None
    assert len(there.log_probs) == len(there.completion_ids)
    assert there.usage.generated_tokens >= here.usage.generated_tokens


def test_a_servers_shorter_context_ends_a_completion_by_length(connect: Connect, server: CompletionsServer) -> None:
    server.max_model_len = len(server.model.prompt("ab").ids) + 1
    [rollout] = connect().rollout([job(server.model, n=9, temperature=0)])
    assert (len(rollout.completion_ids), rollout.finish_reason) == (1, FinishReason.LENGTH)


# ── log-probabilities and the ledger ──────────────────────────────────────────────────────────────────────────────


def test_log_probs_of_a_prefix_are_those_known_and_the_rest_of_it_is_read_here(
    connect: Connect, model: LanguageModel
) -> None:
    """So that rollouts that share a beginning are compared by the same numbers for it."""
    known = torch.tensor([-0.25, -0.5], dtype=torch.float64)
    longer = job(model, "cdab", n=6, temperature=0)
    [here], [there] = model.rollout([longer]), connect().rollout([replace(longer, known=known)])
    assert here.log_probs is not None
    assert there.log_probs is not None
    assert there.log_probs[:2].tolist() == [-0.25, -0.5]
    assert torch.allclose(there.log_probs[2:], here.log_probs[2:], atol=1e-4)


def test_a_search_knows_the_log_probs_of_what_it_goes_on_from(model: LanguageModel) -> None:
    seen: list[RolloutJob] = []

    class Watched:
        def rollout(self, jobs: Any) -> Any:
            seen.extend(jobs)
            return model.rollout(jobs)

    reward = FixedReward(lambda r: float(r.text.count("i")))
    engine = Engine(model=model, reward=reward, rollouts=Watched(), budget=Budget(rollouts=4))
    engine.generate("ab", sampling=Sampling(max_tokens=12))
    first, *later = seen
    assert first.known is None
    assert later
    for later_job in later:
        known = () if later_job.known is None else later_job.known
        assert len(later_job.prefix_ids) - 1 <= len(known) <= len(later_job.prefix_ids)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_scaled_log_probs_are_not_taken_for_those_of_the_model(
    connect: Connect, server: CompletionsServer, temperature: float
) -> None:
    server.scaled, model = True, server.model
    [rollout] = connect(format=SGLANG).rollout([job(model, "cd", seed=3, temperature=temperature)])
    [(expected, _)] = model.token_log_probs([rollout])
    assert rollout.log_probs is not None
    assert torch.allclose(rollout.log_probs, expected, atol=1e-4)


def test_the_ledger_has_what_the_server_and_the_local_model_computed(
    connect: Connect, server: CompletionsServer, model: LanguageModel
) -> None:
    """Server: the prompt and the prefix once for a request, and every new token but the last. Here: a prefix whose
    log-probabilities are not known, after the prompt's cache. The greeting counts once, as FLOPs and tokens read.
    """
    rollouts = connect()
    jobs = [job(model, "cd", seed=i, temperature=1.0, n=6) for i in range(2)]
    rollouts.rollout(jobs[:1])
    first, second = (r.usage for r in rollouts.rollout(jobs))
    context = len(jobs[0].prompt.ids) + 1
    for usage, read in ((first, context), (second, 0)):
        assert usage.lm_forward_tokens == read + usage.generated_tokens - 1 + 1
        assert usage.lm_backward_tokens == 0
        rows = usage.generated_tokens + 1
        assert usage.flops == model.usage(forward=usage.lm_forward_tokens, rows=rows).flops


def test_a_budget_holds_on_a_server(connect: Connect, model: LanguageModel) -> None:
    engine = Engine(model=model, rollouts=connect(), strategy=BestOfN(n=8))
    result = engine.generate("ab", budget=Budget(rollouts=3, generated_tokens=10), sampling=Sampling(max_tokens=9))
    assert result.usage.rollouts <= 3
    assert result.usage.generated_tokens <= 10


def test_a_batch_of_searches_on_a_server_is_the_searches_one_by_one(connect: Connect, model: LanguageModel) -> None:
    engine = Engine(model=model, strategy=Nabla(), rollouts=connect(), budget=Budget(rollouts=3))
    sampling = Sampling(temperature=0.0, max_tokens=10)
    prompts = ["ab", "cd", "ab"]
    together = engine.generate_batch(prompts, sampling=sampling)
    alone = [engine.generate(p, seed=i, sampling=sampling) for i, p in enumerate(prompts)]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]


def test_a_large_vocabulary_is_no_trouble(server: CompletionsServer, connect: Connect) -> None:
    """Text of bytes: half characters and all."""
    model = random_model(context_length=64)
    server.model = model
    jobs = [job(model, "é", prompt="ü", seed=i, temperature=1.0) for i in range(4)]
    rollouts = connect(model).rollout(jobs)
    assert all(
        r.text == model.tokenizer.decode([t for t in r.completion_ids if t not in model.eos_ids]) for r in rollouts
    )
