"""Each declared family on random weights of its true architecture and head, against the family's own recipe written out
with plain transformers: ids of a text put together by hand, one forward, explicit softmax or sigmoid at searched tags.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nabla_agents import (
    MATH_SHEPHERD,
    QWEN_MATH_PRM,
    RLHFLOW_PRM,
    SKYWORK_O1_PRM,
    TRL_PRM,
    ConfigurationError,
    ContextOverflowError,
    FinishReason,
    LanguageModel,
    Message,
    ProcessReward,
    Rollout,
    StepFormat,
)
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.rewards.base import judged
from nabla_agents.rewards.learned.formats import BOXED, step_tokens
from nabla_agents.testing import byte_tokenizer, random_model, random_process_reward

QUESTION = "How much is 2+3?"
ANSWERS = ("First, 2+3.\n\nThat is 5.", "5", "So.\n\nIt is\n\n7\n\n", "Twenty-three\n\nor 24\n\nor so, it seems.")
STEPS = (
    ["First, 2+3.", "That is 5."],
    ["5"],
    ["So.", "It is", "7"],
    ["Twenty-three", "or 24", "or so, it seems."],
)


def separated() -> PreTrainedTokenizerFast:
    """Bytes, and the special separator of Qwen's process reward models."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<extra_0>"]}, replace_extra_special_tokens=False)
    return tokenizer


def begun() -> PreTrainedTokenizerFast:
    """Bytes, and a beginning-of-sequence token that only a text can write."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    return tokenizer


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama and Mistral tokenise: `▁` for spaces, merges, bytes for anything else, and a bos of its own accord."""
    characters = ["▁", *"abcdefghijklmnopqrstuvwxyzFHIST0123456789.,=?+-\nки"]
    merges = [("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-"), ("i", "s"), ("▁", "is"), ("o", "r"), ("▁", "or")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *characters, *map("".join, merges)]
    raw = RawTokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    return tokenizer


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


# ── the recipes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Family:
    """A format on small random models, and its authors' recipe: ids, positions, probabilities from hidden states."""

    format: StepFormat
    architecture: Any
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    ids: Callable[[PreTrainedTokenizerBase, list[str]], tuple[list[int], list[int]]]
    probabilities: Callable[[Any, PreTrainedTokenizerBase, Tensor], Tensor]

    def reward(self, **options: Any) -> ProcessReward:
        return random_process_reward(
            self.tokenizer(), self.architecture, **{"format": self.format, "width": 16, "seed": 5, **options}
        )

    def truth(self, reward: ProcessReward, steps: list[str]) -> list[float]:
        ids, positions = self.ids(reward.tokenizer.hf, steps)
        hidden = reward.transformer.module.model(input_ids=torch.tensor([ids])).last_hidden_state[0, positions]
        return self.probabilities(reward.transformer.module, reward.tokenizer.hf, hidden).tolist()


def qwen_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    messages = [
        {"role": "system", "content": BOXED},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    ids = ids_of(hf, str(hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)))
    return ids, [i for i, t in enumerate(ids) if t == hf.convert_tokens_to_ids("<extra_0>")]


def qwen_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    first, _, second = module.score
    hidden = torch.relu(hidden @ first.weight.T + first.bias)
    return torch.softmax(hidden @ second.weight.T + second.bias, -1)[:, 1]


def classes_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    return torch.softmax(hidden @ module.score.weight.T + module.score.bias, -1)[:, 1]


def plain_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    """Token classification with a separator, and the conversation's own (no) system prompt."""
    text = f"<user>{QUESTION}<eos><assistant>" + "".join(s + "<extra_0>" for s in steps)
    ids = ids_of(hf, text)
    return ids, [i for i, t in enumerate(ids) if t == hf.convert_tokens_to_ids("<extra_0>")]


def skywork_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    ids = hf.encode(f"{hf.bos_token or ''}{QUESTION}\n")
    flags: list[int] = []
    for step in steps:
        ids += [*hf.encode(step), hf.encode("\n")[-1]]
        flags.append(len(ids) - 1)
    return ids, flags


def skywork_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    return torch.sigmoid((hidden @ module.v_head.summary.weight.T + module.v_head.summary.bias)[:, 0])


def shepherd_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    ids = ids_of(hf, f"{QUESTION} " + "\n".join(s + " ки" for s in steps))
    return ids, [i for i, t in enumerate(ids) if t == hf.convert_tokens_to_ids("▁ки")]


def candidates(module: Any, hidden: Tensor, right: int, wrong: int) -> Tensor:
    return torch.softmax((hidden @ module.lm_head.weight.T)[:, [right, wrong]], -1)[:, 0]


def shepherd_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    right, wrong = hf.encode("+ -", add_special_tokens=False)  # as the model card takes its candidates
    return candidates(module, hidden, right, wrong)


def rlhflow_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    messages: list[dict[str, str]] = []
    for i, step in enumerate(steps):
        messages += [
            {"role": "user", "content": f"{QUESTION} {step}" if i == 0 else step},
            {"role": "assistant", "content": "+"},
        ]
    ids = ids_of(hf, str(hf.apply_chat_template(messages, tokenize=False)))
    assistant = hf.convert_tokens_to_ids("<assistant>")
    return ids, [i for i, t in enumerate(ids) if t == assistant]  # this template's last token before the `+`


def rlhflow_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    return candidates(module, hidden, hf.encode("+")[-1], hf.encode("-")[-1])


FAMILIES = {
    "Qwen2.5-Math-PRM": Family(
        QWEN_MATH_PRM.replace(separator_id=None), "qwen2", separated, qwen_ids, qwen_probabilities
    ),
    "token classes at a separator": Family(
        StepFormat(split="\n\n", separator="<extra_0>"), "qwen2", separated, plain_ids, classes_probabilities
    ),
    "Skywork-o1-PRM": Family(SKYWORK_O1_PRM.replace(split="\n\n"), "qwen2", begun, skywork_ids, skywork_probabilities),
    "Skywork-o1-PRM without bos": Family(
        SKYWORK_O1_PRM.replace(split="\n\n"), "qwen2", byte_tokenizer, skywork_ids, skywork_probabilities
    ),
    "Math-Shepherd": Family(
        MATH_SHEPHERD.replace(separator_id=None, right_id=None, wrong_id=None),
        "mistral",
        sentence_piece,
        shepherd_ids,
        shepherd_probabilities,
    ),
    "RLHFlow": Family(RLHFLOW_PRM, "llama", byte_tokenizer, rlhflow_ids, rlhflow_probabilities),
}
family = pytest.mark.parametrize("name", FAMILIES)


def written(tokenizer: PreTrainedTokenizerBase, answer: str, model: LanguageModel | None = None) -> Rollout:
    """An answer in a language model's tokens, ended by its end-of-sequence token."""
    if model is None:
        return Rollout.from_text(QUESTION, answer)
    ids = model.tokenizer.encode(answer)
    return Rollout(model.prompt(QUESTION), (*ids, tokenizer.eos_token_id), answer)


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
def test_text_after_a_separator_leaves_earlier_step_scores_unchanged(name: str) -> None:
    reward = FAMILIES[name].reward()
    short, long = reward.score([Rollout.from_text(QUESTION, "So.\n\nIt is"), Rollout.from_text(QUESTION, ANSWERS[2])])
    assert [s.value for s in short.spans] == pytest.approx([s.value for s in long.spans[:2]], abs=1e-6)
    assert len(long.spans) == 3


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
    table = module.get_input_embeddings().weight
    rows = torch.nn.functional.one_hot(torch.tensor(ids), len(table)).double().requires_grad_()
    hidden = module.model(inputs_embeds=(rows @ table)[None]).last_hidden_state[0, positions]
    return torch.autograd.grad(aggregate(made.probabilities(module, hf, hidden)), rows)[0]


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
    policy = random_model(tokenizer=made.tokenizer(), width=16, layers=1)
    answer, steps = ANSWERS[3], STEPS[3]
    rollout = written(policy.tokenizer.hf, answer, policy)
    bound = reward.bind(policy)
    [gradient] = bound.gradient([rollout], [0], [])
    assert gradient is not None
    rows = gradient.carrier.rows(range(len(rollout.completion_ids)))
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
    tokenizer = made.tokenizer()
    tokenizer.chat_template = byte_tokenizer().chat_template
    policy = random_model(tokenizer=tokenizer, width=16, layers=1)
    rollout = written(policy.tokenizer.hf, "it is 5\n\nor so", policy)
    bound = reward.bind(policy)
    [gradient] = bound.gradient([rollout], [0], [])
    assert gradient is not None
    rows = gradient.carrier.rows(range(len(rollout.completion_ids)))
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
    tokenizer = made.tokenizer()
    tokenizer.chat_template = tokenizer.chat_template or byte_tokenizer().chat_template
    policy = random_model(tokenizer=tokenizer, width=16, layers=1)
    rollouts = [written(policy.tokenizer.hf, a, policy) for a in (ANSWERS[3], ANSWERS[0])]
    bound = reward.bind(policy)
    whole = bound.gradient(rollouts, [0, 0], [])
    for starts in ([1, 0], [16, 3], [len(rollouts[0].completion_ids) - 3, 12]):
        for gradient, full, rollout, start in zip(
            bound.gradient(rollouts, starts, []), whole, rollouts, starts, strict=True
        ):
            assert gradient is not None
            assert full is not None
            positions = range(start, len(rollout.completion_ids))
            expected = full.carrier.rows(positions)
            assert float((gradient.carrier.rows(positions) - expected).abs().max()) <= 1e-9


@family
def test_tokens_computed_are_those_that_the_body_saw(name: str) -> None:
    """A prompt that a batch shares is read once, for all that a request asks."""
    made = FAMILIES[name]
    reward = made.reward(min_coverage=0.1)
    tokenizer = made.tokenizer()
    tokenizer.chat_template = tokenizer.chat_template or byte_tokenizer().chat_template
    policy = random_model(tokenizer=tokenizer, width=16, layers=1)
    bound = reward.bind(policy)
    rollouts = [written(policy.tokenizer.hf, a, policy) for a in ANSWERS]
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


# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────────


CONVERSATION = [
    Message("system", "Be brief."),
    Message("user", "hi"),
    Message("assistant", "yes"),
    Message("user", "2?"),
]


def test_a_conversation_keeps_its_turns_and_gets_the_formats_system_prompt() -> None:
    reward = FAMILIES["Qwen2.5-Math-PRM"].reward()
    ids = reward.reading(Rollout.from_text(CONVERSATION, "2.\n\nYes.")).ids
    text = f"<system>{BOXED}<eos><user>hi<eos><assistant>yes<eos><user>2?<eos><assistant>2.<extra_0>Yes.<extra_0>"
    assert list(ids) == ids_of(reward.tokenizer.hf, text)
    kept = FAMILIES["token classes at a separator"].reward()
    without = FAMILIES["token classes at a separator"].reward(
        format=StepFormat(split="\n\n", separator="<extra_0>", system=False)
    )
    for made, system in ((kept, "<system>Be brief.<eos>"), (without, "")):
        text = f"{system}<user>hi<eos><assistant>yes<eos><user>2?<eos><assistant>2.<extra_0>Yes.<extra_0>"
        assert list(made.reading(Rollout.from_text(CONVERSATION, "2.\n\nYes.")).ids) == ids_of(
            reward.tokenizer.hf, text
        )


def test_in_turns_the_first_step_follows_the_last_question() -> None:
    reward = FAMILIES["RLHFlow"].reward()
    ids = reward.reading(Rollout.from_text(CONVERSATION, "2.\n\nYes.")).ids
    text = (
        "<system>Be brief.<eos><user>hi<eos><assistant>yes<eos><user>2? 2.<eos><assistant>+<eos>"
        "<user>Yes.<eos><assistant>+"
    )
    assert list(ids) == ids_of(reward.tokenizer.hf, text)


def test_formats_without_turns_read_all_turns_as_text() -> None:
    reward = FAMILIES["Skywork-o1-PRM"].reward()
    ids = reward.reading(Rollout.from_text(CONVERSATION, "2.")).ids
    assert list(ids) == ids_of(reward.tokenizer.hf, "<bos>hi\n\nyes\n\n2?\n2.\n")


@pytest.mark.parametrize(("answer", "steps"), [("a\nb\n", ["a", "b"]), ("a\n\nb", ["a", "b"]), ("\na", ["a"])])
def test_a_line_break_at_the_end_and_empty_lines_are_no_steps(answer: str, steps: list[str]) -> None:
    reward = random_process_reward(begun(), format=SKYWORK_O1_PRM, width=16)
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


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_one_bos_whoever_writes_it(adds: bool, writes: bool) -> None:
    hf = begun()
    bos = int(hf.bos_token_id or 0)
    if adds:
        from tokenizers.processors import TemplateProcessing

        hf.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
        assert hf("a").input_ids[0] == bos
    hf.chat_template = ("<bos>" if writes else "") + str(hf.chat_template)
    reward = random_process_reward(hf, format=StepFormat(split="\n\n", separator="#"), width=16)
    ids = reward.reading(Rollout.from_text("?", "5")).ids
    assert ids.count(bos) == int(adds or writes)
    assert (ids[0] == bos) == (adds or writes)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def folder(path: Path, tokenizer: PreTrainedTokenizerBase, *, labels: int = 2) -> Path:
    """Config and tokenizer without any weight: what is refused here is refused before weights are looked for."""
    module = random_process_reward(byte_tokenizer(), width=16, layers=1).transformer.module
    module.config.num_labels = labels
    module.config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


BAD_TOKENS = [
    (QWEN_MATH_PRM, r"separator '<extra_0>' is not one token"),
    (QWEN_MATH_PRM.replace(separator="#"), r"id 151651.*has it as 2\b"),
    (MATH_SHEPHERD.replace(separator="#", separator_id=None), r"right ' \+' is not one token"),
    (RLHFLOW_PRM.replace(right_id=11), r"right '\+' as id 11"),
    (RLHFLOW_PRM.replace(wrong="no"), r"wrong 'no' is not one token"),
]


@pytest.mark.parametrize(("format", "message"), BAD_TOKENS)
def test_tokens_that_a_tokenizer_has_not_are_refused_before_weights(
    format: StepFormat, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ProcessReward.from_pretrained(folder(tmp_path, byte_tokenizer()), format=format)


def test_an_unknown_token_is_no_separator() -> None:
    with pytest.raises(ConfigurationError, match="not one token"):
        step_tokens(StepFormat(separator="<unk>"), Tokenizer(sentence_piece(), name="sp"))


def test_tokens_of_the_presets_are_looked_up_in_context() -> None:
    """`▁ки` and `▁+` are tokens that only a text before them shows."""
    hf = sentence_piece()
    found = step_tokens(FAMILIES["Math-Shepherd"].format, Tokenizer(hf, name="sp"))
    assert hf.convert_ids_to_tokens([found.separator, found.right, found.wrong]) == ["▁ки", "▁+", "▁-"]


def test_a_head_of_the_wrong_width_is_refused_before_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"one or two labels.* 3"):
        ProcessReward.from_pretrained(folder(tmp_path, byte_tokenizer(), labels=3))


def test_a_text_beyond_the_limit_is_refused_with_both_numbers() -> None:
    reward = FAMILIES["Qwen2.5-Math-PRM"].reward(format=FAMILIES["Qwen2.5-Math-PRM"].format.replace(max_length=180))
    fits, long = Rollout.from_text(QUESTION, "5"), Rollout.from_text(QUESTION, "5 " * 100)
    length = len(reward.reading(long).ids)
    with pytest.raises(ContextOverflowError, match=rf"{length} tokens.*180"):
        reward.score([fits, long])
    scores = judged(reward, [fits, long])  # as a search asks: only the one is not judged
    assert (scores[0].judged, scores[1].judged) == (True, False)
    assert str(length) in scores[1].explanation
    policy = random_model(tokenizer=separated(), width=16, layers=1)
    rollouts = [written(policy.tokenizer.hf, r.text, policy) for r in (fits, long)]
    assert [g is None for g in reward.bind(policy).gradient(rollouts, [0, 0], [])] == [False, True]


INCONSISTENT = [
    ({"head": "tokens"}, "right and wrong"),
    ({"right": "+", "wrong": "-"}, "right and wrong"),
    ({"head": "tokens", "right": "+"}, "right and wrong"),
    ({"head": "tokens", "right": "+", "wrong": "+"}, "differ"),
    ({"turns": True}, "turns"),
    ({"head": "tokens", "right": "+", "wrong": "-", "turns": True, "separator": "#"}, "turns"),
    ({"glue": "\n"}, "glue"),
    ({"separator_id": 3}, "separator"),
    ({"right_id": 3}, "right_id"),
    ({"prompt": "Q:"}, "question"),
    ({"split": ""}, "split"),
    ({"max_length": 0}, "max_length"),
    ({"tag": "#"}, "tag"),
]


@pytest.mark.untyped
@pytest.mark.parametrize(("settings", "message"), INCONSISTENT, ids=repr)
def test_formats_that_contradict_themselves_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        StepFormat(**settings)


def test_the_presets_say_what_the_model_cards_say() -> None:
    """Ids and texts by hand from the cards and papers; a change here needs a source."""
    assert (QWEN_MATH_PRM.separator, QWEN_MATH_PRM.separator_id, QWEN_MATH_PRM.max_length) == (
        "<extra_0>",
        151651,
        4096,
    )
    assert QWEN_MATH_PRM.system == "Please reason step by step, and put your final answer within \\boxed{}."
    assert (QWEN_MATH_PRM.split, QWEN_MATH_PRM.aggregation) == ("\n\n", "product")
    assert (MATH_SHEPHERD.separator, MATH_SHEPHERD.separator_id, MATH_SHEPHERD.aggregation) == (" ки", 12902, "min")
    assert (MATH_SHEPHERD.right_id, MATH_SHEPHERD.wrong_id) == (648, 387)
    assert (RLHFLOW_PRM.right, RLHFLOW_PRM.wrong, RLHFLOW_PRM.turns, RLHFLOW_PRM.aggregation) == (
        "+",
        "-",
        True,
        "mean",
    )
    assert (SKYWORK_O1_PRM.split, SKYWORK_O1_PRM.prompt, SKYWORK_O1_PRM.apart) == ("\n", "{bos}{question}\n", True)
    assert (TRL_PRM.split, TRL_PRM.separator, TRL_PRM.head) == ("\n", None, "classes")


def test_a_cut_answer_is_judged_up_to_where_it_was_cut() -> None:
    made = FAMILIES["Qwen2.5-Math-PRM"]
    reward = made.reward()
    cut = Rollout(Rollout.from_text(QUESTION, "").prompt, (), "So.\n\nIt i", finish_reason=FinishReason.LENGTH)
    got = [(s.value + 1) / 2 for s in reward.score([cut])[0].spans]
    assert got == pytest.approx(made.truth(reward, ["So.", "It i"]), abs=1e-5)
