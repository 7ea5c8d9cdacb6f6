"""llama.cpp samples: its own greedy text, one text alone and in a batch, log π of the local model."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from nabla_agents import (
    BestOfN,
    ConfigurationError,
    Engine,
    Greedy,
    LanguageModel,
    LlamaCppRollouts,
    ModelLoadError,
    RolloutError,
    Sampling,
    VocabularyMismatchError,
)
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import FixedReward, random_model

FILE = Path(os.environ.get("NABLA_MODELS") or Path.home() / ".cache" / "nabla-models") / "smollm2-135m.gguf"
INSTALLED = importlib.util.find_spec("llama_cpp") is not None
QUESTIONS = ("What is the capital of France?", "Name three colours.", "What is 17 + 25?")


@pytest.mark.parametrize("setting", ["rows", "context", "threads"])
def test_settings_that_are_none_are_refused(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{setting} is 0; expected a whole number of at least 1"):
        LlamaCppRollouts("none.gguf", random_model(width=16, layers=1), **{setting: 0})


@pytest.mark.skipif(INSTALLED, reason="llama-cpp-python is installed")
def test_without_the_package_it_says_what_to_install() -> None:
    with pytest.raises(ConfigurationError, match=r"pip install 'nabla-agents\[llama-cpp\]'"):
        LlamaCppRollouts("none.gguf", random_model(width=16, layers=1))


def real(test: Any) -> Any:
    """On a real file, by `make real`."""
    for mark in (
        pytest.mark.real,
        pytest.mark.timeout(1200),
        pytest.mark.skipif(not (INSTALLED and FILE.is_file()), reason="llama-cpp-python or the file is not there"),
    ):
        test = mark(test)
    return test


@cache
def model() -> LanguageModel:
    return LanguageModel.from_pretrained(FILE)


@pytest.fixture
def made() -> Iterator[Callable[..., LlamaCppRollouts]]:
    backends: list[LlamaCppRollouts] = []

    def make(**settings: Any) -> LlamaCppRollouts:
        backends.append(LlamaCppRollouts(FILE, model(), threads=1, repack=False, **settings))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()


@real
def test_greedy_tokens_are_those_of_llama_cpp(
    made: Callable[..., LlamaCppRollouts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to near ties: its logits depend on how many tokens it reads at once, so each is within a nat of the best, and
    nearly all are the best, where llama.cpp's own class reads the whole text.
    """
    library: Any = importlib.import_module("llama_cpp")
    plain = library.llama_model_default_params()
    plain.use_extra_bufts = False  # as ours: builds differ in what of the rest runs here
    monkeypatch.setattr(library.llama_cpp, "llama_model_default_params", lambda: plain)
    theirs = library.Llama(str(FILE), n_ctx=512, n_threads=1, verbose=False, logits_all=True)
    engine = Engine(model=model(), strategy=Greedy(), rollouts=made())
    behind: list[float] = []
    for question in QUESTIONS:
        prompt = engine.prompt(question)
        ids = engine.generate(prompt, sampling=Sampling(max_tokens=24)).token_ids
        theirs.reset()
        theirs.eval([*prompt.ids, *ids])
        logits = torch.tensor(theirs.scores[len(prompt.ids) - 1 :][: len(ids)])
        chosen = logits.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        behind += (logits.amax(-1) - chosen).tolist()
    assert max(behind) < 1.0
    assert sum(nats > 0.01 for nats in behind) < 0.1 * len(behind)


@real
def test_log_probs_are_the_local_models_and_prompts_are_held(made: Callable[..., LlamaCppRollouts]) -> None:
    prompts = [model().prompt(question) for question in QUESTIONS]
    jobs = [
        RolloutJob(prompt, (), Sampling(), 16, torch.rand(16, generator=torch.Generator().manual_seed(i)))
        for i, prompt in enumerate([*prompts, *prompts])
    ]
    whole, alone = made(rows=4), made(rows=1)
    assert whole.nats_apart != whole.nats_apart
    together = whole.rollout(jobs)
    assert 0 < whole.nats_apart < 0.2
    assert alone.rollout(jobs[:1])[0].completion_ids == alone.rollout(jobs[:1])[0].completion_ids
    for rollout, (expected, _) in zip(together, model().token_log_probs(together), strict=True):
        assert rollout.log_probs.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert all(r.usage.prefill_tokens < 2 * len(r.prompt.ids) for r in whole.rollout(jobs[:3]))


@real
def test_a_search_goes_on_from_prefixes_and_ends_where_jobs_end(made: Callable[..., Any]) -> None:
    reward = FixedReward(lambda r: -float(len(r.text)))
    engine = Engine(model=model(), reward=reward, strategy=BestOfN(n=6), rollouts=made(rows=4, context=2048))
    result = engine.generate(QUESTIONS[1], sampling=Sampling(max_tokens=24, stop=("\n",)), seed=3)
    assert "\n" not in result.text
    assert result.usage.rollouts == 6
    with pytest.raises(RolloutError, match="Lower max_tokens or rows"):
        engine.generate(QUESTIONS[1], sampling=Sampling(max_tokens=2000))


@real
def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="There is no file"):
        LlamaCppRollouts(tmp_path / "none.gguf", model())
    (tmp_path / "torn.gguf").write_bytes(FILE.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match="llama.cpp cannot read"):
        LlamaCppRollouts(tmp_path / "torn.gguf", model())
    with pytest.raises(VocabularyMismatchError, match="expected the file that the model was made of"):
        LlamaCppRollouts(FILE, random_model(width=16, layers=1))
