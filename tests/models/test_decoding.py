"""Rollouts: exact against the full forward pass, against transformers' own greedy decoding, and in distribution."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from nabla_agents import Engine, FinishReason, Greedy, Sampling
from nabla_agents.testing import byte_tokenizer, random_model

# Prompts, prefixes and lengths that differ from row to row, so that rows are padded and leave the batch one by one.
RAGGED = (
    ("ab", "", 10),
    ("abcdefgh", "cdab", 14),
    ("i", "efg", 4),
    ("hhiiab\ncdcdcd\n", "", 1),
    ("cd", "aaaaaaaab", 13),
    ("efghi", "b", 7),
)


@pytest.mark.parametrize("cached", [False, True, None], ids=["no-cache", "prompt-cache", "some-cached"])
def test_log_probs_of_a_ragged_batch_are_those_of_a_full_forward(model, job, full_logits, cached) -> None:
    jobs = [
        job(model, prompt, prefix, max_tokens=n, seed=i, cached=i % 2 == 0 if cached is None else cached)
        for i, (prompt, prefix, n) in enumerate(RAGGED)
    ]
    found = model.rollout(jobs)
    assert len({len(r.completion_ids) for r in found}) > 2
    for asked, rollout in zip(jobs, found, strict=True):
        assert rollout.completion_ids[: len(asked.prefix_ids)] == asked.prefix_ids
        log_p = full_logits(model, rollout.prompt, rollout.completion_ids).log_softmax(-1)
        expected = log_p.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
        assert torch.allclose(rollout.log_probs.float(), expected, atol=1e-4)


@pytest.mark.parametrize("cached", [False, True])
def test_a_rollout_is_the_same_alone_and_in_any_batch_in_any_order(model, job, cached) -> None:
    jobs = [
        job(model, prompt, prefix, max_tokens=n, seed=i, cached=cached, temperature=(0, 0.7, 1.5)[i % 3], top_k=8 - i)
        for i, (prompt, prefix, n) in enumerate(RAGGED)
    ]
    together, backwards = model.rollout(jobs), model.rollout(jobs[::-1])[::-1]
    alone = [model.rollout([j])[0] for j in jobs]
    for one, many, reverse in zip(alone, together, backwards, strict=True):
        assert one.completion_ids == many.completion_ids == reverse.completion_ids
        assert one.text == many.text
        assert torch.allclose(one.log_probs, many.log_probs, atol=1e-4)
    assert len({r.completion_ids for r in alone}) > 3


def test_a_prefix_cache_changes_neither_text_nor_log_probs_and_is_never_written_to(model, job) -> None:
    """One prompt is rolled out four times from one cache; on sliding attention the text is longer than the window."""
    prompt = model.prompt("abcd")
    jobs = [job(model, prompt, "ab"[: i % 3], seed=i) for i in range(4)]
    cold = model.rollout(jobs)
    model.read_prompts([prompt])
    cache = model.prefix(prompt)
    assert cache is not None
    before = [(k.clone(), v.clone()) for k, v in cache.layers]
    warm = model.rollout(jobs)
    for a, b in zip(cold, warm, strict=True):
        assert a.completion_ids == b.completion_ids
        assert torch.allclose(a.log_probs, b.log_probs, atol=1e-4)
    for (k, v), (old_k, old_v) in zip(cache.layers, before, strict=True):
        assert torch.equal(k, old_k)
        assert torch.equal(v, old_v)


def test_a_prefix_cache_within_the_window_saves_the_prompt(model, job) -> None:
    """Prompt `<user>a<eos><assistant>` and one token: 5 tokens in a window of 6; only the last known one is read."""
    [cold] = model.rollout([job(model, "a", max_tokens=1)])
    [warm] = model.rollout([job(model, "a", max_tokens=1, cached=True)])
    assert (cold.usage.prefill_tokens, warm.usage.prefill_tokens) == (4, 1)


@pytest.mark.parametrize("prompt", ["ab", "abcdefghi\nab"])
def test_greedy_is_the_greedy_of_transformers(model, job, prompt) -> None:
    [found] = model.rollout([job(model, prompt, max_tokens=20, temperature=0)])
    ids = torch.tensor([found.prompt.ids])
    eos = model.tokenizer.eos_id
    expected = model.transformer.module.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, pad_token_id=eos
    )
    assert found.completion_ids == tuple(expected[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.7, "top_p": 0.95}, {"temperature": 1.4, "top_k": 7, "min_p": 0.02}],
    ids=["as-it-is", "top-p", "top-k-and-min-p"],
)
def test_sampled_pairs_of_tokens_have_the_exact_distribution(qwen, job, full_logits, sampling) -> None:
    """Chi-square of 800 rollouts of two tokens; each case raises a false alarm once in 10 000 seeds."""
    n, prompt = 800, qwen.prompt("ab")
    found = qwen.rollout([job(qwen, prompt, max_tokens=2, seed=i, **sampling) for i in range(n)])
    counts = Counter(r.completion_ids for r in found)
    expected = _exact(qwen, prompt, full_logits, sampling)
    assert set(counts) <= set(expected)
    rare = [pair for pair, p in expected.items() if n * p < 5]
    cells = [(counts[pair], n * p) for pair, p in expected.items() if pair not in rare]
    if rare:
        cells.append((sum(counts[pair] for pair in rare), n * sum(expected[pair] for pair in rare)))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    tail = torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2.0), torch.tensor(statistic / 2))
    assert len(cells) > 9
    assert tail > 1e-4


def _exact(model, prompt, full_logits, sampling) -> dict[tuple[int, ...], float]:
    """Probability of every pair, by transformers' logits and warpers; eos has no second token."""

    def row(before: tuple[int, ...]) -> list[float]:
        logits = full_logits(model, prompt, (*before, 0))[-1:] / sampling.get("temperature", 1.0)
        if "top_k" in sampling:
            logits = TopKLogitsWarper(sampling["top_k"])(None, logits)
        if "top_p" in sampling:
            logits = TopPLogitsWarper(sampling["top_p"])(None, logits)
        if "min_p" in sampling:
            logits = MinPLogitsWarper(sampling["min_p"])(None, logits)
        return logits.double().softmax(-1)[0].tolist()

    exact: dict[tuple[int, ...], float] = {}
    for first, p in enumerate(row(())):
        if first in model.eos_ids:
            exact[(first,)] = p
        elif p:
            exact |= {(first, second): p * q for second, q in enumerate(row((first,))) if q}
    assert sum(exact.values()) == pytest.approx(1)
    return {pair: p for pair, p in exact.items() if p}


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_stop_string_ends_the_text_where_it_first_occurs(qwen, job) -> None:
    """Every piece of a known text as stop string: within one token, over several, from the middle of one to the middle
    of another. By brute force: the text before it, and the shortest list of tokens that holds it.
    """
    plain = qwen.rollout([job(qwen, "ab", max_tokens=12, seed=s, temperature=1.2) for s in range(30)])
    whole = max(plain, key=lambda r: len(r.text))
    seed, text, ids = plain.index(whole), whole.text, whole.completion_ids
    pieces = sorted({text[i:j] for i in range(len(text)) for j in range(i + 1, min(len(text), i + 9) + 1)})
    assert len(text) > len(ids) > 8  # some tokens have several characters
    found = qwen.rollout([job(qwen, "ab", max_tokens=12, seed=seed, temperature=1.2, stop=s) for s in pieces])
    for stop, rollout in zip(pieces, found, strict=True):
        shortest = next(n for n in range(1, len(ids) + 1) if stop in qwen.tokenizer.decode(ids[:n]))
        assert rollout.text == text[: text.index(stop)], stop
        assert rollout.completion_ids == ids[:shortest], stop
        assert rollout.finish_reason is FinishReason.STOP


def test_a_stop_string_in_the_very_first_token_leaves_an_empty_text(qwen, job) -> None:
    [plain] = qwen.rollout([job(qwen, "ab", max_tokens=3, temperature=0)])
    [found] = qwen.rollout([job(qwen, "ab", max_tokens=3, temperature=0, stop=plain.text[0])])
    assert (found.text, found.completion_ids) == ("", plain.completion_ids[:1])


def test_the_earliest_of_several_stop_strings_counts(qwen, job) -> None:
    """`cda` ends the row, because it is complete first; but `cd` of another stop string begins no later in the text."""
    prefix = qwen.tokenizer.encode("abcda")
    [found] = qwen.rollout([job(qwen, "ab", prefix, stop=("da", "bcd", "zzz"))])
    assert (found.text, found.usage.generated_tokens) == ("a", 0)


def test_a_stop_string_may_begin_in_the_given_prefix(qwen, job) -> None:
    [plain] = qwen.rollout([job(qwen, "ab", "cdefg", max_tokens=6, temperature=0)])
    stop = "fg" + plain.text[len("cdefg")]
    needed = next(n for n in range(1, 5) if stop in qwen.tokenizer.decode(plain.completion_ids[: 2 + n]))
    [found] = qwen.rollout([job(qwen, "ab", "cdefg", max_tokens=6, temperature=0, stop=stop)])
    assert (found.text, found.usage.generated_tokens) == ("cde", needed)


def test_a_stop_string_that_is_never_written_changes_nothing(qwen, job) -> None:
    plain, stopped = qwen.rollout([job(qwen), job(qwen, stop="aaaaaaaaaaaaaaaaaaaaaaaa")])
    assert (plain.text, plain.completion_ids) == (stopped.text, stopped.completion_ids)


def test_a_stop_string_of_characters_that_are_several_tokens_each_is_found(job) -> None:
    """Each byte is a token: `€→` takes six."""
    model = random_model(tokenizer=byte_tokenizer(), context_length=128)
    [found] = model.rollout([job(model, "ab", "price 5 €→ more", max_tokens=40, stop="€→")])
    assert found.text == "price 5 "


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_a_terminal_token_ends_a_rollout_stands_once_and_is_not_in_the_text(model, job, temperature) -> None:
    found = model.rollout([job(model, "ab", max_tokens=12, seed=s, temperature=temperature) for s in range(40)])
    ended = [r for r in found if r.finish_reason is FinishReason.STOP]
    assert 0 < len(ended) < 40
    for rollout in found:
        terminal = [i for i, token in enumerate(rollout.completion_ids) if token in model.eos_ids]
        assert terminal == ([len(rollout.completion_ids) - 1] if rollout in ended else [])
        assert len(rollout.completion_ids) == (12 if rollout not in ended else len(rollout.log_probs))
        assert "<eos>" not in rollout.text


def test_a_prefix_that_ends_with_a_terminal_token_is_a_whole_completion(qwen, job) -> None:
    prefix = (*qwen.tokenizer.encode("ab"), qwen.tokenizer.eos_id)
    [found] = qwen.rollout([job(qwen, "ab", prefix)])
    assert (found.completion_ids, found.text, found.finish_reason) == (prefix, "ab", FinishReason.STOP)
    assert (found.usage.generated_tokens, len(found.log_probs)) == (0, 3)


def test_a_prefix_of_max_tokens_is_cut_by_length(qwen, job) -> None:
    [found] = qwen.rollout([job(qwen, "ab", "abcd", max_tokens=3)])
    assert (found.text, found.finish_reason, found.usage.generated_tokens) == ("abcd", FinishReason.LENGTH, 0)


def test_no_jobs_are_no_rollouts(qwen) -> None:
    assert qwen.rollout([]) == []


@pytest.fixture
def endless():
    """A model that hardly ever ends by itself, with room for 20 tokens."""
    model = random_model(vocabulary=("a", "b"), context_length=20, seed=3)
    with torch.no_grad():
        head = model.transformer.module.get_output_embeddings().weight
        head[model.tokenizer.eos_id] = -head[:2].mean(0)
    return model


@pytest.mark.parametrize("asked", ["a", "a" * 10, "a" * 16])
def test_without_max_tokens_a_completion_fills_the_context_to_its_last_position(endless, full_logits, asked) -> None:
    """The longest prompt leaves room for one token: 16 characters, 3 markers, 1 = 20."""
    result = Engine(model=endless, strategy=Greedy()).generate(asked, sampling=Sampling(max_tokens=None))
    prompt = endless.prompt(asked)
    assert (result.finish_reason, result.truncated) == (FinishReason.LENGTH, True)
    assert len(prompt.ids) + len(result.token_ids) == 20
    assert tuple(full_logits(endless, prompt, result.token_ids).argmax(-1).tolist()) == result.token_ids


def test_max_tokens_beyond_the_context_is_the_context(endless) -> None:
    result = Engine(model=endless, strategy=Greedy()).generate("aa", sampling=Sampling(max_tokens=1000))
    assert result.prompt_tokens + len(result.token_ids) == 20


# ── joining a batch that is being written ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("cached", [False, True])
def test_jobs_that_join_later_are_written_as_alone(model, job, cached, every) -> None:
    """One more row every so many steps, into a batch whose rows have other lengths, and drafts, some of them right."""
    if model.transformer.sliding_window is not None:
        pytest.skip("rows of a sliding window do not join")
    jobs = [
        job(model, prompt, prefix, max_tokens=n, seed=i, cached=cached) for i, (prompt, prefix, n) in enumerate(RAGGED)
    ]
    alone = [model.rollout([one])[0] for one in jobs]
    drafted = [
        replace(one, draft=tuple(r.completion_ids[len(one.prefix_ids) :][: 3 * i]))
        for i, (one, r) in enumerate(zip(jobs, alone, strict=True))
    ]
    decoding, rows = model.decoding(), []
    for one in drafted:
        rows += decoding.add([one])
        for _ in range(every):
            decoding.step()
    while decoding:
        decoding.step()
    for row, expected in zip(rows, alone, strict=True):
        found = decoding.finished(row)
        assert found.completion_ids == expected.completion_ids
        assert found.finish_reason == expected.finish_reason
        assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-4)


def test_places_that_are_padding_in_every_row_are_dropped_when_rows_join(model, job) -> None:
    """A long row has gone: the next ones do not carry its length along."""
    if model.transformer.sliding_window is not None:
        pytest.skip("rows of a sliding window do not join")
    decoding = model.decoding()
    decoding.add([job(model, "abcdefghabcdefghabcdefgh", "", max_tokens=2), job(model, "ab", "", max_tokens=9)])
    while len(decoding) > 1:
        decoding.step()
    decoding.add([job(model, "cd", "", max_tokens=9)])
    context = decoding._context
    assert context is not None
    assert context.mask.shape[1] == int(context.lengths.max())
    assert context.mask.any(0).all()
