"""Reward models with a score head: every value against plain transformers on ids that are written out by hand."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from nabla_agents import (
    ConfigurationError,
    FinishReason,
    LanguageModel,
    Message,
    ModelLoadError,
    OutcomeReward,
    ProcessReward,
    Rollout,
)
from nabla_agents.rewards.learned.golden import SelfTested
from nabla_agents.testing import (
    byte_tokenizer,
    random_model,
    random_outcome_reward,
    random_process_reward,
    word_tokenizer,
)

WORDS = ["a", "b", "c", ".", ";", "\n", "\n\n"]
A, B, C, DOT, SEMICOLON, BREAK, BREAKS = range(7)
TOKENIZER = word_tokenizer(WORDS)
EOS = int(TOKENIZER.convert_tokens_to_ids("<eos>"))
ARCHITECTURES = ["qwen2", "llama"]


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return random_model(tokenizer=TOKENIZER, width=16, layers=1)


def completed(
    prompt_from: LanguageModel, ids: Sequence[int], question: str | Sequence[Message] = "ab", *, ended: bool = True
) -> Rollout:
    """A completion of these tokens, closed by one <eos> or cut by the length."""
    prompt = prompt_from.prompt(question)
    tokenizer = prompt_from.tokenizer
    eos = tokenizer.eos_id
    assert eos is not None
    return Rollout(
        prompt,
        (*ids, eos) if ended else tuple(ids),
        tokenizer.decode(ids),
        finish_reason=FinishReason.STOP if ended else FinishReason.LENGTH,
    )


def plain_logits(reward: SelfTested, ids: Sequence[int]) -> torch.Tensor:
    """What the transformers model itself says about these ids, one sequence without cache or padding."""
    with torch.no_grad():
        return reward.transformer.module(input_ids=torch.tensor([list(ids)])).logits[0].double()


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@contextmanager
def tokens_read(reward: SelfTested) -> Iterator[list[int]]:
    """Every token that the model embeds, in order, for one rollout at a time."""
    read: list[int] = []
    embedding = reward.transformer.module.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0].flatten().tolist()))
    try:
        yield read
    finally:
        hook.remove()


def step_probabilities(logits: torch.Tensor, positions: Sequence[int]) -> list[float]:
    """P(right) by hand: the sigmoid of one label, or the softmax's second of two."""
    rows = [[float(x) for x in logits[p]] for p in positions]
    return [1 / (1 + math.exp(-row[0] if len(row) == 1 else row[0] - row[1])) for row in rows]


AGGREGATE = {"min": min, "mean": lambda p: sum(p) / len(p), "product": math.prod, "last": lambda p: p[-1]}


# ── process rewards ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_step_scores_and_their_aggregates_equal_plain_transformers(
    policy: LanguageModel, architecture: Any, labels: int
) -> None:
    """Ragged rollouts in one batch; steps end at the line break and, where something follows, at the end."""
    cases = [
        ([A, B, BREAK, C, BREAK], [2, 4]),
        ([A, BREAK, B, BREAK, C, A, B], [1, 3, 6]),
        ([C], [0]),
        ([A, B, C, A, B, C, BREAK], [6]),
    ]
    rollouts = [completed(policy, ids, "abc"[: i + 1]) for i, (ids, _) in enumerate(cases)]
    for aggregation, combine in AGGREGATE.items():
        reward = random_process_reward(
            TOKENIZER, architecture, width=16, labels=labels, aggregation=aggregation, seed=labels
        ).bind(policy)
        expected = []
        for rollout, (ids, ends) in zip(rollouts, cases, strict=True):
            logits = plain_logits(reward, [*rollout.prompt.ids, *ids, EOS])  # type: ignore[arg-type]
            expected.append(combine(step_probabilities(logits, [len(rollout.prompt.ids) + e for e in ends])))
        scores = reward.score(rollouts)
        assert [s.value for s in scores] == pytest.approx(expected, abs=1e-5)
        assert [s.usage.reward_calls for s in scores] == [1] * 4
        assert (len({round(v, 3) for v in expected}), all(0 < v < 1 for v in expected)) == (4, True)


# completion tokens, separator, last token of each step, character ranges of the steps
STEPS = [
    ([A, DOT, B, DOT], ".", [1, 3], [(0, 2), (2, 4)]),  # trailing
    ([A, DOT, B], ".", [1, 2], [(0, 2), (2, 3)]),  # the last step is not closed
    ([A, B], ".", [1], [(0, 2)]),  # absent
    ([A, DOT, DOT, B], ".", [1, 3], [(0, 2), (2, 4)]),  # doubled: nothing lies between
    ([DOT, A, DOT], ".", [2], [(0, 3)]),  # leading
    ([A, DOT, BREAK, B], ".", [1, 3], [(0, 2), (2, 4)]),
    ([A, BREAKS, B], "\n", [1, 2], [(0, 2), (2, 4)]),  # doubled within one token: scored once
    ([A, BREAKS, B], "\n\n", [1, 2], [(0, 3), (3, 4)]),
    ([A, BREAK, BREAK, B, BREAK], "\n\n", [2, 4], [(0, 3), (3, 5)]),  # one separator over two tokens
    ([A, BREAK, B], "\n\n", [2], [(0, 3)]),
    ([A, DOT, SEMICOLON, DOT, B], ".;.", [3, 4], [(0, 4), (4, 5)]),
    ([A, DOT, SEMICOLON, DOT, SEMICOLON, DOT, B], ".;.", [3, 6], [(0, 4), (4, 7)]),  # overlapping ones do not count
]


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
@pytest.mark.parametrize(("ids", "separator", "ends", "ranges"), STEPS, ids=repr)
def test_steps_end_at_separators(
    policy: LanguageModel,
    ids: list[int],
    separator: str,
    ends: list[int],
    ranges: list[tuple[int, int]],
    ended: bool,
) -> None:
    reward = random_process_reward(TOKENIZER, width=16, layers=1, separator=separator).bind(policy)
    rollout = completed(policy, ids, ended=ended)
    logits = plain_logits(reward, [*rollout.prompt.ids, *ids])  # type: ignore[arg-type]
    probabilities = step_probabilities(logits, [len(rollout.prompt.ids) + e for e in ends])
    [score] = reward.score([rollout])
    assert score.value == pytest.approx(math.prod(probabilities), abs=1e-5)
    assert [(s.start, s.end) for s in score.spans] == ranges
    assert [s.value for s in score.spans] == pytest.approx([2 * p - 1 for p in probabilities], abs=1e-5)
    assert {s.credit for s in score.spans} == {0.0}  # a learned score steers by its gradient, not by located verdicts


@pytest.mark.parametrize("ids", [[], [BREAK], [BREAKS, BREAK]], ids=repr)
def test_a_completion_without_a_step_is_not_judged(policy: LanguageModel, ids: list[int]) -> None:
    reward = random_process_reward(TOKENIZER, width=16, layers=1).bind(policy)
    [score] = reward.score([completed(policy, ids)])
    assert math.isnan(score.value)
    assert "no step" in score.explanation


def test_a_completion_that_ends_in_half_a_character_is_judged() -> None:
    """The length may cut a character of several tokens; its bytes are text of the last step."""
    tokenizer = byte_tokenizer()
    policy = random_model(tokenizer=tokenizer, width=16, layers=1)
    reward = random_process_reward(tokenizer, width=16, layers=1).bind(policy)
    for text, kept in (("a\nbé", -1), ("é", -1), ("a\n€", -2)):
        ids = encoded(tokenizer, text)[:kept]
        rollout = completed(policy, ids, ended=False)
        [score] = reward.score([rollout])
        steps = text.count("\n") + 1
        assert len(score.spans) == steps
        logits = plain_logits(reward, [*rollout.prompt.ids, *ids])  # type: ignore[arg-type]
        ends = [len(rollout.prompt.ids) + text.encode().index(b"\n")] if steps == 2 else []
        assert score.value == pytest.approx(math.prod(step_probabilities(logits, [*ends, len(logits) - 1])), abs=1e-5)
        assert reward.gradient([rollout], [0], []) != [None]


# ── outcome rewards ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outcome_scores_equal_plain_transformers(policy: LanguageModel, architecture: Any) -> None:
    reward = random_outcome_reward(TOKENIZER, architecture, width=16).bind(policy)
    cases = [([A, B, C], True), ([], True), ([C, C, BREAK, A], False), ([B], False)]
    rollouts = [completed(policy, ids, ended=ended) for ids, ended in cases]
    expected = [float(plain_logits(reward, [*r.prompt.ids, *r.completion_ids])[0]) for r in rollouts]  # type: ignore[arg-type]
    assert [s.value for s in reward.score(rollouts)] == pytest.approx(expected, abs=1e-5)
    assert [reward.score([r])[0].value for r in rollouts] == pytest.approx(expected, abs=1e-5)
    assert len({round(v, 3) for v in expected}) == 4


def test_an_empty_completion_has_no_outcome(policy: LanguageModel) -> None:
    reward = random_outcome_reward(TOKENIZER, width=16, layers=1).bind(policy)
    empty, full = completed(policy, [], ended=False), completed(policy, [A])
    scores = reward.score([empty, full])
    assert (scores[0].judged, scores[1].judged) == (False, True)
    assert "empty" in scores[0].explanation
    assert scores[1].value == pytest.approx(reward.score([full])[0].value, abs=1e-5)


# ── what the model reads ──────────────────────────────────────────────────────────────────────────────────────────────


CONVERSATION = [
    Message("system", "c"),
    Message("user", "ab"),
    Message("assistant", "b"),
    Message("user", "ca"),
]


@pytest.mark.parametrize("make", [random_process_reward, random_outcome_reward])
def test_system_prompt_and_every_turn_reach_the_reward(policy: LanguageModel, make: Any) -> None:
    reward = make(TOKENIZER, width=16, layers=1).bind(policy)
    rollout = completed(policy, [A, B], CONVERSATION)
    text = "<system>c<eos><user>ab<eos><assistant>b<eos><user>ca<eos><assistant>ab<eos>"
    with tokens_read(reward) as read:
        reward.score([rollout])
    assert read == encoded(TOKENIZER, text) == [*rollout.prompt.ids, *rollout.completion_ids]


def test_the_reward_reads_a_conversation_in_its_own_template(policy: LanguageModel) -> None:
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + ';' }}{% endfor %}."
    reward = random_outcome_reward(tokenizer, width=16, layers=1).bind(policy)
    assert reward.gradient([completed(policy, [A])], [0], []) != [None]  # the same vocabulary: it steers
    with tokens_read(reward) as read:
        reward.score([completed(policy, [A, B], CONVERSATION)])
    assert read == encoded(tokenizer, "c;ab;b;ca;.ab<eos>")


def test_without_a_template_the_reward_reads_the_prompt_as_the_policy_does(policy: LanguageModel) -> None:
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = None
    reward = random_outcome_reward(tokenizer, width=16, layers=1).bind(policy)
    rollout = completed(policy, [A, B], CONVERSATION)
    with tokens_read(reward) as read:
        reward.score([rollout])
    assert read == [*rollout.prompt.ids, *rollout.completion_ids]


def test_tools_in_the_prompt_reach_a_reward_of_the_same_template() -> None:
    tools = "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    template = tools + "{% for m in messages %}{{ m.content }}{% endfor %}."
    tokenizers = [word_tokenizer(WORDS), word_tokenizer(WORDS)]
    for tokenizer in tokenizers:
        tokenizer.chat_template = template
    policy = random_model(tokenizer=tokenizers[0], width=16, layers=1)
    prompt = policy.prompt("ab", tools=[{"type": "function", "function": {"name": "cc", "parameters": {}}}])
    assert prompt.text == "cc;ab."
    reward = random_outcome_reward(tokenizers[1], width=16, layers=1).bind(policy)
    with tokens_read(reward) as read:
        reward.score([Rollout(prompt, (A, EOS), "a")])
    assert read == encoded(tokenizers[1], "cc;ab.a<eos>")


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
@pytest.mark.parametrize("other", [False, True], ids=["same vocabulary", "another vocabulary"])
def test_an_answer_that_ended_has_one_terminal_token_and_one_that_was_cut_has_none(
    policy: LanguageModel, other: bool, ended: bool
) -> None:
    tokenizer = byte_tokenizer() if other else TOKENIZER
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reward = random_outcome_reward(tokenizer, width=16, layers=1).bind(policy)
    with tokens_read(reward) as read:
        reward.score([completed(policy, [A, BREAK, B], ended=ended)])
    prompt = encoded(tokenizer, "<user>ab<eos><assistant>")
    assert read[: len(prompt)] == prompt
    assert read[len(prompt) :] == encoded(tokenizer, "a\nb" + "<eos>" * ended)


@pytest.mark.parametrize("make", [random_process_reward, random_outcome_reward])
def test_a_reward_of_another_vocabulary_scores_the_text_and_says_that_it_cannot_steer(
    policy: LanguageModel, make: Any
) -> None:
    """The ids of the language model mean other tokens to the reward: 0 is `a` here and a control byte there."""
    reward = make(byte_tokenizer(), width=16, min_coverage=1.0)  # `\n\n` is two tokens there
    with pytest.warns(UserWarning, match="different vocabularies") as caught:
        bound = reward.bind(policy)
    assert len(caught) == 1
    rollouts = [completed(policy, [A, BREAK, B, C]), completed(policy, [C, BREAK], CONVERSATION)]
    texts = [Rollout(r.prompt, (), r.text, finish_reason=r.finish_reason) for r in rollouts]
    by_hand = []
    for rollout in rollouts:
        ids = encoded(reward.tokenizer.hf, rollout.prompt.text + rollout.text + "<eos>")
        logits = plain_logits(reward, ids)
        if make is random_outcome_reward:
            by_hand.append(float(logits[0]))
        else:
            start = len(encoded(reward.tokenizer.hf, rollout.prompt.text))
            ends = [start + i for i, c in enumerate(rollout.text) if c == "\n"]
            ends += [len(ids) - 2] if not rollout.text.endswith("\n") else []
            by_hand.append(math.prod(step_probabilities(logits, ends)))
    assert [s.value for s in bound.score(rollouts)] == pytest.approx(by_hand, abs=1e-5)
    assert [s.value for s in bound.score(texts)] == pytest.approx(by_hand, abs=1e-5)
    assert bound.gradient(rollouts, [0, 0], []) == [None, None]


def test_the_same_words_with_other_ids_are_read_by_their_text(policy: LanguageModel) -> None:
    reward = random_outcome_reward(word_tokenizer(WORDS[::-1]), width=16, layers=1)
    bound = reward.bind(policy)
    rollout = completed(policy, [A, B])
    ids = encoded(reward.tokenizer.hf, "<user>ab<eos><assistant>ab<eos>")
    assert bound.score([rollout])[0].value == pytest.approx(float(plain_logits(reward, ids)[0]), abs=1e-5)


def test_binding_leaves_the_reward_free_for_another_engine(policy: LanguageModel) -> None:
    reward = random_outcome_reward(TOKENIZER, width=16, layers=1)
    rollout = completed(policy, [A])
    assert reward.bind(policy).gradient([rollout], [0], []) != [None]
    assert reward.gradient([rollout], [0], []) == [None]


def test_a_text_known_without_tokens_is_scored_alike(policy: LanguageModel) -> None:
    reward = random_process_reward(TOKENIZER, width=16, layers=1)
    rollout = completed(policy, [A, BREAK, B])
    from_text = Rollout.from_text("ab", "a\nb")
    [expected] = reward.bind(policy).score([rollout])
    assert reward.score([from_text])[0].value == pytest.approx(expected.value, abs=1e-6)
    assert reward.bind(policy).score([from_text])[0].value == pytest.approx(expected.value, abs=1e-6)


def test_a_stop_string_is_not_read(policy: LanguageModel) -> None:
    """It is in the rollout's ids and not in its text; the answer is a finished one."""
    for make in (random_process_reward, random_outcome_reward):
        reward = make(TOKENIZER, width=16, layers=1).bind(policy)
        stopped = Rollout(policy.prompt("ab"), (A, BREAK, B, DOT, SEMICOLON), "a\nb")
        assert reward.score([stopped])[0].value == pytest.approx(
            reward.score([completed(policy, [A, BREAK, B])])[0].value, abs=1e-6
        )
        [gradient] = reward.gradient([stopped], [0], [])
        assert gradient is not None
        assert gradient.carrier.rows(range(5)).any(-1).tolist() == [True, True, True, False, False]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_head_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"one or two labels.* 3"):
        random_process_reward(TOKENIZER, width=16, layers=1, labels=3)
    two = random_process_reward(TOKENIZER, width=16, layers=1, labels=2).transformer.module
    with pytest.raises(ConfigurationError, match=r"one label.* 2"):
        OutcomeReward(two, TOKENIZER)


def test_a_model_without_a_score_head_is_refused(policy: LanguageModel) -> None:
    with pytest.raises(ModelLoadError, match="score"):
        OutcomeReward(policy.transformer.module, TOKENIZER)


@pytest.mark.untyped
@pytest.mark.parametrize("bad", [{"separator": ""}, *({"aggregation": a} for a in ("median", "softmin", 3))], ids=repr)
def test_settings_of_a_process_reward_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    module = random_process_reward(TOKENIZER, width=16, layers=1).transformer.module
    with pytest.raises(ConfigurationError, match="non-empty separator and one of min, mean, product, last"):
        ProcessReward(module, TOKENIZER, **bad)


@pytest.mark.untyped
@pytest.mark.parametrize("kind", [ProcessReward, OutcomeReward])
def test_a_format_is_a_format_before_anything_is_read(kind: Any) -> None:
    for format in ("QWEN_MATH_PRM", {"split": "a"}, 3):
        with pytest.raises(ConfigurationError, match=f"{kind.__name__} got format"):
            kind.from_pretrained("no/such-model", format=format)


@pytest.mark.parametrize("kind", [ProcessReward, OutcomeReward])
def test_the_embedded_reward_is_no_head_reward(kind: type[ProcessReward] | type[OutcomeReward]) -> None:
    with pytest.raises(ConfigurationError, match="ImplicitReward"):
        kind.from_pretrained("tiny")


def test_loaded_from_a_folder_a_reward_scores_the_same(policy: LanguageModel, tmp_path: Path) -> None:
    rollout = completed(policy, [A, DOT, B])
    process = random_process_reward(TOKENIZER, "llama", width=16, layers=1, separator=".", aggregation="min")
    outcome = random_outcome_reward(TOKENIZER, "llama", width=16, layers=1)
    for reward, folder in ((process, tmp_path / "process"), (outcome, tmp_path / "outcome")):
        reward.transformer.module.save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
    loaded = ProcessReward.from_pretrained(tmp_path / "process", separator=".", aggregation="min")
    assert loaded.bind(policy).score([rollout])[0].value == pytest.approx(
        process.bind(policy).score([rollout])[0].value, abs=1e-6
    )
    assert OutcomeReward.from_pretrained(tmp_path / "outcome").bind(policy).score([rollout])[0].value == pytest.approx(
        outcome.bind(policy).score([rollout])[0].value, abs=1e-6
    )
