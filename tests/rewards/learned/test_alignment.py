"""Two vocabularies: the text is the truth for scores, and the gradient goes where a token is one token in both."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from nabla_agents import (
    BestOfN,
    Budget,
    Engine,
    LanguageModel,
    Nabla,
    OutcomeReward,
    ProcessReward,
    Rollout,
    Sampling,
    StepFormat,
)
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.rewards.learned.alignment import Alignment, token_contents
from nabla_agents.testing import (
    byte_tokenizer,
    permuted_tokenizer,
    random_model,
    random_outcome_reward,
    random_process_reward,
    word_tokenizer,
)

WORDS = ["a", "b", "cd", "efg", "h", ".", "\n"]
MAKERS = [random_outcome_reward, random_process_reward]


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return random_model(vocabulary=WORDS, width=16, layers=1, dtype=torch.float64)


def completed(model: LanguageModel, text: str, question: str = "ab") -> Rollout:
    eos = model.tokenizer.eos_id
    assert eos is not None
    return Rollout(model.prompt(question), (*model.tokenizer.encode(text), eos), text)


def tokens(words: Sequence[str]) -> Tokenizer:
    return Tokenizer(word_tokenizer(words), name="words")


def rows(reward: Any, rollout: Rollout) -> torch.Tensor:
    [gradient] = reward.gradient([rollout], [0], [])
    return gradient.carrier.rows(range(len(rollout.completion_ids)))


# ── the map ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_vocabulary_is_the_identity() -> None:
    made = Alignment.between(tokens(WORDS), tokens(WORDS), 12)
    assert (made.counterparts, made.share, made.counterpart(3)) == (None, 1.0, 3)


def test_tokens_are_matched_by_their_bytes_and_special_ones_by_their_name() -> None:
    """7 words, <eos> and 4 roles; of the words `cd` and `efg` are not there, and 2 rows are no tokens at all."""
    reward = tokens(["h", "b", "a", "c", "d", ".", "\n", "<x>"])
    counterparts = Alignment.between(tokens(WORDS), reward, 14).counterparts
    assert counterparts is not None
    assert counterparts.tolist() == [2, 1, -1, -1, 0, 5, 6, 8, 9, 10, 11, 12, -1, -1]
    assert Alignment.between(tokens(WORDS), reward, 14).share == pytest.approx(10 / 12)


def test_a_word_is_not_the_special_token_of_the_same_name() -> None:
    ours, theirs = word_tokenizer(["a", "|end|"]), word_tokenizer(["a", "b"])
    theirs.add_special_tokens({"extra_special_tokens": ["|end|"]}, replace_extra_special_tokens=False)
    counterparts = Alignment.between(Tokenizer(ours, name="o"), Tokenizer(theirs, name="t"), len(ours)).counterparts
    assert counterparts is not None
    assert counterparts.tolist()[:2] == [0, -1]


def test_ends_of_sequence_are_each_others_counterpart_whatever_they_are_called() -> None:
    ours, theirs = word_tokenizer(WORDS), word_tokenizer(WORDS)
    theirs.add_special_tokens({"eos_token": "<stop>"})
    [eos, stop] = int(ours.eos_token_id or 0), int(theirs.eos_token_id or 0)
    by_name = Alignment.between(Tokenizer(ours, name="o"), Tokenizer(theirs, name="t"), len(ours))
    assert by_name.counterpart(eos) == eos != stop  # <eos> is a special token there too
    bare = byte_tokenizer()
    bare.add_special_tokens({"eos_token": "<stop>"})
    back = Alignment.between(Tokenizer(theirs, name="t"), Tokenizer(ours, name="o"), len(theirs))
    assert back.counterpart(stop) == eos


def sentence_piece(*, strip: bool = False) -> PreTrainedTokenizerFast:
    """Llama's way: `▁` for a space, `<0x0A>` for bytes without a token of their own; `strip`: none to begin with."""
    merges = [("▁", "a"), ("a", "b")]
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", *map("".join, merges)]
    raw = RawTokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(" ", "▁")
    stripped = [decoders.Strip(" ", 1, 0)] if strip else []
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )


def test_a_token_that_several_could_stand_for_has_no_counterpart() -> None:
    theirs = sentence_piece()
    theirs.add_tokens([" "])  # a space of its own, beside `▁`
    [space, a] = (Tokenizer(byte_tokenizer(), name="o").encode(t)[0] for t in (" ", "a"))
    made = Alignment.between(Tokenizer(byte_tokenizer(), name="o"), Tokenizer(theirs, name="t"), 261)
    assert (made.counterpart(space), made.counterpart(a)) == (-1, theirs.convert_tokens_to_ids("a"))


def test_the_same_characters_from_another_token_have_no_term() -> None:
    """`▁a` at the beginning of an answer shows as `a`; what the reward reads there is `a`, another token."""
    policy = random_model(tokenizer=sentence_piece(strip=True), width=16, layers=1)
    reward = random_outcome_reward(byte_tokenizer(), width=16, min_coverage=0.0).bind(policy)
    vocabulary = policy.tokenizer.hf.get_vocab()
    ids = (vocabulary["▁a"], vocabulary["b"], vocabulary["▁"], vocabulary["a"])
    assert policy.tokenizer.decode(ids) == "ab a"
    got = rows(reward, Rollout(policy.prompt("b"), ids, "ab a"))
    assert got.any(-1).tolist() == [False, True, True, True]


def test_byte_level_and_sentence_piece_tokens_meet_in_their_bytes() -> None:
    """A space is `Ġ` here and `▁` there, a line break `Ċ` and `<0x0A>`; `é` is two bytes in both."""
    ours, theirs = byte_tokenizer(), sentence_piece()
    counterparts = Alignment.between(Tokenizer(ours, name="o"), Tokenizer(theirs, name="t"), len(ours)).counterparts
    assert counterparts is not None
    vocabulary = theirs.get_vocab()
    for text, piece in ((" ", "▁"), ("a", "a"), ("b", "b"), ("\n", "<0x0A>"), ("z", "<0x7A>")):
        [token] = ours(text).input_ids
        assert int(counterparts[token]) == vocabulary[piece]
    assert [int(counterparts[t]) for t in ours("é").input_ids] == [vocabulary["<0xC3>"], vocabulary["<0xA9>"]]
    contents = token_contents(theirs)
    assert contents[vocabulary["▁a"]] == b" a"
    assert vocabulary["<0x61>"] not in contents  # the byte of `a`, which has a token of its own


def test_tokenizers_of_unknown_make_match_nothing() -> None:
    theirs = word_tokenizer(WORDS[::-1])
    theirs.backend_tokenizer.decoder = decoders.WordPiece()
    counterparts = Alignment.between(tokens(WORDS), Tokenizer(theirs, name="t"), 12).counterparts
    assert counterparts is not None
    assert counterparts[:7].tolist() == [-1] * 7


# ── scores and gradients ──────────────────────────────────────────────────────────────────────────────────────────────


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
    reward = make(word_tokenizer(["\n", ".", "h", "b", "a", *"cdefg"]), width=16, dtype=torch.float64)
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
    reward = random_process_reward(word_tokenizer(["\n", ".", "h", "b", "a", *"cdefg"]), width=16, dtype=torch.float64)
    bound = reward.bind(policy)
    rollouts = [completed(policy, "acdh\nefgb"), completed(policy, "cdefg\nah.\nb")]
    whole = [rows(bound, r) for r in rollouts]
    for starts in ([1, 0], [2, 2], [4, 5]):
        for gradient, full, rollout, start in zip(
            bound.gradient(rollouts, starts, []), whole, rollouts, starts, strict=True
        ):
            assert gradient is not None
            got = gradient.carrier.rows(range(start, len(rollout.completion_ids)))
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
    policy = random_model(vocabulary=["aa", "ab", "ba", "bb", "ac", "bc", "ca", "cb", "cc"], width=16, layers=1)
    reward = make(byte_tokenizer(), width=16)
    with pytest.warns(UserWarning, match=r"different vocabularies.*36%.*does not steer"):
        bound = reward.bind(policy)
    rollout = completed(policy, "aaab", "bb")
    [score] = bound.score([rollout])
    assert score.value == pytest.approx(reward.score([Rollout.from_text("bb", "aaab")])[0].value, abs=1e-6)
    assert score.coverage[0].vocabulary == pytest.approx(5 / 14)
    assert bound.gradient([rollout], [0], []) == [None]
    assert not bound.steers


def test_a_completion_with_too_few_shared_tokens_is_not_steered_and_a_warning_says_so(policy: LanguageModel) -> None:
    """The vocabulary is covered by 10/12, this completion by 2/6 only."""
    reward = random_process_reward(word_tokenizer(["\n", ".", "h", "b", "a", *"cdefg"]), width=16)
    bound = reward.bind(policy)
    rollouts = [completed(policy, "cdefgcdefga"), completed(policy, "ab\nh")]
    with pytest.warns(UserWarning, match="does not steer"):
        gradients = bound.gradient(rollouts, [0, 0], [])
    assert [g is None for g in gradients] == [True, False]
    willing = random_process_reward(
        word_tokenizer(["\n", ".", "h", "b", "a", *"cdefg"]), width=16, min_coverage=0.0
    ).bind(policy)
    assert willing.gradient(rollouts[:1], [0], []) != [None]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_coverage_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="min_coverage"):
        random_outcome_reward(word_tokenizer(WORDS), width=16, min_coverage=share)


# ── in a search ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_coverage_reaches_the_result() -> None:
    policy = random_model(vocabulary=WORDS, width=16, layers=1)
    partly = random_process_reward(word_tokenizer(["\n", ".", "h", "b", "a", *"cdefg"]), width=16, min_coverage=0.0)
    same = random_outcome_reward(policy.tokenizer.hf, width=16)
    engine = Engine(model=policy, reward=partly + 0.5 * same, strategy=Nabla(min_promise=-8.0))
    result = engine.generate("ab", sampling=Sampling(max_tokens=12), budget=Budget(rollouts=4), seed=2)
    assert result.usage.gradient_passes > 0
    first, second = result.coverage
    assert (first.reward, second.reward) == (partly.label, same.label)
    assert first.vocabulary == pytest.approx(10 / 12)
    *inner, last = result.token_ids  # role markers in the middle, which this random model writes, are no text
    shared = sum(t < 7 and t not in (2, 3) for t in (*inner, last)) + (last == policy.tokenizer.eos_id)
    assert first.tokens == pytest.approx(shared / len(result.token_ids))
    assert (second.vocabulary, second.tokens) == (1.0, 1.0)
    assert result.trace[-1].score is not None
    assert result.trace[-1].score.coverage == result.coverage


def test_a_disjoint_reward_still_chooses_the_answer() -> None:
    policy = random_model(vocabulary=["aa", "ab", "ba", "bb", "ac", "bc", "ca", "cb", "cc"], width=16, layers=1)
    reward = random_outcome_reward(byte_tokenizer(), width=16)
    with pytest.warns(UserWarning, match="does not steer"):
        engine = Engine(model=policy, reward=reward, strategy=BestOfN(n=4))
    result = engine.generate("bb", sampling=Sampling(max_tokens=6), seed=1)
    assert result.score is not None
    assert result.score.value == max(s.score.value for s in result.trace if s.score is not None)
    assert Engine(model=policy).generate("bb", sampling=Sampling(max_tokens=2)).coverage == ()


def test_loaded_families_keep_their_coverage_setting(policy: LanguageModel, tmp_path: Any) -> None:
    made: list[tuple[type, Any]] = [
        (ProcessReward, random_process_reward(policy.tokenizer.hf, width=16, format=StepFormat())),
        (OutcomeReward, random_outcome_reward(policy.tokenizer.hf, width=16)),
    ]
    for kind, reward in made:
        reward.transformer.module.save_pretrained(tmp_path / kind.__name__)
        policy.tokenizer.hf.save_pretrained(tmp_path / kind.__name__)
        loaded = kind.from_pretrained(tmp_path / kind.__name__, min_coverage=0.9)  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert loaded.model.min_coverage == 0.9
            assert loaded.bind(policy).steers
