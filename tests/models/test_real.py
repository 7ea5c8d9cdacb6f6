"""Real models, from GGUF files in `$NABLA_MODELS` or `~/.cache/nabla-models` (`make real`); what lacks is skipped."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from nabla_agents import Engine, Greedy, LanguageModel, Sampling, tiny

pytestmark = [pytest.mark.real, pytest.mark.timeout(7200)]
pytest.importorskip("gguf")
pytest.importorskip("accelerate")

FOLDER = Path(os.environ.get("NABLA_MODELS") or Path.home() / ".cache" / "nabla-models")
QUESTIONS, TOKENS = 20, 48  # answers of that many tokens at most
CODER = frozenset({151643, 151645})  # <|endoftext|> and <|im_end|>, as transformers' own checkpoint has them
ENDS = {
    "smollm2-135m": frozenset({0, 2}),
    "gemma3-270m": frozenset({1}),
    "coder-0.5b": CODER,
    "coder-1.5b": CODER,
}
TEXT = "def f(x):\n\treturn  x + 12_345  # été, 日本語 \U0001f600\n\n\n   3.14 it's\r\n<|im_end|> WE'LL"


def file(name: str) -> Path:
    path = FOLDER / f"{name}.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@cache
def loaded(name: str) -> LanguageModel:
    return LanguageModel.from_pretrained(file(name))


def theirs(name: str) -> Any:
    """As transformers unpacks it, without us."""
    path = file(name)
    return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)


@pytest.mark.parametrize("name", ENDS)
def test_greedy_text_is_that_of_transformers(name: str) -> None:
    model, truth = loaded(name), theirs(name)
    assert all(
        torch.equal(tensor, truth.state_dict()[key]) for key, tensor in model.transformer.module.state_dict().items()
    )
    assert model.eos_ids == ENDS[name]
    engine, ends = Engine(model=model, strategy=Greedy()), sorted(model.eos_ids)
    for problem in tiny.problems(QUESTIONS, seed=0, split="test"):
        prompt = engine.prompt(problem.question, formatted=not model.tokenizer.has_template)
        [ids] = truth.generate(
            torch.tensor([prompt.ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
        )
        result = engine.generate(prompt, sampling=Sampling(max_tokens=TOKENS))
        assert list(result.token_ids) == ids[len(prompt.ids) :].tolist(), problem.question


@pytest.mark.parametrize("name", ENDS)
def test_the_gradient_is_that_of_autograd_through_transformers(name: str, job: Any) -> None:
    """Of Σ <x_t, log π(·|x_<t)> with respect to the rows x_t, of which those of tokens are one-hot."""
    model = loaded(name)
    prompt = model.prompt("The capital of France is", formatted=True)
    [rollout] = model.rollout([job(model, prompt, max_tokens=6)])
    [found] = model.likelihood_gradient([rollout], [0])
    rows = found.gradient.rows(range(len(rollout.completion_ids)))
    module, start = model.transformer.module, len(prompt.ids)
    embeddings = model.transformer.embed(torch.tensor([[*prompt.ids, *rollout.completion_ids]]))
    one_hot = torch.nn.functional.one_hot(torch.tensor(rollout.completion_ids), model.vocab_size).float()
    one_hot.requires_grad_()
    scaled = model.transformer.embedding_scale * one_hot @ model.transformer.embedding.weight
    read = torch.cat([embeddings[:, :start], scaled[None]], dim=1)
    log_probs = module(inputs_embeds=read).logits[0, start - 1 : -1].log_softmax(-1)
    (expected,) = torch.autograd.grad((one_hot * log_probs).sum(), one_hot)
    for got, wanted in zip(rows, expected, strict=True):
        assert float(torch.cosine_similarity(got, wanted, dim=0)) > 0.99999


@pytest.mark.parametrize("name", ["coder-0.5b", "coder-1.5b"])
def test_text_has_the_tokens_of_transformers_own_class(name: str) -> None:
    hf: Any = loaded(name).tokenizer.hf
    merges = [tuple(pair) for pair in _model(hf)["merges"]]
    truth = Qwen2Tokenizer(vocab=_model(hf)["vocab"], merges=merges)
    plain = TEXT.replace("<|im_end|>", "")
    assert loaded(name).tokenizer.encode(plain) == truth.encode(plain)


@pytest.mark.parametrize("name", ENDS)
def test_text_survives_and_templates_are_those_of_the_file(name: str) -> None:
    model, path = loaded(name), file(name)
    assert model.tokenizer.decode(model.tokenizer.encode(TEXT.replace("<|im_end|>", ""))) == TEXT.replace(
        "<|im_end|>", ""
    )
    truth: Any = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    assert model.tokenizer.hf.chat_template == truth.chat_template
    assert model.tokenizer.hf("a").input_ids == truth("a").input_ids, "with or without a token that begins every text"


def _model(hf: Any) -> dict[str, Any]:
    return json.loads(hf.backend_tokenizer.to_str())["model"]
