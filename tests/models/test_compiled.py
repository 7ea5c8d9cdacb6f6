"""Compiled passes: what the model says as it is, from programs that serve every batch and length."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor

from nabla_agents import LanguageModel, ModelLoadError, Objective, Rollout, Sampling
from nabla_agents.models.compiled import compile_passes
from nabla_agents.models.decoding import RolloutJob
from nabla_agents.testing import random_model, random_process_reward

WORDS = ("a", "b", "cd", "efg", "h", "i", "\n")
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:torch")  # in what compiles
PROMPTS = ("ab", "cdefghi", "i", "hhabcd", "a\nb")


def compiled(model: LanguageModel) -> LanguageModel:
    module = copy.deepcopy(model.transformer.module)
    compile_passes(module)
    return LanguageModel(module, model.tokenizer.hf)


def jobs(model: LanguageModel, texts: Sequence[tuple[int, ...]] = ()) -> list[RolloutJob]:
    """Completions of different lengths from prompts of different lengths, greedy and sampled; `texts` are guesses of
    them, half right.
    """
    found: list[RolloutJob] = []
    for i, question in enumerate(PROMPTS):
        uniforms = torch.rand(30, generator=torch.Generator().manual_seed(i))
        prefix, draft = (1, 2)[: i % 3], ()
        if texts:
            draft = tuple(t if k % 8 else 5 for k, t in enumerate(texts[i][len(prefix) :], start=1))
        sampling = Sampling(temperature=float(i % 2))
        found.append(RolloutJob(model.prompt(question), prefix, sampling, 12 + 4 * i, uniforms, draft=draft))
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "architecture", ["qwen3", *(pytest.param(a, marks=pytest.mark.slow) for a in ("qwen2", "llama"))]
)
def test_a_compiled_model_writes_and_scores_what_it_does_as_it_is(architecture: Any) -> None:
    """One at a time and together, with drafts and without: the tokens, and log π to 1e-4 nats. Its gradients too."""
    model = random_model(architecture, vocabulary=WORDS, layers=1, context_length=96)
    other = compiled(model)
    expected = model.rollout(jobs(model))
    for drafts in ([], [r.completion_ids for r in expected]):
        together = other.rollout(jobs(other, drafts))
        alone = [other.rollout([job])[0] for job in jobs(other, drafts)]
        for known, *found in zip(expected, together, alone, strict=True):
            for got in found:
                assert got.completion_ids == known.completion_ids
                torch.testing.assert_close(got.log_probs, known.log_probs, rtol=0, atol=1e-4)
    assert sum(r.usage.accepted_draft_tokens for r in together) > 20
    assert len({len(r.completion_ids) for r in expected}) > 2
    rows = [gradients(m, [(r.prompt.text, r.completion_ids) for r in expected]) for m in (model, other)]
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-4, atol=1e-4)


def gradients(model: LanguageModel, texts: list[tuple[str, tuple[int, ...]]]) -> list[torch.Tensor]:
    rollouts = [Rollout(model.prompt(t, formatted=True), ids, model.tokenizer.decode(ids)) for t, ids in texts]
    reward = random_process_reward(model.tokenizer.hf, seed=1, width=16)
    found = Objective(model, reward).gradient(rollouts, [None] * len(rollouts), [1] * len(rollouts))
    return [g.rows(range(1, len(r.completion_ids))) for g, r in zip(found, rollouts, strict=True)]


def test_there_are_as_many_programs_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by a backend that compiles nothing: batches of 1 to 10 rows, with drafts and without."""
    counter, as_it_is = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: as_it_is(f, backend=counter, **options))
    model = compiled(random_model("qwen3", vocabulary=WORDS, layers=1, context_length=96))
    texts = [r.completion_ids for r in model.rollout(jobs(model))]
    for drafts in ([], texts):
        for rows in (1, 2, 3, 4, 5):
            model.rollout(jobs(model, drafts)[-rows:])
            model.rollout(jobs(model, drafts)[-rows:] * 2)
    assert counter.frame_count == 4


def test_a_model_with_a_sliding_window_is_refused() -> None:
    model = random_model("mistral", vocabulary=WORDS, layers=1, sliding_window=6)
    with pytest.raises(ModelLoadError, match="sliding window.*without compile=True"):
        compile_passes(model.transformer.module)


def test_without_a_compiler_the_error_says_so_and_the_model_is_as_it_was() -> None:
    model = random_model("qwen3", vocabulary=WORDS, layers=1, width=24)
    expected = model.rollout(jobs(model))
    with without_compiler(), pytest.raises(ModelLoadError, match=r"g\+\+.*without compile=True"):
        compile_passes(model.transformer.module)
    assert [r.text for r in model.rollout(jobs(model))] == [r.text for r in expected]


@contextmanager
def without_compiler() -> Iterator[None]:
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False, "force_disable_caches": True}):
        yield
