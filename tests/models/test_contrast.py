"""Rows of a contrast against log-softmaxes of plain forward passes, in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from nabla_agents import Contrast, LanguageModel, Rollout, Usage, VocabularyMismatchError
from nabla_agents.functional import HEAD_CHUNK
from nabla_agents.models.contrast import check_same_tokens, readings
from nabla_agents.testing import random_model

WORDS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def models() -> tuple[LanguageModel, LanguageModel]:
    """A small model and a larger one of another architecture, of one vocabulary, in float64."""
    return (
        random_model("qwen2", vocabulary=WORDS, width=16, seed=1, dtype=torch.float64),
        random_model("llama", vocabulary=WORDS, width=32, seed=2, dtype=torch.float64),
    )


def log_probs(model: LanguageModel, prompt: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """[time, vocab] by one plain forward pass."""
    with torch.no_grad():
        logits = model.transformer.module(input_ids=torch.tensor([[*prompt.ids, *ids]])).logits[0]
    return logits[len(prompt.ids) - 1 : -1].log_softmax(-1)


def completion(model: LanguageModel, question: str, ids: tuple[int, ...]) -> Rollout:
    return Rollout(model.prompt(question), ids, model.tokenizer.decode(ids))


@pytest.mark.parametrize("floor", [None, 2.0])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_rows_are_the_difference_of_both_log_softmaxes(models: Any, beta: float, floor: float | None) -> None:
    """Of a model behind one prompt, and of another behind another."""
    small, large = models
    ids = (0, 3, 3, 1, 4, 2)
    a, b = completion(large, "ab", ids), completion(small, "edcba", ids)
    [(first, _), (second, _)] = readings([a, b], [large, small])
    contrast = Contrast(first, second, beta, floor)
    rows = [log_probs(large, a.prompt, ids), log_probs(small, b.prompt, ids)]
    if floor is not None:
        assert min(float(row.min()) for row in rows) < -floor
        rows = [row.clamp_min(-floor) for row in rows]
    expected = beta * (rows[0] - rows[1])
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(contrast.rows([0, 5, 2]), expected[[0, 5, 2]], atol=1e-9)
    own = expected.gather(-1, torch.tensor(ids)[:, None])[:, 0]
    assert torch.allclose(contrast.written(ids), own, atol=1e-9)


def test_what_is_written_is_looked_up_a_chunk_at_a_time(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of every row is made for a long text."""
    small, large = models
    ids = (0, 3, 1) * 43
    rollout = completion(small, "ab", ids)
    [(first, _), (second, _)] = readings([rollout, rollout], [large, small])
    expected = (log_probs(large, rollout.prompt, ids) - log_probs(small, rollout.prompt, ids))[range(len(ids)), ids]
    sizes: list[int] = []
    head = LanguageModel.head
    monkeypatch.setattr(LanguageModel, "head", lambda self, hidden: [sizes.append(len(hidden)), head(self, hidden)][1])
    assert torch.allclose(Contrast(first, second).written(ids), expected, atol=1e-9)
    assert max(sizes) == HEAD_CHUNK < len(ids) == sum(sizes) / 2
    assert Contrast(first, second).written([]).tolist() == []


def test_the_same_reading_twice_says_nothing(models: Any) -> None:
    small, _ = models
    rollout = completion(small, "ab", (0, 1, 2))
    [(first, _), (second, _)] = readings([rollout, rollout], [small, small])
    assert not Contrast(first, second).rows(range(3)).any()


def test_many_readings_are_those_of_each_alone_and_the_ledger_is_what_was_read(models: Any) -> None:
    """By two models, behind prompts of different lengths: as rewards' tokens, and a prompt is read once."""
    small, large = models
    texts = [("ab", (0, 1)), ("abcde", (4, 4, 0, 1, 2)), ("c", (3,)), ("ab", (2, 2, 2, 1))]
    read = [completion(small, question, ids) for question, ids in texts]
    read[3] = replace(read[3], prompt=read[0].prompt)
    by = [small, large, small, small]
    alone = [readings([replace(r, prompt=replace(r.prompt))], [m])[0] for r, m in zip(read, by, strict=True)]
    seen = {id(m): 0 for m in models}

    def count(model: LanguageModel) -> Any:
        def before(_: Any, args: Any, kwargs: Any) -> None:
            ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
            seen[id(model)] += ids.shape[0] * ids.shape[1]

        return model.transformer.body.register_forward_pre_hook(before, with_kwargs=True)

    hooks = [count(m) for m in models]
    together = readings(read, by)
    usage = sum((u for _, u in together), Usage())
    assert usage.reward_forward_tokens == sum(seen.values()) > 0
    assert (usage.lm_forward_tokens, usage.reward_backward_tokens, usage.prefill_tokens) == (0, 0, 0)
    expected = sum(2.0 * m.transformer.matrix_parameters * seen[id(m)] for m in models)
    assert usage.flops == pytest.approx(expected, rel=1e-12)
    for (rows, _), (own, _), rollout in zip(together, alone, read, strict=True):
        places = range(len(rollout.completion_ids))
        assert torch.allclose(rows.rows(places), own.rows(places), atol=1e-9)
    before = sum(seen.values())
    readings(read[:1], by[:1])
    for hook in hooks:
        hook.remove()
    assert sum(seen.values()) - before == len(read[0].completion_ids)  # nothing of its prompt but the last token


def test_other_tokens_are_refused(models: Any) -> None:
    other = random_model(vocabulary=WORDS[::-1], width=16)
    with pytest.raises(VocabularyMismatchError, match="compares token by token"):
        check_same_tokens(models[0], other, user="A part", instead="Take another.")
