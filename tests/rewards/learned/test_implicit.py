"""The implicit process reward against log-probabilities of plain transformers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nabla_agents import (
    ConfigurationError,
    ContextOverflowError,
    ImplicitReward,
    LanguageModel,
    Message,
    RewardError,
    Rollout,
    SiblingReward,
    VocabularyMismatchError,
)
from nabla_agents.rewards.base import judged
from nabla_agents.testing import random_model, word_tokenizer

WORDS = ["a", "b", "c", "d", "e"]
Models = tuple[LanguageModel, LanguageModel, LanguageModel]


@pytest.fixture(scope="module")
def models() -> Models:
    """A policy, a tuned model of another architecture and a third one, all of one vocabulary."""
    return (
        random_model("qwen2", vocabulary=WORDS, width=16, seed=1),
        random_model("llama", vocabulary=WORDS, width=16, seed=2),
        random_model("qwen2", vocabulary=WORDS, width=16, seed=3),
    )


def log_probs(model: LanguageModel, rollout: Rollout) -> torch.Tensor:
    """log π of the completion's tokens by one plain forward pass."""
    ids = torch.tensor([[*rollout.prompt.ids, *rollout.completion_ids]])
    with torch.no_grad():
        rows = model.transformer.module(input_ids=ids).logits[0].double().log_softmax(-1)
    first = len(rollout.prompt.ids)
    return torch.stack([rows[first + t - 1, token] for t, token in enumerate(rollout.completion_ids)])


def rollouts_of(policy: LanguageModel, *, known: bool = True) -> list[Rollout]:
    conversation = [Message("system", "e"), Message("user", "ab"), Message("assistant", "c"), Message("user", "d")]
    prompts = [policy.prompt("ab"), policy.prompt(conversation), policy.prompt("abcde")]
    eos = policy.tokenizer.eos_id
    completions = [(0, 1, 2, eos), (4,), (3, 3, 0, 1, 2, 0)]
    made = [
        Rollout(prompt, ids, policy.tokenizer.decode(ids))  # type: ignore[arg-type]
        for prompt, ids in zip(prompts, completions, strict=True)
    ]
    return [Rollout(r.prompt, r.completion_ids, r.text, log_probs(policy, r)) for r in made] if known else made


@pytest.mark.parametrize("beta", [1.0, 0.05])
@pytest.mark.parametrize("own_reference", [False, True])
@pytest.mark.parametrize("known", [True, False], ids=["own log-likelihoods", "a text of a server"])
def test_the_value_is_beta_times_the_log_ratio(models: Models, beta: float, own_reference: bool, known: bool) -> None:
    policy, tuned, third = models
    rollouts = rollouts_of(policy, known=known)
    reward = ImplicitReward(tuned, third if own_reference else None, beta=beta).bind(policy)
    expected = [
        beta * float((log_probs(tuned, r) - log_probs(third if own_reference else policy, r)).sum()) for r in rollouts
    ]
    assert max(map(abs, expected)) > 0.01
    assert [s.value for s in reward.score(rollouts)] == pytest.approx(expected, abs=1e-5)
    alone = [reward.score([r])[0].value for r in rollouts]
    assert alone == pytest.approx(expected, abs=1e-5)


def test_the_policy_as_reference_costs_no_pass_of_its_own(models: Models) -> None:
    policy, tuned, third = models
    rollouts = rollouts_of(policy)
    passes: list[str] = []
    hooks = [
        m.transformer.module.base_model.register_forward_hook(lambda *_, name=name: passes.append(name))
        for name, m in (("policy", policy), ("tuned", tuned), ("third", third))
    ]
    try:
        [*scores] = ImplicitReward(tuned).bind(policy).score(rollouts)
        assert set(passes) == {"tuned"}
        passes.clear()
        ImplicitReward(tuned, policy).bind(policy).score(rollouts)
        assert set(passes) == {"tuned"}
        passes.clear()
        ImplicitReward(tuned, third).bind(policy).score(rollouts)
        assert set(passes) == {"tuned", "third"}
    finally:
        for hook in hooks:
            hook.remove()
    for score in scores:
        assert (score.usage.reward_calls, score.usage.lm_forward_tokens) == (1, 0)
        assert score.usage.reward_forward_tokens > 0


def test_one_reward_serves_two_policies(models: Models) -> None:
    policy, tuned, third = models
    reward = ImplicitReward(tuned)
    for_policy, for_third = reward.bind(policy), reward.bind(third)
    [r] = rollouts_of(policy)[:1]
    [other] = rollouts_of(third)[:1]
    tuned_likelihood = float(log_probs(tuned, r).sum())
    assert for_policy.score([r])[0].value == pytest.approx(tuned_likelihood - r.log_likelihood, abs=1e-5)
    assert for_third.score([other])[0].value == pytest.approx(tuned_likelihood - other.log_likelihood, abs=1e-5)
    assert reward.reference is None


def test_without_a_reference_it_says_what_to_do(models: Models) -> None:
    policy, tuned, _ = models
    with pytest.raises(ConfigurationError, match="reference"):
        ImplicitReward(tuned).score(rollouts_of(policy))
    assert math.isnan(judged(ImplicitReward(tuned), rollouts_of(policy))[0].value)


def test_another_vocabulary_is_refused_when_bound_and_when_built(models: Models) -> None:
    """Also the same words in another order: token ids would be exchanged."""
    _, tuned, _ = models
    for words in (["a", "b"], WORDS[::-1]):
        other = random_model(tokenizer=word_tokenizer(words), width=16)
        with pytest.raises(VocabularyMismatchError, match="vocabular"):
            ImplicitReward(tuned).bind(other)
        with pytest.raises(VocabularyMismatchError, match="vocabular"):
            ImplicitReward(tuned, other)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_is_positive(models: Models, beta: float) -> None:
    with pytest.raises(ConfigurationError, match="beta"):
        ImplicitReward(models[1], beta=beta)


def test_loaded_from_a_folder_it_scores_the_same(models: Models, tmp_path: object) -> None:
    policy, tuned, _ = models
    tuned.transformer.module.save_pretrained(tmp_path)
    tuned.tokenizer.hf.save_pretrained(tmp_path)
    rollouts = rollouts_of(policy)
    loaded = ImplicitReward.from_pretrained(str(tmp_path), beta=0.5).bind(policy)
    expected = ImplicitReward(tuned, beta=0.5).bind(policy)
    assert [s.value for s in loaded.score(rollouts)] == pytest.approx(
        [s.value for s in expected.score(rollouts)], abs=1e-5
    )


def test_a_text_known_without_tokens_is_scored_as_its_tokens(models: Models, tmp_path: Path) -> None:
    """Without this it would have no token to sum over, and the value 0."""
    policy, tuned, third = models
    conversation = [Message("system", "e"), Message("user", "ab")]
    eos = policy.tokenizer.eos_id
    assert eos is not None
    in_ids = Rollout(policy.prompt(conversation), (0, 3, 1, eos), "adb")
    reward = ImplicitReward(tuned, third, beta=0.5)
    expected = 0.5 * float((log_probs(tuned, in_ids) - log_probs(third, in_ids)).sum())
    text = Rollout.from_text(conversation, "adb")
    assert [s.value for s in reward.score([text, in_ids])] == pytest.approx([expected] * 2, abs=1e-5)
    reward.record(tmp_path / "golden.json", [(conversation, "adb"), ("ab", "c")])
    assert reward.self_test(tmp_path / "golden.json") < 1e-6
    with pytest.raises(RewardError, match="2 of 2 cases"):
        ImplicitReward(tuned, policy, beta=0.5).self_test(tmp_path / "golden.json")


def test_special_tokens_that_a_text_spells_are_read_as_text() -> None:
    reward = ImplicitReward.from_pretrained("tiny")
    eos = reward.tokenizer.eos
    assert reward.tokenizer.eos_id in reward.tokenizer.encode(f"3{eos}4")
    reading = reward.reading(Rollout.from_text("What is 3 + 4?", f"3{eos}4"))
    assert reward.tokenizer.eos_id not in reading.ids[reading.head : -1]


def test_a_text_beyond_the_context_is_refused_and_does_not_steer(models: Models) -> None:
    policy = models[0]
    short = random_model("llama", vocabulary=WORDS, width=16, seed=2, context_length=16)
    reward = ImplicitReward(short).bind(policy)
    prompt = policy.prompt("ab")
    fits, long = (Rollout(prompt, (0, 1) * n, "ab" * n) for n in (2, 8))
    with pytest.raises(ContextOverflowError, match=rf"{len(prompt.ids) + 16} tokens.*16"):
        reward.score([fits, long])
    own = [p.gradient for p in policy.likelihood_gradient([fits, long], [0, 0])]
    gradients = reward.gradient([fits, long], [0, 0], own)
    assert [g is None for g in gradients] == [False, True]
    [alone] = reward.gradient([fits], [0], own[:1])
    assert alone is not None
    assert gradients[0] is not None
    assert torch.allclose(gradients[0].gradient.rows([0, 3]), alone.gradient.rows([0, 3]), atol=1e-6)


POOLED = {"sum": lambda c: c.sum(), "mean": lambda c: c.mean(), "positive": lambda c: c.clamp_min(0).sum()}


@pytest.mark.parametrize("own_reference", [False, True])
@pytest.mark.parametrize("pooling", POOLED)
def test_the_tokens_terms_are_pooled(models: Models, pooling: Any, own_reference: bool) -> None:
    policy, tuned, third = models
    rollouts = rollouts_of(policy)
    reward = ImplicitReward(tuned, third if own_reference else None, beta=0.5, pooling=pooling).bind(policy)
    reference = third if own_reference else policy
    expected = [float(POOLED[pooling](0.5 * (log_probs(tuned, r) - log_probs(reference, r)))) for r in rollouts]
    assert [s.value for s in reward.score(rollouts)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("embedding_terms", [False, True])
@pytest.mark.parametrize("own_reference", [False, True])
@pytest.mark.parametrize("pooling", POOLED)
def test_at_the_last_token_the_rows_are_the_exact_change_of_the_value(
    models: Models, pooling: Any, own_reference: bool, embedding_terms: bool
) -> None:
    """Nothing comes behind it, so that there is nothing through embeddings; of `positive` there never is."""
    policy, tuned, third = models
    [rollout] = rollouts_of(policy)[2:]
    reward = ImplicitReward(tuned, third if own_reference else None, pooling=pooling).bind(policy)
    own = [p.gradient for p in policy.likelihood_gradient([rollout], [0], embedding_terms=embedding_terms)]
    [gradient] = reward.gradient([rollout], [0], own)
    assert gradient is not None
    assert (gradient.usage.reward_backward_tokens > 0) == (embedding_terms and pooling != "positive")
    last = len(rollout.completion_ids) - 1
    row = gradient.gradient.rows([last])[0]
    for token in range(5):
        changed = Rollout(rollout.prompt, (*rollout.completion_ids[:-1], token), "")
        before, after = reward.score([Rollout(rollout.prompt, rollout.completion_ids, ""), changed])
        change = float(row[token] - row[rollout.completion_ids[-1]])
        assert change == pytest.approx(after.value - before.value, abs=1e-5)


@pytest.mark.untyped
def test_a_pooling_that_is_none_is_refused_before_anything_is_loaded(models: Models) -> None:
    with pytest.raises(ConfigurationError, match="pooling is 'max'; expected one of sum, mean, positive"):
        ImplicitReward(models[1], pooling="max")
    with pytest.raises(ConfigurationError, match="pooling"):
        ImplicitReward.from_pretrained("nowhere/at-all", pooling="max")


def test_a_sibling_is_compared_with_the_engines_model(models: Models) -> None:
    policy, large, _ = models
    rollouts = rollouts_of(policy)
    reward = SiblingReward(large, beta=0.5).bind(policy)
    expected = ImplicitReward(large, policy, beta=0.5).score(rollouts)
    assert [s.value for s in reward.score(rollouts)] == pytest.approx([s.value for s in expected], abs=1e-5)
    assert (reward.name, reward.learned, {s.verified for s in expected}) == ("SiblingReward", True, {None})
