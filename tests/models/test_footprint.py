"""What a model needs in memory, computed from its sizes, is what its tensors hold."""

import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification
from typer.testing import CliRunner

from nabla_agents import LanguageModel, ModelLoadError
from nabla_agents.cli import app
from nabla_agents.models.footprint import LIBRARIES, Footprint, peak
from nabla_agents.models.kv_cache import GrowingLayer
from nabla_agents.models.loading import Loading
from nabla_agents.models.rows import RolloutJob
from nabla_agents.models.shape import Shape
from nabla_agents.testing import random_model
from nabla_agents.testing.random_models import Architecture

sys.path.insert(0, str(Path(__file__).parent))

ARCHITECTURES = get_args(Architecture)

HALVES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
FUSED = [name for name in ARCHITECTURES if name != "gemma2"]  # its soft cap is of scores that are there


@cache
def odd(architecture: str, dtype: torch.dtype) -> LanguageModel:
    """No two of its sizes are equal."""
    sizes = {"layers": 3, "width": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10}
    window = None if architecture == "llama" else 6
    return random_model(
        architecture, vocabulary=("a", "b", "cd"), dtype=dtype, sliding_window=window, intermediate_size=70, **sizes
    )


def footprint(model: LanguageModel) -> Footprint:
    return Footprint(Shape.of_config(model.transformer.module.config), model.transformer.module.dtype)


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of what they share once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@HALVES
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_those_of_the_loaded_model(architecture: str, dtype: torch.dtype) -> None:
    model = odd(architecture, dtype)
    assert footprint(model).weights == size([*model.transformer.module.parameters(), model._lm_head.weight])


@pytest.mark.parametrize(
    ("architecture", "dtype", "further"),
    [
        *((name, torch.float32, 3) for name in ARCHITECTURES),
        ("llama", torch.bfloat16, 70),
    ],  # 70 are beyond the first room
    ids=str,
)
def test_keys_and_values_are_those_of_a_decoding(
    job: Callable[..., RolloutJob], architecture: str, dtype: torch.dtype, further: int
) -> None:
    model = odd(architecture, dtype)
    model.eos_ids = frozenset()
    jobs = [job(model, "ab", max_tokens=further + 1, seed=seed) for seed in range(3)]
    known = len(jobs[0].prompt.ids)
    decoding = model.decoding()
    decoding.add(jobs)
    for _ in range(further - 1):
        decoding.step()
    context = decoding._context
    assert context is not None
    layers: Any = context.cache.layers
    stored = [layer._store if isinstance(layer, GrowingLayer) else (layer.keys, layer.values) for layer in layers]
    held = sum(t.numel() * t.element_size() for pair in stored for t in pair)
    assert held == 3 * footprint(model).room(known, further - 1)


@HALVES
@pytest.mark.parametrize("architecture", FUSED)
def test_activations_are_what_a_gradient_pass_keeps(
    job: Callable[..., RolloutJob], architecture: str, dtype: torch.dtype
) -> None:
    model = odd(architecture, dtype)
    model.eos_ids = frozenset()
    rollouts = model.rollout([job(model, "ab", max_tokens=20, seed=seed) for seed in range(2)])
    prompt, width = len(rollouts[0].prompt.ids), model.transformer.config.hidden_size
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model._tail_states(rollouts, [0, 0], needs_grad=True)
    weights = {p.untyped_storage().data_ptr() for p in model.transformer.module.parameters()}
    turns = (2, 1, 20, 10)  # rotary embeddings, of all layers; a norm's own numbers are one a token
    counted = [
        t
        for t in kept
        if t.untyped_storage().data_ptr() not in weights and t.dim() > 1 and t.shape[-1] > 1 and t.shape != turns
    ]
    final = 2 * 20 * width * 4  # what the last norm reads
    assert size(counted) == 2 * 3 * footprint(model).activations(prompt, 20) + final


def test_a_checkpointed_pass_and_its_fewer_rows_need_less() -> None:
    needs = footprint(odd("llama", torch.float32))
    assert needs.gradient(2, 9, 400, checkpointed=True) < needs.gradient(2, 9, 400) < needs.gradient(4, 9, 400)


def test_the_peak_is_all_weights_and_the_largest_pass() -> None:
    policy, reward = footprint(odd("llama", torch.float32)), footprint(odd("qwen2", torch.float32))
    larger = max(policy.gradient(2, 9, 400), reward.gradient(2, 9, 400))
    assert peak([policy, reward], 2, 9, 400) == policy.weights + reward.weights + larger + LIBRARIES


def config_only(folder: Path, **changes: Any) -> Path:
    """A checkpoint of Qwen2.5-7B without a weight."""
    sizes = {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False, "dtype": "bfloat16"}
    AutoConfig.for_model("qwen2", **sizes, **heads, **changes).save_pretrained(folder)
    return folder


def test_a_model_whose_weights_are_elsewhere_is_computed(tmp_path: Path) -> None:
    shape = Shape.of(config_only(tmp_path), Loading(), tiny_path=Path())
    assert shape.parameters == 7_615_616_512  # as the model's card has it
    assert Footprint(shape, torch.bfloat16).weights == 2 * 7_615_616_512 + 4 * 152_064 * 3584
    reward = Shape.of(tmp_path, Loading(), tiny_path=Path(), auto_class=AutoModelForSequenceClassification)
    assert reward.parameters == 7_615_616_512 - 152_064 * 3584 + 2 * 3584


def test_a_file_is_computed_from_its_header(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    from gguf_writer import original, write

    model = original(context_length=64)
    shape = Shape.of(write(model, tmp_path / "m.gguf"), Loading(), tiny_path=Path())
    assert shape == Shape.of_config(model.transformer.module.config)


@pytest.mark.parametrize("state", ["recurrent", "empty", "missing"])
def test_what_cannot_be_computed_is_refused(tmp_path: Path, state: str) -> None:
    if state == "recurrent":
        AutoConfig.for_model("mamba", num_hidden_layers=2, hidden_size=32, vocab_size=9).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError):
        Shape.of(tmp_path / "no" if state == "missing" else tmp_path, Loading(), tiny_path=Path())


def test_doctor_shows_a_model_and_its_reward(tmp_path: Path) -> None:
    folder = config_only(tmp_path)
    done = CliRunner().invoke(app, ["doctor", "--model", str(folder), "--reward", "tiny+2*arithmetic", "--rows", "3"])
    assert done.exit_code == 0
    assert "30.462" in done.output  # GB of float32
    assert "reward tiny" in done.output
    assert "gradient pass, 3 rows, checkpointed" in done.output


def test_doctor_computes_weights_in_few_bits(tmp_path: Path) -> None:
    """6.53e9 of its 7.62e9 parameters are in layers; a checkpoint in 4 bits says so itself."""
    half = ["doctor", "--model", str(config_only(tmp_path / "a")), "--dtype", "bfloat16", "--bits"]
    folder = config_only(tmp_path / "b", quantization_config={"quant_method": "gptq", "bits": 4})
    told = ["doctor", "--model", str(folder), "--dtype", "bfloat16"]
    runs = [CliRunner().invoke(app, arguments) for arguments in ([*half, "4"], told, [*half, "8"], [*half, "3"])]
    linear = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944)
    for run, bytes_of_one in zip(runs, (0.5 + 4 / 64, 0.5 + 4 / 64, 1), strict=False):
        expected = 2 * (7_615_616_512 - linear) + bytes_of_one * linear + 4 * 152_064 * 3584
        assert f"{expected / 1e9:.3f}" in run.output
    assert runs[3].exit_code == 2
    assert "expected 4 or 8" in runs[3].stderr


def test_doctor_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--model", str(tmp_path)])
    assert done.exit_code == 2
    assert "config" in done.stderr
