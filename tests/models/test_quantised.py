"""Quantised layers: those with a gradient have that of their own weights, and those without one are refused."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from nabla_agents import Engine, Greedy, LanguageModel, ModelLoadError, Sampling
from nabla_agents.models.footprint import Footprint
from nabla_agents.models.gguf_copy import gguf_copy
from nabla_agents.models.loading import Loading
from nabla_agents.models.quantised import check_gradient
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import random_model

FILE = Path(os.environ.get("NABLA_MODELS") or Path.home() / ".cache" / "nabla-models") / "smollm2-135m.gguf"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"load_in_8bit": True}


# ── layers of other makes, written here ───────────────────────────────────────────────────────────────────────────


class Rounding(nn.Module):
    """Weights of eight bits, activations rounded to as many; what becomes of the gradient is for others to say."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        scale = plain.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("packed", (plain.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.detach())

    def product(self, x: Tensor) -> Tensor:
        return x @ (self.packed.to(x.dtype) * self.scale).T  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        step = x.detach().abs().amax(-1, keepdim=True) / 127
        return self.product(x + ((x / step).round() * step - x).detach())


class ForwardOnly(Rounding):
    """As kernels that nobody wrote a backward pass for."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class Packing(Rounding):
    """As layers that have a gradient until they are first used without one."""

    packs = False

    def forward(self, x: Tensor) -> Tensor:
        self.packs = self.packs or not torch.is_grad_enabled()
        return self.product(x.detach() if self.packs else x)


class Halved(Rounding):
    """A gradient that is there, and wrong."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.detach() * 0.5 + x * 0.5)


class Other(Rounding):
    """A gradient of the right size, in another direction."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x).detach() + self.product(x - x.detach()).flip(-1)


class Unfinished(Rounding):
    """A backward pass that says so itself."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise NotImplementedError("This backend has no training mode.\nSee its issues.")
        return self.product(x)


def rebuilt(layer: type[Rounding]) -> PreTrainedModel:
    """A random model of such layers."""
    module = random_model(width=16, layers=2).transformer.module
    for block in module.base_model.layers:
        block.mlp.down_proj = layer(block.mlp.down_proj)
    return module


def test_layers_with_a_gradient_pass_rounded_ones_too() -> None:
    check_gradient(random_model(width=16, layers=1).transformer.module, "plain")
    check_gradient(rebuilt(Rounding), "rounding")
    check_gradient(rebuilt(Rounding).to(torch.bfloat16), "rounding in half precision")
    check_gradient(rebuilt(ForwardOnly).to("meta"), "weights that are elsewhere")


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (ForwardOnly, "does not require grad"),
        (Packing, "does not require grad"),
        (Halved, "changes the output by"),
        (Other, "changes the output by"),
        (Unfinished, r"no training mode\)"),
    ],
)
def test_layers_without_one_are_refused_and_it_is_said_what_to_choose(layer: type[Rounding], says: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"'packed' \({layer.__name__}: .*{says}") as refused:
        check_gradient(rebuilt(layer), "packed")
    for choice in ("bitsandbytes", "GPTQModel", "GGUF", "check_gradient=False"):
        assert choice in str(refused.value)


@pytest.mark.parametrize("check", [True, False])
def test_models_are_tried_when_they_are_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: bool) -> None:
    model = random_model(width=16, layers=2)
    model.transformer.module.save_pretrained(tmp_path)
    model.tokenizer.hf.save_pretrained(tmp_path)

    def made(*_: Any) -> PreTrainedModel:
        module: Any = rebuilt(ForwardOnly)
        module.is_quantized = True
        return module

    monkeypatch.setattr("nabla_agents.models.loading._weights", made)
    if check:
        with pytest.raises(ModelLoadError, match="No gradient goes through"):
            LanguageModel.from_pretrained(tmp_path)
    else:
        engine = Engine(model=tmp_path, strategy=Greedy(), check_gradient=False)
        assert engine.generate("ab", formatted=True, sampling=Sampling(max_tokens=4)).token_ids


# ── bitsandbytes ──────────────────────────────────────────────────────────────────────────────────────────────────


def dequantised(model: LanguageModel) -> LanguageModel:
    """The same weights, unpacked into plain layers."""
    import bitsandbytes as bnb

    module: Any = model.transformer.module
    for name, layer in [*module.named_modules()]:
        if not isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            continue
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        else:
            weight = layer.state.CB.float() * layer.state.SCB[:, None] / 127
        plain.weight.data = weight.float().reshape(plain.weight.shape)
        if layer.bias is not None:
            plain.bias.data = layer.bias.data.float()
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, plain)
    module.is_quantized = False
    return LanguageModel(module, model.tokenizer.hf)


def gradient(model: LanguageModel, prompt: str, tokens: int) -> Tensor:
    """The rows of a greedy answer, after it was written."""
    engine = Engine(model=model, strategy=Greedy())
    result = engine.generate(prompt, formatted=True, sampling=Sampling(max_tokens=tokens))
    ids = result.token_ids
    greedy, uniforms = Sampling(temperature=0), torch.zeros(len(ids))
    [rollout] = model.rollout([RolloutJob(model.prompt(prompt, formatted=True), ids, greedy, len(ids), uniforms)])
    [found] = model.likelihood_gradient([rollout], [0])
    return found.gradient.rows(range(len(ids))).double().flatten()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize(("options", "alike"), [(NF4, 0.999), (INT8, 0.99)], ids=["nf4", "int8"])
def test_weights_in_few_bits_have_the_gradient_of_their_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], alike: float
) -> None:
    """Also on CPUs where bitsandbytes packs its weights for inference, when an answer was written before."""
    pytest.importorskip("bitsandbytes")
    model = random_model(width=64, layers=2)
    model.transformer.module.save_pretrained(tmp_path)
    model.tokenizer.hf.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        packed = LanguageModel.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**options))
        found = gradient(packed, "abcabc", 12)
    assert len(caplog.records) < 3  # its layers would say at each pass that they round
    module, config = packed.transformer.module, BitsAndBytesConfig(**options)
    scales = [p.quant_state.absmax for p in module.parameters() if getattr(p, "quant_state", None) is not None]
    held = {t.data_ptr(): t.nbytes for t in [*module.parameters(), *scales]}
    loading = Loading(dtype=module.dtype, quantization_config=config)
    assert sum(held.values()) == Footprint.of(tmp_path, loading, tiny_path=tmp_path).weights
    expected = gradient(dequantised(packed), "abcabc", 12)
    assert cosine(found, expected) > alike
    assert 0.9 < float(found.norm() / expected.norm()) < 1.1


@pytest.mark.real
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not FILE.is_file(), reason="the file is not there")
@pytest.mark.parametrize(("options", "alike"), [(NF4, 0.99), (INT8, 0.9)], ids=["nf4", "int8"])
def test_a_real_model_in_few_bits(options: dict[str, Any], alike: float) -> None:
    folder, _ = gguf_copy(FILE, torch.float32)
    packed = LanguageModel.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**options))
    [weight] = packed.transformer.body.layers[0].self_attn.q_proj.parameters()
    assert weight.element_size() * weight.numel() <= 576 * 576  # bytes: at most one for each weight
    prompt = packed.prompt("What is the capital of France?").text
    found = gradient(packed, prompt, 24)
    assert "Paris" in Engine(model=packed, strategy=Greedy()).generate("What is the capital of France?").text
    assert cosine(found, gradient(dequantised(packed), prompt, 24)) > alike
