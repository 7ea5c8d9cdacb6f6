"""Drafts: a completion guessed by another one is the completion without a guess, in fewer decode steps."""

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch

from nabla_agents import Usage
from nabla_agents.testing import random_model

WORDS = ("a", "b", "cd", "efg", "h", "i", "\n")
WIDE = 64  # tokens of the sliding window of these models: drafts are used within it
SAMPLINGS = [{"temperature": 0}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.5, "top_k": 5}]


@pytest.fixture(params=["qwen2", "mistral", "gemma3"])
def roomy(request: pytest.FixtureRequest):
    return made(request.param)


@cache
def made(architecture: str):
    return random_model(architecture, vocabulary=WORDS, sliding_window=WIDE, context_length=64)


def drafts_of(ids: tuple[int, ...], vocabulary: int) -> list[tuple[int, ...]]:
    """Right, wrong from the start, wrong now and then, right but too short, right but too long, nothing."""
    wrong = tuple((i + 1) % vocabulary for i in ids)
    mixed = tuple(w if n % 5 == 3 else i for n, (i, w) in enumerate(zip(ids, wrong, strict=True)))
    return [ids, wrong, mixed, ids[:3], (*ids, 0, 1, 2), ()]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top-p", "hot"])
@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
def test_a_draft_changes_no_token_and_no_log_prob(roomy, job, sampling, cached) -> None:
    plain = job(roomy, "abcd", "ab", max_tokens=24, seed=3, cached=cached, **sampling)
    [expected] = roomy.rollout([plain])
    for draft in drafts_of(expected.completion_ids[2:], len(WORDS)):
        [found] = roomy.rollout([replace(plain, draft=draft)])
        assert found.completion_ids == expected.completion_ids
        assert found.text == expected.text
        assert found.finish_reason == expected.finish_reason
        assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-4)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top-p", "hot"])
def test_rows_of_a_batch_with_different_drafts_are_those_alone(roomy, job, sampling) -> None:
    """Rows accept different numbers of guesses, so the batch has gaps; rows end at different times."""
    prompts = ("ab", "abcdefgh", "i", "hhiiab\ncd", "cd", "efghi")
    jobs = [job(roomy, p, "b" * (i % 3), max_tokens=8 + 4 * i, seed=i, **sampling) for i, p in enumerate(prompts)]
    alone = [roomy.rollout([j])[0] for j in jobs]
    tails = [drafts_of(r.completion_ids[i % 3 :], len(WORDS)) for i, r in enumerate(alone)]
    for shift in (0, 2, 5):
        drafted = [replace(j, draft=tails[i][(i + shift) % 6]) for i, j in enumerate(jobs)]
        for found, expected in zip(roomy.rollout(drafted), alone, strict=True):
            assert found.completion_ids == expected.completion_ids
            assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-4)


def test_a_right_draft_saves_the_steps_that_it_guesses(roomy, job) -> None:
    plain = job(roomy, "abcd", max_tokens=24, seed=5, temperature=0)
    [expected] = roomy.rollout([plain])
    forwards: list[int] = []
    handle = roomy.transformer.body.register_forward_pre_hook(
        lambda _, args, kwargs: forwards.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        [found] = roomy.rollout([replace(plain, draft=expected.completion_ids)])
    finally:
        handle.remove()
    usage: Usage = found.usage
    assert usage.generated_tokens == expected.usage.generated_tokens
    assert len(forwards) == expected.usage.generated_tokens - usage.accepted_draft_tokens  # prefill gives the first
    assert usage.lm_forward_tokens == sum(forwards)
    assert usage.accepted_draft_tokens >= usage.draft_tokens - 1  # an end among the guesses leaves nothing to add
    assert len(forwards) <= 1 + 4  # windows of 4, 8 and 16 guesses, with a token after each


def test_a_hopeless_draft_is_given_up(roomy, job) -> None:
    """Three rounds of four wrong guesses, and decoding goes on as if there had been none."""
    plain = job(roomy, "abcd", max_tokens=40, seed=1, temperature=2.0)
    [expected] = roomy.rollout([plain])
    wrong = tuple((i + 1) % len(WORDS) for i in expected.completion_ids)
    [found] = roomy.rollout([replace(plain, draft=wrong)])
    assert found.usage.accepted_draft_tokens == 0
    assert found.usage.draft_tokens <= 12


def test_a_sliding_window_shorter_than_the_text_uses_no_draft(model, job) -> None:
    """Rejected guesses leave gaps, which a window would count as tokens."""
    plain = job(model, "abcd", max_tokens=12, seed=2, temperature=0)
    [expected] = model.rollout([plain])
    [found] = model.rollout([replace(plain, draft=expected.completion_ids)])
    assert found.completion_ids == expected.completion_ids
    assert (found.usage.draft_tokens > 0) == (model.transformer.sliding_window is None)


def test_drafted_pairs_of_tokens_have_the_exact_distribution(job, full_logits) -> None:
    """Chi-square of 600 rollouts of two tokens, all drafted by the same pair; a false alarm once in 10 000 seeds."""
    n, qwen = 600, made("qwen2")
    prompt = qwen.prompt("ab")
    expected = pairs(qwen, full_logits, prompt)
    likely = max(
        (pair for pair in expected if len(pair) == 2 and pair[1] not in qwen.eos_ids), key=expected.__getitem__
    )
    jobs = [job(qwen, prompt, max_tokens=3, seed=i, temperature=1.0) for i in range(n)]
    found = qwen.rollout([replace(j, draft=(*likely, 0)) for j in jobs])
    counts = Counter(r.completion_ids[:2] for r in found)
    common = {pair: n * p for pair, p in expected.items() if n * p >= 5}
    cells = [(counts[pair], mean) for pair, mean in common.items()]
    cells.append((n - sum(seen for seen, _ in cells), n - sum(common.values())))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells if mean > 0)
    tail = torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2.0), torch.tensor(statistic / 2))
    assert len(cells) > 9
    assert sum(r.usage.accepted_draft_tokens for r in found) > 0
    assert tail > 1e-4


def pairs(model, full_logits, prompt) -> dict[tuple[int, ...], float]:
    """Probability of the first two tokens, by full forward passes; a terminal token has no second."""
    found: dict[tuple[int, ...], float] = {}
    for a, p in enumerate(full_logits(model, prompt, (0,))[0].double().softmax(-1).tolist()):
        if a in model.eos_ids:
            found[(a,)] = p
            continue
        second = full_logits(model, prompt, (a, 0))[1].double().softmax(-1)
        found |= {(a, b): p * q for b, q in enumerate(second.tolist())}
    return found
