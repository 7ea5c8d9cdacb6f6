"""A reward model beside a language model: the text is the truth for scores, and the gradient goes where a token is one
token in both.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from nabla_agents import BestOfN, Budget, Engine, Greedy, LanguageModel, Nabla, Rollout, Sampling
from nabla_agents.testing import (
    byte_tokenizer,
    permuted_tokenizer,
    random_model,
    random_outcome_reward,
    random_process_reward,
    word_tokenizer,
)
from tests.rewards.learned.answers import completed, sentence_piece

WORDS = ["a", "b", "cd", "efg", "h", ".", "\n"]
LETTERS = ["\n", ".", "h", "b", "a", *"cdefg"]  # without `cd` and `efg`, and in another order
PAIRS = ["aa", "ab", "ba", "bb", "ac", "bc", "ca", "cb", "cc"]
MAKERS = [random_outcome_reward, random_process_reward]


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return random_model(vocabulary=WORDS, width=16, layers=1, dtype=torch.float64)


def rows(reward: Any, rollout: Rollout) -> torch.Tensor:
    [gradient] = reward.gradient([rollout], [0], [])
    return gradient.gradient.rows(range(len(rollout.completion_ids)))


def permuted(reward: Any, seed: int) -> Any:
    """The same weights behind a tokenizer with other ids: row i of the embedding is where id i went."""
    tokenizer, moved = permuted_tokenizer(WORDS, seed)
    module = copy.deepcopy(reward.transformer.module)
    table = module.get_input_embeddings().weight
    with torch.no_grad():
        table[torch.tensor(moved)] = reward.transformer.embedding.weight.clone()
    return type(reward)(module, tokenizer)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_permuted_copy_gives_equal_scores_and_gradients(policy: LanguageModel, make: Any, seed: int) -> None:
    reward = make(policy.tokenizer.hf, width=16, dtype=torch.float64)
    copied = permuted(reward, seed)
    assert copied.tokenizer.encode("abcd") != reward.tokenizer.encode("abcd")
    same, other = reward.bind(policy), copied.bind(policy)
    rollouts = [completed(policy, "acd.\nefg"), completed(policy, "h\n\nb", "cd")]
    for a, b in zip(same.score(rollouts), other.score(rollouts), strict=True):
        assert b.value == pytest.approx(a.value, abs=1e-12)
        assert [(c.vocabulary, c.tokens) for c in (*a.coverage, *b.coverage)] == [(1.0, 1.0)] * 2
    for rollout in rollouts:
        expected = rows(same, rollout)
        assert float(expected.abs().max()) > 1e-6
        assert float((rows(other, rollout) - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("make", MAKERS)
def test_where_only_some_tokens_are_shared_the_others_promise_nothing(policy: LanguageModel, make: Any) -> None:
    """`cd` and `efg` are several tokens to the reward: no term where they stand, and no gain as a replacement."""
    reward = make(word_tokenizer(LETTERS), width=16, dtype=torch.float64)
    bound = reward.bind(policy)
    rollout = completed(policy, "acdh\nefgb")
    hf = reward.tokenizer.hf
    got = rows(bound, rollout)
    ids = hf("<user>ab<eos><assistant>acdh\nefgb<eos>", add_special_tokens=False).input_ids
    first = len(hf("<user>ab<eos><assistant>", add_special_tokens=False).input_ids)
    table = reward.transformer.embedding.weight
    one_hot = torch.nn.functional.one_hot(torch.tensor(ids), len(table)).double().requires_grad_()
    outputs = reward.transformer.module(inputs_embeds=(one_hot @ table)[None]).logits[0]
    if make is random_process_reward:
        p = outputs[[first + 4, first + 8]].softmax(-1)[:, 1]  # the line break, and the last token
        value = p.prod()
    else:
        value = outputs[0]
    (truth,) = torch.autograd.grad(value, one_hot)
    # acdh\nefgb<eos> is a, cd, h, \n, efg, b, <eos> here and a, c, d, h, \n, e, f, g, b, <eos> there.
    places = {0: 0, 2: 3, 3: 4, 5: 8, 6: 9}
    counterparts = [4, 3, None, None, 2, 1, 0, 10, 11, 12, 13, 14]
    for position in range(7):
        row = got[position]
        if position not in places:
            assert not bool(row.any())
            continue
        expected = truth[first + places[position]]
        written = expected[ids[first + places[position]]]
        for token, theirs in enumerate(counterparts):
            wanted = written if theirs is None else expected[theirs]
            assert float(row[token]) == pytest.approx(float(wanted), rel=1e-6, abs=1e-12)
    [score] = bound.score([rollout])
    [coverage] = score.coverage
    assert coverage.vocabulary == pytest.approx(10 / 12)
    assert coverage.tokens == pytest.approx(5 / 7)
    assert score.value == pytest.approx(float(value.detach()), abs=1e-9)


def test_from_a_position_on_the_rows_are_the_same(policy: LanguageModel) -> None:
    reward = random_process_reward(word_tokenizer(LETTERS), width=16, dtype=torch.float64)
    bound = reward.bind(policy)
    rollouts = [completed(policy, "acdh\nefgb"), completed(policy, "cdefg\nah.\nb")]
    whole = [rows(bound, r) for r in rollouts]
    for starts in ([1, 0], [2, 2], [4, 5]):
        for gradient, full, rollout, start in zip(
            bound.gradient(rollouts, starts, []), whole, rollouts, starts, strict=True
        ):
            assert gradient is not None
            got = gradient.gradient.rows(range(start, len(rollout.completion_ids)))
            assert float((got - full[start:]).abs().max()) <= 1e-12


@pytest.mark.parametrize("make", MAKERS)
def test_committed_text_tokenised_anew_scores_as_the_text_scored_directly(policy: LanguageModel, make: Any) -> None:
    """Also a text that the language model wrote in other tokens than its own tokenizer would choose."""
    tokenizer = word_tokenizer(["a", "b", "ab", "abab", "\n", "."])
    writer = random_model(tokenizer=tokenizer, width=16, layers=1)
    reward = make(byte_tokenizer(), width=16, min_coverage=0.0)
    bound = reward.bind(writer)
    prompt, eos = writer.prompt("ab."), writer.tokenizer.eos_id
    assert eos is not None
    spelled = [(3, 4, 0), (2, 2, 4, 0), (0, 1, 2, 4, 0)]
    scores = bound.score([Rollout(prompt, (*ids, eos), "abab\na") for ids in spelled])
    [direct] = reward.score([Rollout.from_text("ab.", "abab\na")])
    assert [s.value for s in scores] == pytest.approx([direct.value] * 3, abs=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_a_disjoint_pair_accepts_but_does_not_steer_and_says_so(make: Any) -> None:
    """Only the 5 special tokens of 9 + 5 are in both."""
    policy = random_model(vocabulary=PAIRS, width=16, layers=1)
    reward = make(byte_tokenizer(), width=16)
    with pytest.warns(UserWarning, match=r"different vocabularies.*36%.*does not steer") as caught:
        bound = reward.bind(policy)
    assert len(caught) == 1
    rollout = completed(policy, "aaab", "bb")
    [score] = bound.score([rollout])
    assert score.value == pytest.approx(reward.score([Rollout.from_text("bb", "aaab")])[0].value, abs=1e-6)
    assert score.coverage[0].vocabulary == pytest.approx(5 / 14)
    assert bound.gradient([rollout], [0], []) == [None]
    assert not bound.steers
    assert reward.bind(random_model(width=16, layers=1)).steers  # binding leaves it free for another engine
    assert reward.gradient([rollout], [0], []) == [None]


def test_a_completion_with_too_few_shared_tokens_is_not_steered_and_a_warning_says_so(policy: LanguageModel) -> None:
    """The vocabulary is covered by 10/12, this completion by 2/6 only."""
    bound, willing = (
        random_process_reward(word_tokenizer(LETTERS), width=16, min_coverage=share).bind(policy)
        for share in (0.5, 0.0)
    )
    rollouts = [completed(policy, "cdefgcdefga"), completed(policy, "ab\nh")]
    with pytest.warns(UserWarning, match="does not steer"):
        gradients = bound.gradient(rollouts, [0, 0], [])
    assert [g is None for g in gradients] == [True, False]
    assert willing.gradient(rollouts[:1], [0], []) != [None]


def test_the_same_characters_from_another_token_have_no_term() -> None:
    """`▁a` at the beginning of an answer shows as `a`; what the reward reads there is `a`, another token."""
    tokenizer = sentence_piece("▁ab", [("▁", "a"), ("a", "b")], strip=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    policy = random_model(tokenizer=tokenizer, width=16, layers=1)
    reward = random_outcome_reward(byte_tokenizer(), width=16, min_coverage=0.0).bind(policy)
    vocabulary = policy.tokenizer.hf.get_vocab()
    ids = (vocabulary["▁a"], vocabulary["b"], vocabulary["▁"], vocabulary["a"])
    assert policy.tokenizer.decode(ids) == "ab a"
    got = rows(reward, Rollout(policy.prompt("b"), ids, "ab a"))
    assert got.any(-1).tolist() == [False, True, True, True]


# ── in a search ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_coverage_reaches_the_result() -> None:
    policy = random_model(vocabulary=WORDS, width=16, layers=1)
    partly = random_process_reward(word_tokenizer(LETTERS), width=16, min_coverage=0.0)
    same = random_outcome_reward(policy.tokenizer.hf, width=16, min_coverage=0.0)
    engine = Engine(model=policy, reward=partly + 0.5 * same, strategy=Nabla(min_promise=-8.0))
    result = engine.generate("ab", sampling=Sampling(max_tokens=12), budget=Budget(rollouts=4), seed=2)
    assert result.usage.gradient_passes > 0
    first, second = result.coverage
    assert (first.reward, second.reward) == (partly.label, same.label)
    assert first.vocabulary == pytest.approx(10 / 12)
    *inner, last = result.token_ids  # role markers in the middle, which this random model writes, are no text
    shared = sum(t < 7 and t not in (2, 3) for t in (*inner, last)) + (last == policy.tokenizer.eos_id)
    assert first.tokens == pytest.approx(shared / len(result.token_ids))
    read = sum(t < 7 for t in inner) + (last < 7 or last == policy.tokenizer.eos_id)
    assert (second.vocabulary, second.tokens) == (1.0, pytest.approx(read / len(result.token_ids)))
    assert result.trace[-1].score is not None
    assert result.trace[-1].score.coverage == result.coverage


def test_a_disjoint_reward_still_chooses_the_answer() -> None:
    policy = random_model(vocabulary=PAIRS, width=16, layers=1)
    reward = random_outcome_reward(byte_tokenizer(), width=16)
    with pytest.warns(UserWarning, match="does not steer"):
        engine = Engine(model=policy, reward=reward, strategy=BestOfN(n=4))
    result = engine.generate("bb", sampling=Sampling(max_tokens=6), seed=1)
    assert result.score is not None
    assert result.score.value == max(s.score.value for s in result.trace if s.score is not None)
    assert Engine(model=policy, strategy=Greedy()).generate("bb", sampling=Sampling(max_tokens=2)).coverage == ()
