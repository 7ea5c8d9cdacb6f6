"""Two vocabularies: a token of one is matched by its bytes to the one token of the other that stands for the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.rewards.learned.alignment import Alignment, token_contents
from nabla_agents.testing import byte_tokenizer, word_tokenizer
from tests.rewards.learned.answers import sentence_piece

WORDS = ["a", "b", "cd", "efg", "h", ".", "\n"]


def tokens(words: Sequence[str]) -> Tokenizer:
    return Tokenizer(word_tokenizer(words), name="words")


def between(ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast) -> Alignment:
    return Alignment.between(Tokenizer(ours, name="ours"), Tokenizer(theirs, name="theirs"), len(ours))


def pieces() -> PreTrainedTokenizerFast:
    return sentence_piece("▁ab", [("▁", "a"), ("a", "b")])


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
    counterparts = between(ours, theirs).counterparts
    assert counterparts is not None
    assert counterparts.tolist()[:2] == [0, -1]


def test_ends_of_sequence_are_each_others_counterpart_whatever_they_are_called() -> None:
    ours, theirs = word_tokenizer(WORDS), word_tokenizer(WORDS)
    theirs.add_special_tokens({"eos_token": "<stop>"})
    [eos, stop] = int(ours.eos_token_id or 0), int(theirs.eos_token_id or 0)
    by_name = between(ours, theirs)
    assert by_name.counterpart(eos) == eos != stop  # <eos> is a special token there too
    back = between(theirs, ours)
    assert back.counterpart(stop) == eos


def test_a_token_that_several_could_stand_for_has_no_counterpart() -> None:
    theirs = pieces()
    theirs.add_tokens([" "])  # a space of its own, beside `▁`
    [space, a] = byte_tokenizer()(" a").input_ids
    made = between(byte_tokenizer(), theirs)
    assert (made.counterpart(space), made.counterpart(a)) == (-1, theirs.convert_tokens_to_ids("a"))


def test_byte_level_and_sentence_piece_tokens_meet_in_their_bytes() -> None:
    """A space is `Ġ` here and `▁` there, a line break `Ċ` and `<0x0A>`; `é` is two bytes in both."""
    ours, theirs = byte_tokenizer(), pieces()
    counterparts = between(ours, theirs).counterparts
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
