"""Activation checkpointing: the same gradients from less memory, counted with what it costs."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from nabla_agents import ConfigurationError, LanguageModel, Objective, Rollout
from nabla_agents.models.checkpointing import checkpoint_layers, is_checkpointed
from nabla_agents.testing import random_model, random_process_reward

ARCHITECTURES = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3")
WORDS = ("a", "b", "cd", "efg", "h", "i", "\n")


@cache
def plain(architecture: Any, layers: int = 3) -> LanguageModel:
    window = None if architecture == "llama" else 6
    return random_model(architecture, vocabulary=WORDS, sliding_window=window, context_length=64, layers=layers)


@cache
def forgetful(architecture: Any, layers: int = 3) -> LanguageModel:
    known = plain(architecture, layers)
    module = copy.deepcopy(known.transformer.module)
    checkpoint_layers(module)
    return LanguageModel(module, known.tokenizer.hf)


def rollouts(model: LanguageModel) -> list[Rollout]:
    texts = (("ab", (0, 1, 6, 2, 4, 5, 6, 3, 1)), ("cdefg", (1, 1, 2)), ("i", (6, 5, 4, 3, 2, 1)))
    return [Rollout(model.prompt(question), ids, model.tokenizer.decode(ids)) for question, ids in texts]


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradient_is_that_of_the_model_as_it_was(architecture: str, cached: bool) -> None:
    """Prompts of different lengths, tails that begin in the middle, layers with sliding and with full attention."""
    found = []
    for model in (plain(architecture), forgetful(architecture)):
        reward = random_process_reward(model.tokenizer.hf, seed=1, width=16)
        if model is forgetful(architecture):
            checkpoint_layers(reward.transformer.module)
        given = rollouts(model)
        if cached:
            model.read_prompts([r.prompt for r in given])
        gradients = Objective(model, reward).gradient(given, [None] * 3, (2, 0, 1))
        found.append(
            [
                g.rows(range(start, len(r.completion_ids)))
                for g, r, start in zip(gradients, given, (2, 0, 1), strict=True)
            ]
        )
    for expected, got in zip(*found, strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def held(model: LanguageModel) -> int:
    """Bytes that the graph of one gradient pass keeps, weights aside."""
    sizes: dict[int, int] = {}
    weights = {p.data_ptr() for p in model.transformer.module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        embeddings = torch.randn(1, 64, model.transformer.embedding.weight.shape[1], requires_grad=True)
        model.transformer.extend(model.transformer.empty_context(1), embeddings=embeddings)
    return sum(sizes.values())


def test_what_a_layer_computes_is_not_kept() -> None:
    """With twice the layers a pass keeps as much more as their inputs are: one vector per token and layer."""
    kept = {(make.__name__, layers): held(make("qwen2", layers)) for make in (plain, forgetful) for layers in (4, 8)}
    inputs = 4 * 64 * 32 * 4  # layers, tokens, width, bytes
    assert kept["forgetful", 8] - kept["forgetful", 4] <= 2 * inputs
    assert kept["plain", 8] - kept["plain", 4] > 8 * inputs


def test_rollouts_and_scores_are_as_before(job: Any) -> None:
    for architecture in ARCHITECTURES:
        one, other = plain(architecture), forgetful(architecture)
        expected = one.rollout([job(one, "ab", max_tokens=12, temperature=1.0), job(one, "cdefg", "ab", seed=1)])
        found = other.rollout([job(other, "ab", max_tokens=12, temperature=1.0), job(other, "cdefg", "ab", seed=1)])
        assert [r.completion_ids for r in found] == [r.completion_ids for r in expected]


def test_the_ledger_counts_the_second_forward() -> None:
    usages = []
    for model in (plain("qwen2"), forgetful("qwen2")):
        gradients = model.likelihood_gradient(rollouts(model), [0] * 3)
        usages.append(gradients[0].usage)
    without, with_it = usages
    parameters = plain("qwen2").transformer.matrix_parameters
    assert with_it.lm_backward_tokens == without.lm_backward_tokens > 0
    assert with_it.flops - without.flops == 2 * parameters * without.lm_backward_tokens


def test_a_second_call_changes_nothing_and_a_copy_has_its_own() -> None:
    module = copy.deepcopy(plain("qwen2").transformer.module)
    checkpoint_layers(module)
    first = [m.forward for m in module.model.layers]
    checkpoint_layers(module)
    assert [m.forward for m in module.model.layers] == first
    assert is_checkpointed(module)
    assert not is_checkpointed(plain("qwen2").transformer.module)
    copied = copy.deepcopy(module).double()
    hidden = torch.randn(1, 4, 32, dtype=torch.double, requires_grad=True)
    copied.model(inputs_embeds=hidden).last_hidden_state.sum().backward()  # in fp32 weights this would raise
    assert hidden.grad is not None


def test_a_model_without_layers_to_checkpoint_is_refused() -> None:
    class Bare(type(plain("qwen2").transformer.module)):  # type: ignore[misc]
        def modules(self, *args: Any, **kwargs: Any) -> Any:
            return iter([self])

    module = copy.deepcopy(plain("qwen2").transformer.module)
    module.__class__ = Bare
    with pytest.raises(ConfigurationError, match="no layers that can be checkpointed"):
        checkpoint_layers(module)


def test_a_loaded_model_has_it_by_setting(tmp_path: Any) -> None:
    known = plain("qwen2")
    known.transformer.module.save_pretrained(tmp_path)
    known.tokenizer.hf.save_pretrained(tmp_path)
    loaded = LanguageModel.from_pretrained(tmp_path, activation_checkpointing=True)
    assert loaded.transformer.recomputes
    assert not LanguageModel.from_pretrained(tmp_path).transformer.recomputes
