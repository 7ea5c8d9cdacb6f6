"""`from_pretrained`: what is saved comes back, options reach the weights, and everything that fails says what to do."""

import json
import shutil
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from transformers import BertConfig, BertModel, BitsAndBytesConfig, MambaConfig, MambaForCausalLM

from nabla_agents import ConfigurationError, LanguageModel, ModelLoadError
from nabla_agents.models.loading import Loading, LoadingOptions
from nabla_agents.models.precision import fastest
from nabla_agents.testing import byte_tokenizer, random_model


def save(model: LanguageModel, folder: Path) -> Path:
    model.transformer.module.save_pretrained(folder)
    model.tokenizer.hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_model(vocabulary=("a", "b", "cd")), tmp_path_factory.mktemp("saved"))


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved model to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "copied"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3"])
def test_a_saved_model_comes_back_with_the_same_rollouts(architecture, job, tmp_path) -> None:
    """On bytes: whatever is saved, transformers gives Qwen-2 the pre-tokenizer of Qwen-2."""
    model = random_model(architecture, sliding_window=None if architecture == "llama" else 6)
    loaded = LanguageModel.from_pretrained(save(model, tmp_path))
    asked = [{"temperature": 0}, {"seed": 1, "temperature": 1.0}]
    before, after = (
        m.rollout([job(m, "abcd\n", max_tokens=9, **options) for options in asked]) for m in (model, loaded)
    )
    assert [r.completion_ids for r in before] == [r.completion_ids for r in after]
    assert all(torch.allclose(x.log_probs, y.log_probs, atol=1e-5) for x, y in zip(before, after, strict=True))
    assert before[0].prompt == after[0].prompt
    assert (loaded.eos_ids, loaded.context_length) == (model.eos_ids, model.context_length)
    assert loaded.transformer.sliding_window == model.transformer.sliding_window
    assert loaded.name == str(tmp_path)


def test_weights_are_single_precision_on_a_cpu_and_otherwise_as_asked(saved) -> None:
    def dtype(**options: object) -> torch.dtype:
        return LanguageModel.from_pretrained(saved, **options).transformer.embedding.weight.dtype

    assert dtype() is torch.float32
    assert dtype(dtype=torch.float64) is torch.float64
    assert dtype(dtype="bfloat16") is torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides")
@pytest.mark.parametrize(
    ("able", "expected"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True, "avx512_bf16": False}, "bfloat16"), ({}, "float32")],
)
def test_the_fastest_type_is_the_one_that_the_cpu_computes_with(saved, monkeypatch, able, expected) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    model = LanguageModel.from_pretrained(saved, dtype="fastest")
    assert model.transformer.embedding.weight.dtype is getattr(torch, expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides")
def test_an_older_pytorch_that_cannot_tell_has_float32(monkeypatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest() is torch.float32


def test_a_bfloat16_model_gives_single_precision_probabilities_and_gradients(saved, job) -> None:
    model = LanguageModel.from_pretrained(saved, dtype=torch.bfloat16)
    [rollout] = model.rollout([job(model, "ab", max_tokens=6)])
    [gradient] = model.likelihood_gradient([rollout], [0])
    rows = gradient.gradient.rows(range(len(rollout.completion_ids)))
    assert rows.dtype is torch.float32
    assert rows.isfinite().all()
    # bf16 keeps 8 bits: sums of log-probabilities that were rounded to it would be multiples of 2^-7 or so.
    assert any(x * 128 != round(x * 128) for x in rollout.log_probs.tolist())


def test_an_unknown_option_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigurationError, match="devcie_map.*Known settings: dtype, device_map"):
        LanguageModel.from_pretrained("no-such-model", devcie_map="auto")


@pytest.mark.parametrize("dtype", ["float99", "bananas"])
def test_an_unknown_dtype_is_refused_by_name(dtype) -> None:
    with pytest.raises(ConfigurationError, match=f"dtype = '{dtype}'.*bfloat16"):
        LanguageModel.from_pretrained("no-such-model", dtype=dtype)


@pytest.mark.parametrize("name", ["no-such-model", "no/such/folder", "someone/no-such-model", ""])
def test_an_unknown_name_says_what_names_there_are(name) -> None:
    with pytest.raises(ModelLoadError, match="Give a folder with config.json and tokenizer files, a model hub id") as e:
        LanguageModel.from_pretrained(name)
    assert repr(name) in str(e.value)
    assert e.value.__cause__ is not None


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_without_one_of_its_files_is_refused(copied, lost) -> None:
    what = {"config.json": "config", "model.safetensors": "weights", "tokenizer.json": "tokenizer"}[lost]
    (copied / lost).unlink()
    with pytest.raises(ModelLoadError, match=f"Cannot load the {what} of model"):
        LanguageModel.from_pretrained(copied)


@pytest.mark.parametrize("spoilt", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_with_a_spoilt_file_is_refused(copied, spoilt) -> None:
    (copied / spoilt).write_bytes(b"{not what it should be")
    with pytest.raises(ModelLoadError, match=r"Cannot load the \w+ of model"):
        LanguageModel.from_pretrained(copied)


def test_weights_cut_short_are_refused(copied) -> None:
    """An interrupted download or copy."""
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="Cannot load the weights of model"):
        LanguageModel.from_pretrained(copied)


def test_a_file_instead_of_a_folder_is_refused(saved) -> None:
    with pytest.raises(ModelLoadError, match="Give a folder with config.json"):
        LanguageModel.from_pretrained(saved / "tokenizer.json")


def test_a_model_that_writes_no_text_is_refused(tmp_path) -> None:
    """An encoder; the checks end before its weights are read."""
    with torch.random.fork_rng(devices=[]):
        BertModel(
            BertConfig(vocab_size=261, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        ).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError):
        LanguageModel.from_pretrained(tmp_path)


def test_a_recurrent_model_is_refused() -> None:
    """Its state cannot be shared between rollouts as keys and values can."""
    with torch.random.fork_rng(devices=[]):
        module = MambaForCausalLM(MambaConfig(vocab_size=261, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelLoadError, match="MambaForCausalLM.*transformer decoder"):
        LanguageModel(module, byte_tokenizer())


# ── devices and quantisation ──────────────────────────────────────────────────────────────────────────────────────


def test_without_accelerate_a_device_map_says_what_is_missing(saved, monkeypatch) -> None:
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *_: False, raising=False)
    monkeypatch.setattr("transformers.integrations.accelerate.is_accelerate_available", lambda *_: False)
    with pytest.raises(ModelLoadError, match="accelerate"):
        LanguageModel.from_pretrained(saved, device_map="auto")


def test_device_map_cpu_gives_the_same_model(saved, job) -> None:
    pytest.importorskip("accelerate")
    plain, mapped = LanguageModel.from_pretrained(saved), LanguageModel.from_pretrained(saved, device_map="cpu")
    [a], [b] = (m.rollout([job(m, "ab", max_tokens=6)]) for m in (plain, mapped))
    assert a.completion_ids == b.completion_ids
    assert mapped.transformer.device.type == "cpu"


@pytest.mark.parametrize("device_map", ["nowhere", "mps:7" if not torch.backends.mps.is_available() else "cuda:99"])
def test_a_device_that_is_not_there_is_refused(saved, device_map) -> None:
    with pytest.raises(ModelLoadError, match="Cannot load the weights"):
        LanguageModel.from_pretrained(saved, device_map=device_map)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is the device")
def test_a_gpu_that_is_not_there_is_refused(saved) -> None:
    with pytest.raises(ModelLoadError, match="Cannot load the weights"):
        LanguageModel.from_pretrained(saved, device_map="cuda")


def test_a_quantisation_backend_that_is_not_installed_is_refused_by_name(saved, monkeypatch) -> None:
    monkeypatch.setattr(
        "transformers.quantizers.quantizer_bnb_8bit.is_bitsandbytes_available", lambda *_: False, raising=False
    )
    with pytest.raises(ModelLoadError, match=r"(?i)bitsandbytes|accelerate"):
        LanguageModel.from_pretrained(saved, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


# ── code that comes with a checkpoint ─────────────────────────────────────────────────────────────────────────────

CONFIGURATION = """
from transformers import Qwen2Config

class StrangerConfig(Qwen2Config):
    model_type = "stranger"
"""
MODELLING = """
from pathlib import Path
from transformers import Qwen2ForCausalLM
from .configuration_stranger import StrangerConfig

Path(__MARK__).write_text("ran")

class StrangerForCausalLM(Qwen2ForCausalLM):
    config_class = StrangerConfig
"""


@pytest.fixture
def stranger(copied, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A checkpoint with code of its own, and the file that the code writes when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "mark"
    (copied / "configuration_stranger.py").write_text(CONFIGURATION)
    (copied / "modeling_stranger.py").write_text(MODELLING.replace("__MARK__", repr(str(mark))))
    edit(
        copied / "config.json",
        model_type="stranger",
        architectures=["StrangerForCausalLM"],
        auto_map={
            "AutoConfig": "configuration_stranger.StrangerConfig",
            "AutoModelForCausalLM": "modeling_stranger.StrangerForCausalLM",
        },
    )
    return copied, mark


def test_code_of_a_checkpoint_does_not_run_without_consent(stranger) -> None:
    folder, mark = stranger
    with pytest.raises(ModelLoadError, match="ships its own code.*consent with trust_remote_code=True"):
        LanguageModel.from_pretrained(folder)
    assert not mark.exists()


def test_code_of_a_checkpoint_runs_with_consent(stranger, saved, job) -> None:
    folder, mark = stranger
    loaded, plain = LanguageModel.from_pretrained(folder, trust_remote_code=True), LanguageModel.from_pretrained(saved)
    assert mark.read_text() == "ran"
    assert type(loaded.transformer.module).__name__ == "StrangerForCausalLM"
    [a], [b] = (m.rollout([job(m, "ab", max_tokens=6)]) for m in (loaded, plain))
    assert a.completion_ids == b.completion_ids


def test_the_keywords_that_an_editor_shows_are_the_settings() -> None:
    assert {name: str(hint) for name, hint in get_type_hints(LoadingOptions).items()} == {
        name: str(hint) for name, hint in get_type_hints(Loading).items() if name in Loading.model_fields
    }
