"""Each declared family on random weights of its true architecture and head, against the family's own recipe written out
with plain transformers: ids of a text put together by hand, one forward, explicit softmax or sigmoid at searched tags.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nabla_agents import (
    RLHFLOW_PRM,
    SKYWORK_O1_PRM,
    ContextOverflowError,
    FinishReason,
    LanguageModel,
    ProcessReward,
    Rollout,
    StepFormat,
)
from nabla_agents.rewards.base import judged
from nabla_agents.testing import byte_tokenizer, random_model, random_process_reward
from tests.rewards.learned.answers import by_one_hot, bytes_with_bos, completed, ids_of
from tests.rewards.learned.families import FAMILIES, QUESTION, Family, rlhflow_ids

ANSWERS = ("First, 2+3.\n\nThat is 5.", "5", "So.\n\nIt is\n\n7\n\n", "Twenty-three\n\nor 24\n\nor so, it seems.")
STEPS = (
    ["First, 2+3.", "That is 5."],
    ["5"],
    ["So.", "It is", "7"],
    ["Twenty-three", "or 24", "or so, it seems."],
)
family = pytest.mark.parametrize("name", FAMILIES)


def policy_for(made: Family) -> LanguageModel:
    """A language model with the family's tokenizer."""
    tokenizer = made.tokenizer()
    tokenizer.chat_template = tokenizer.chat_template or byte_tokenizer().chat_template
    return random_model(tokenizer=tokenizer, width=16, layers=1)


@family
def test_step_scores_equal_the_familys_own_recipe(name: str) -> None:
    """Mixed lengths in one batch and one by one; the values are different enough to tell positions apart."""
    made = FAMILIES[name]
    reward = made.reward()
    rollouts = [Rollout.from_text(QUESTION, a) for a in ANSWERS]
    expected = [made.truth(reward, steps) for steps in STEPS]
    for scores in (reward.score(rollouts), [reward.score([r])[0] for r in rollouts]):
        got = [[(s.value + 1) / 2 for s in score.spans] for score in scores]
        assert [len(g) for g in got] == [2, 1, 3, 3]
        for g, e in zip(got, expected, strict=True):
            assert g == pytest.approx(e, abs=1e-5)
    flat = [p for e in expected for p in e]
    assert max(flat) - min(flat) > 0.2
    texts = [
        [a[s.start : s.end] for s in score.spans] for a, score in zip(ANSWERS, reward.score(rollouts), strict=True)
    ]
    assert texts == list(STEPS)


@family
def test_a_saved_folder_loads_by_its_format_and_scores_the_same(name: str, tmp_path: Path) -> None:
    made = FAMILIES[name]
    reward = made.reward()
    reward.transformer.module.save_pretrained(tmp_path)
    reward.tokenizer.hf.save_pretrained(tmp_path)
    loaded = ProcessReward.from_pretrained(tmp_path, format=made.format)
    rollouts = [Rollout.from_text(QUESTION, a) for a in ANSWERS]
    assert [s.value for s in loaded.score(rollouts)] == pytest.approx(
        [s.value for s in reward.score(rollouts)], abs=1e-6
    )
    assert type(loaded.transformer.module).__name__ == type(reward.transformer.module).__name__


def test_a_language_model_with_a_value_head_loads_without_its_output_head(tmp_path: Path) -> None:
    """Skywork's checkpoints hold `model.*`, `lm_head` and `v_head.summary`: what is not needed is left aside."""
    made = FAMILIES["Skywork-o1-PRM"]
    reward = made.reward()
    weights = dict(reward.transformer.module.state_dict())
    weights["lm_head.weight"] = torch.zeros(len(reward.tokenizer.hf), 16)
    reward.transformer.module.save_pretrained(tmp_path, state_dict=weights)
    reward.tokenizer.hf.save_pretrained(tmp_path)
    loaded = ProcessReward.from_pretrained(tmp_path, format=made.format)
    rollout = Rollout.from_text(QUESTION, ANSWERS[0])
    assert loaded.score([rollout])[0].value == pytest.approx(reward.score([rollout])[0].value, abs=1e-6)


def test_soft_capped_logits_are_capped_for_the_score_too() -> None:
    reward = random_process_reward(
        byte_tokenizer(), "gemma2", format=RLHFLOW_PRM, width=16, final_logit_softcapping=2.0, scale=4.0
    )
    ids, positions = rlhflow_ids(reward.tokenizer.hf, STEPS[0])
    with torch.no_grad():
        logits = reward.transformer.module(input_ids=torch.tensor([ids])).logits[0, positions]
    plus, minus = ids_of(reward.tokenizer.hf, "+-")
    expected = torch.softmax(logits[:, [plus, minus]], -1)[:, 0].tolist()
    got = reward.score([Rollout.from_text(QUESTION, ANSWERS[0])])[0].spans
    assert [(s.value + 1) / 2 for s in got] == pytest.approx(expected, abs=1e-5)
    assert 1 < float(logits[:, [plus, minus]].abs().max()) < 2  # without the cap they would be larger


# ── gradient: every id a one-hot leaf in float64 ──────────────────────────────────────────────────────────────────────


def soft_value(made: Family, reward: ProcessReward, steps: list[str], aggregate: Callable[[Tensor], Tensor]) -> Tensor:
    """∂ aggregate(step probabilities) / ∂ one-hot rows of every id [time, vocab], by automatic differentiation."""
    module, hf = reward.transformer.module, reward.tokenizer.hf
    ids, positions = made.ids(hf, steps)

    def value(embeddings: Tensor) -> Tensor:
        hidden = module.model(inputs_embeds=embeddings).last_hidden_state[0, positions]
        return aggregate(made.probabilities(module, hf, hidden))

    return by_one_hot(module, ids, value)


def index_of_steps(ids: Sequence[int], hf: PreTrainedTokenizerBase, steps: list[str]) -> list[list[int]]:
    """Where each step's ids stand, found by search from left to right: steps tokenise alike alone and in the text."""
    places, at = [], 0
    for step in steps:
        own = ids_of(hf, step)
        at = next(i for i in range(at, len(ids)) if list(ids[i : i + len(own)]) == own)
        places.append(list(range(at, at + len(own))))
        at += len(own)
    return places


@pytest.mark.parametrize("aggregation", ["product", "mean", "soft-min"])
@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "Math-Shepherd"])
def test_the_gradient_equals_autograd_over_one_hot_ids(name: str, aggregation: Any) -> None:
    """Of the language model's tokens those of the steps have a gradient; what the format replaces has none."""
    made = FAMILIES[name]
    reward = made.reward(dtype=torch.float64, aggregation=aggregation)
    policy = policy_for(made)
    answer, steps = ANSWERS[3], STEPS[3]
    rollout = completed(policy, answer, QUESTION)
    bound = reward.bind(policy)
    [gradient] = bound.gradient([rollout], [0], [])
    assert gradient is not None
    rows = gradient.gradient.rows(range(len(rollout.completion_ids)))
    combine: dict[str, Callable[[Tensor], Tensor]] = {
        "product": lambda p: p.prod(),
        "mean": lambda p: p.mean(),
        "soft-min": lambda p: (p * (-p / 0.1).softmax(-1)).sum(),
    }
    expected = soft_value(made, reward, steps, combine[aggregation])
    ids, _ = made.ids(reward.tokenizer.hf, steps)
    placed = index_of_steps(ids[-len(answer) - 60 :], reward.tokenizer.hf, steps)
    offset = max(len(ids) - len(answer) - 60, 0)
    position, covered = 0, set()
    for step, place in zip(steps, placed, strict=True):
        position = answer.index(step, position)
        for i, index in enumerate(place):
            row = expected[offset + index]
            assert float((rows[position + i] - row).abs().max()) <= 1e-6 * float(row.abs().max())
            covered.add(position + i)
    others = [p for p in range(len(rollout.completion_ids)) if p not in covered]
    assert len(covered) == sum(map(len, steps)) > 30
    assert not bool(rows[others].any())
    [score] = bound.score([rollout])
    assert score.coverage[0].vocabulary == 1.0
    assert score.coverage[0].tokens == pytest.approx(len(covered) / len(rollout.completion_ids))


def test_the_gradient_of_a_sentence_piece_model_equals_autograd() -> None:
    made = FAMILIES["Math-Shepherd"]
    reward = made.reward(dtype=torch.float64, aggregation="mean")
    policy = policy_for(made)
    tokenizer, rollout = policy.tokenizer.hf, completed(policy, "it is 5\n\nor so", QUESTION)
    bound = reward.bind(policy)
    [gradient] = bound.gradient([rollout], [0], [])
    assert gradient is not None
    rows = gradient.gradient.rows(range(len(rollout.completion_ids)))
    expected = soft_value(made, reward, ["it is 5", "or so"], lambda p: p.mean())
    ids, _ = made.ids(reward.tokenizer.hf, ["it is 5", "or so"])
    tokens = tokenizer.convert_ids_to_tokens(list(rollout.completion_ids))
    theirs = tokenizer.convert_ids_to_tokens(ids)
    # `▁` before the first word and `▁or` at the second's beginning are joined to other text there.
    assert tokens == ["▁", "i", "t", "▁is", "▁", "5", "\n", "\n", "or", "▁", "s", "o", "</s>"]
    start = theirs.index("i", len(ids_of(tokenizer, QUESTION)))
    pairs = {1: start, 2: start + 1, 3: start + 2, 4: start + 3, 5: start + 4}
    second = theirs.index("or", start)
    pairs |= {8: second, 9: second + 1, 10: second + 2, 11: second + 3}
    for position, index in pairs.items():
        assert tokens[position] == theirs[index]
        row = expected[index]
        assert float((rows[position] - row).abs().max()) <= 1e-6 * float(row.abs().max())


@family
def test_committed_tokens_stay_in_the_value_and_out_of_the_gradient(name: str) -> None:
    made = FAMILIES[name]
    reward = made.reward(dtype=torch.float64, aggregation="product")
    policy = policy_for(made)
    rollouts = [completed(policy, a, QUESTION) for a in (ANSWERS[3], ANSWERS[0])]
    bound = reward.bind(policy)
    whole = bound.gradient(rollouts, [0, 0], [])
    for starts in ([1, 0], [16, 3], [len(rollouts[0].completion_ids) - 3, 12]):
        for gradient, full, rollout, start in zip(
            bound.gradient(rollouts, starts, []), whole, rollouts, starts, strict=True
        ):
            assert gradient is not None
            assert full is not None
            positions = range(start, len(rollout.completion_ids))
            expected = full.gradient.rows(positions)
            assert float((gradient.gradient.rows(positions) - expected).abs().max()) <= 1e-9


@pytest.mark.parametrize("name", ["Qwen2.5-Math-PRM", "Skywork-o1-PRM"])
def test_tokens_computed_are_those_that_the_body_saw(name: str) -> None:
    """A prompt that a batch shares is read once, for all that a request asks."""
    made = FAMILIES[name]
    reward = made.reward(min_coverage=0.1)
    policy = policy_for(made)
    bound = reward.bind(policy)
    rollouts = [completed(policy, a, QUESTION) for a in ANSWERS]
    seen: list[int] = []

    def count(_: Any, args: Any, kwargs: Any) -> None:
        read = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        seen.append(read.shape[0] * read.shape[1])

    handle = reward.transformer.body.register_forward_pre_hook(count, with_kwargs=True)
    try:
        for batch in (rollouts, rollouts[:1]):
            seen.clear()
            scores = bound.score(batch)
            assert sum(s.usage.reward_forward_tokens for s in scores) == sum(seen)
        alone = [len(bound.reading(r).ids) for r in rollouts]
        head = min(bound.reading(r).head for r in rollouts)
        prompt = replace(rollouts[0].prompt)  # of another request
        again = [replace(r, prompt=prompt) for r in rollouts]
        for read in (head, 0):
            seen.clear()
            bound.score(again)
            assert sum(seen) == read + len(rollouts) * (max(alone) - head)
        seen.clear()
        gradients = bound.gradient(rollouts, [0, 0, 4, 9], [])
        assert sum(g.usage.reward_forward_tokens for g in gradients if g) == sum(seen)
    finally:
        handle.remove()


@pytest.mark.parametrize(("answer", "steps"), [("a\nb\n", ["a", "b"]), ("a\n\nb", ["a", "b"]), ("\na", ["a"])])
def test_a_line_break_at_the_end_and_empty_lines_are_no_steps(answer: str, steps: list[str]) -> None:
    reward = random_process_reward(bytes_with_bos(), format=SKYWORK_O1_PRM, width=16)
    [score] = reward.score([Rollout.from_text(QUESTION, answer)])
    assert [answer[s.start : s.end] for s in score.spans] == steps
    expected = FAMILIES["Skywork-o1-PRM"].truth(reward, steps)
    assert [(s.value + 1) / 2 for s in score.spans] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["Qwen2.5-Math-PRM", "Math-Shepherd"])
def test_an_answer_that_writes_the_separator_itself_is_not_judged(name: str) -> None:
    """Else a language model could add steps of its own, and so raise a mean or a last score."""
    reward = FAMILIES[name].reward()
    spelled = f"So{reward.format.separator} it is 5."
    scores = reward.score([Rollout.from_text(QUESTION, spelled), Rollout.from_text(QUESTION, "5")])
    assert math.isnan(scores[0].value)
    assert "separator" in scores[0].explanation
    assert scores[1].value == pytest.approx(reward.score([Rollout.from_text(QUESTION, "5")])[0].value, abs=1e-6)


def test_a_separator_that_a_tokenizer_joins_to_the_text_is_not_judged() -> None:
    """The declared token is one token alone, but not after every text."""
    hf = byte_tokenizer()
    hf.add_tokens(["5#"])
    reward = random_process_reward(hf, format=StepFormat(split="\n", separator="#"), width=16)
    joined, apart = reward.score([Rollout.from_text("?", "is 5"), Rollout.from_text("?", "is 6")])
    assert "5#" in joined.explanation
    assert (joined.judged, apart.judged) == (False, True)


def test_a_text_beyond_the_limit_is_refused_with_both_numbers() -> None:
    reward = FAMILIES["Qwen2.5-Math-PRM"].reward(format=FAMILIES["Qwen2.5-Math-PRM"].format.replace(max_length=180))
    fits, long = Rollout.from_text(QUESTION, "5"), Rollout.from_text(QUESTION, "5 " * 100)
    length = len(reward.reading(long).ids)
    with pytest.raises(ContextOverflowError, match=rf"{length} tokens.*180"):
        reward.score([fits, long])
    scores = judged(reward, [fits, long])  # as a search asks: only the one is not judged
    assert (scores[0].judged, scores[1].judged) == (True, False)
    assert str(length) in scores[1].explanation
    policy = policy_for(FAMILIES["Qwen2.5-Math-PRM"])
    rollouts = [completed(policy, r.text, QUESTION) for r in (fits, long)]
    assert [g is None for g in reward.bind(policy).gradient(rollouts, [0, 0], [])] == [False, True]


def test_a_cut_answer_is_judged_up_to_where_it_was_cut() -> None:
    made = FAMILIES["Qwen2.5-Math-PRM"]
    reward = made.reward()
    cut = Rollout(Rollout.from_text(QUESTION, "").prompt, (), "So.\n\nIt i", finish_reason=FinishReason.LENGTH)
    got = [(s.value + 1) / 2 for s in reward.score([cut])[0].spans]
    assert got == pytest.approx(made.truth(reward, ["So.", "It i"]), abs=1e-5)


def test_a_language_models_tokens_can_score_a_text_that_is_kept_as_it_is() -> None:
    """Without a separator the softmax over `+` and `-` is read at each step's last token, whatever token that is."""
    reward = random_process_reward(byte_tokenizer(), format=StepFormat(head="tokens", right="+", wrong="-"), width=16)
    hf, head = reward.tokenizer.hf, f"<user>{QUESTION}<eos><assistant>"
    with torch.no_grad():
        logits = reward.transformer.module(torch.tensor([ids_of(hf, head + "So.\nIt is 5<eos>")])).logits[0]
    ends = [len(ids_of(hf, head + text)) - 1 for text in ("So.\n", "So.\nIt is 5")]
    expected = torch.softmax(logits[ends][:, ids_of(hf, "+-")], -1)[:, 0].tolist()
    [score] = reward.score([Rollout.from_text(QUESTION, "So.\nIt is 5")])
    assert [(s.value + 1) / 2 for s in score.spans] == pytest.approx(expected, abs=1e-5)
