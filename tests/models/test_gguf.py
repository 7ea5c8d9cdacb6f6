"""A GGUF file is a model like any other: unpacked once, exactly, and kept whole in the user's cache."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache as cached
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result as Invoked
from tqdm.auto import tqdm
from typer.testing import CliRunner

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

import gguf

import nabla_agents as na
from nabla_agents import Engine, EngineSettings, ImplicitReward, LanguageModel, ModelLoadError, Sampling
from nabla_agents.bench import BenchConfig
from nabla_agents.cli import app
from nabla_agents.models import gguf_copy as cache
from nabla_agents.models.gguf_copy import clear_copies, copies
from nabla_agents.models.loading import Loading

sys.path.insert(0, str(Path(__file__).parent))
from gguf_writer import F16, F32, Q8_0, TOKENS, original, write

GREEDY = Sampling(temperature=0, max_tokens=12)
TEXT = "he said  12 <|im_end|> é\n\n  3.5"


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@cached
def truth() -> LanguageModel:
    return original(context_length=64)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(truth(), tmp_path_factory.mktemp("file") / "tiny-llama.gguf")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is unpacked in this test."""
    monkeypatch.setattr(cache, "unpack", lambda *_: pytest.fail("a file was unpacked"))


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return model.transformer.module.state_dict()


def nabla(*arguments: str | Path) -> Invoked:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


# ── what is unpacked ──────────────────────────────────────────────────────────────────────────────────────────────


def test_it_has_the_weights_tokens_template_and_greedy_text_of_the_model_it_was_made_of(file: Path) -> None:
    model = LanguageModel.from_pretrained(file)
    assert weights(model).keys() == weights(truth()).keys()
    assert all(torch.equal(weights(model)[name], tensor) for name, tensor in weights(truth()).items())
    assert model.tokenizer.fingerprint == truth().tokenizer.fingerprint
    assert model.tokenizer.encode(TEXT) == truth().tokenizer.encode(TEXT)
    assert model.tokenizer.decode(model.tokenizer.encode("he said  12 é")) == "he said  12 é"
    prompt = model.prompt("What is 3 * 4?")
    assert prompt.ids == truth().prompt("What is 3 * 4?").ids
    assert (model.name, model.context_length, model.tokenizer.adds_bos) == (str(file), 64, False)
    ends = sorted(model.eos_ids)
    [ids] = truth().transformer.module.generate(
        torch.tensor([prompt.ids]), max_new_tokens=12, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
    )
    result = Engine(model=model, strategy=na.Greedy()).generate("What is 3 * 4?", sampling=GREEDY)
    assert list(result.token_ids) == ids[len(prompt.ids) :].tolist()


def test_its_ends_are_the_files_the_templates_and_that_of_a_document(file: Path) -> None:
    """As of transformers' own checkpoint of Qwen, whose GGUF files name one of its two."""
    ends = {TOKENS.index(token) for token in ("<|bye|>", "<|im_end|>", "<|endoftext|>")}
    assert LanguageModel.from_pretrained(file).eos_ids == ends


def test_without_a_template_the_file_says_how_it_ends(tmp_path: Path) -> None:
    model = LanguageModel.from_pretrained(write(truth(), tmp_path / "base.gguf", template=""))
    assert not model.tokenizer.has_template
    assert model.eos_ids == {TOKENS.index("<|bye|>"), TOKENS.index("<|endoftext|>")}


def test_quantised_weights_are_those_that_gguf_unpacks_and_a_copy_in_half_precision_is_no_loss_then(
    tmp_path: Path, fresh: Path
) -> None:
    file = write(truth(), tmp_path / "q8.gguf", Q8_0)
    half = LanguageModel.from_pretrained(file, dtype="bfloat16")
    assert [copy.dtype for copy in copies()] == ["bfloat16"]
    whole = LanguageModel.from_pretrained(file)
    assert [copy.dtype for copy in copies()] == ["bfloat16", "float32"]
    name = "model.layers.0.mlp.down_proj.weight"  # one that a file keeps as it is
    expected = torch.tensor(gguf.dequantize(gguf.quantize(weights(truth())[name].numpy(), Q8_0), Q8_0))
    assert torch.equal(weights(whole)[name], expected)
    assert not torch.equal(expected, weights(truth())[name])
    assert torch.equal(weights(half)[name], expected.bfloat16())
    assert all(torch.equal(weights(whole)[name].bfloat16(), tensor) for name, tensor in weights(half).items())


def test_a_copy_in_single_precision_serves_half_precision_too(tmp_path: Path, fresh: Path) -> None:
    file = write(truth(), tmp_path / "q8.gguf", Q8_0)
    LanguageModel.from_pretrained(file)
    model = LanguageModel.from_pretrained(file, dtype=torch.float16)
    assert model.transformer.embedding.weight.dtype is torch.float16
    assert [copy.dtype for copy in copies()] == ["float32"]


def test_a_file_in_half_precision_stays_as_small_and_gives_its_own_numbers(tmp_path: Path, fresh: Path) -> None:
    model = LanguageModel.from_pretrained(write(truth(), tmp_path / "f16.gguf", F16))
    matrices = {name: t for name, t in weights(model).items() if t.dim() == 2}
    assert all(torch.equal(t, weights(truth())[name].half().float()) for name, t in matrices.items())
    assert next(iter(matrices.values())).dtype is torch.float32
    [copy] = copies()
    stored = (copy.folder / "model.safetensors").stat().st_size
    assert stored < 2.5 * sum(t.numel() for t in set(weights(model).values()))


@pytest.mark.parametrize(("kind", "own"), [(F32, torch.float32), (F16, torch.float16), (Q8_0, torch.bfloat16)])
def test_auto_is_the_precision_of_the_file(kind: Any, own: torch.dtype, tmp_path: Path) -> None:
    model = LanguageModel.from_pretrained(write(truth(), tmp_path / "x.gguf", kind), dtype="auto")
    assert model.transformer.embedding.weight.dtype is own


def test_text_that_transformers_would_split_otherwise_than_the_file_says_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="split as for GPT-2.*'unheard-of'"):
        LanguageModel.from_pretrained(write(truth(), tmp_path / "x.gguf", pre="unheard-of"))


# ── the copy ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_unpacked_once_whatever_its_name_and_whatever_lies_beside_it(
    file: Path, tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(shutil.copy(file, tmp_path / "sha256-abcdef"))  # as Ollama names them
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "another model\'s"}')
    first = LanguageModel.from_pretrained(here)
    monkeypatch.setattr(cache, "unpack", lambda *_: pytest.fail("it was unpacked again"))
    second = LanguageModel.from_pretrained(file)
    assert all(torch.equal(weights(first)[name], tensor) for name, tensor in weights(second).items())
    assert first.prompt("hi").text == second.prompt("hi").text == truth().prompt("hi").text


@pytest.mark.parametrize("torn", ["model.safetensors", "tokenizer.json", "config.json", "copy.json"])
@pytest.mark.parametrize("how", ["cut", "lost"])
def test_a_torn_copy_is_made_anew(torn: str, how: str, file: Path, fresh: Path) -> None:
    LanguageModel.from_pretrained(file)
    [copy] = copies()
    spoilt = copy.folder / torn
    if how == "cut":
        spoilt.write_bytes(spoilt.read_bytes()[:-9])
    else:
        spoilt.unlink()
    model = LanguageModel.from_pretrained(file)
    assert all(torch.equal(weights(model)[name], tensor) for name, tensor in weights(truth()).items())
    assert [c.folder for c in copies()] == [copy.folder]


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError])
def test_unpacking_that_is_cut_off_leaves_nothing(
    end: type[BaseException], file: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack = cache.unpack

    def cut_off(*arguments: Any) -> None:
        unpack(*arguments)
        raise end("the disk is full")

    monkeypatch.setattr(cache, "unpack", cut_off)
    with pytest.raises(KeyboardInterrupt if end is KeyboardInterrupt else ModelLoadError, match="the disk is full"):
        LanguageModel.from_pretrained(file)
    assert copies() == []
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh))
    LanguageModel.from_pretrained(file)


def test_of_two_that_unpack_at_once_the_later_uses_what_the_first_has_made(
    file: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack, first = cache.unpack, []

    def overtaken(*arguments: Any) -> None:
        unpack(*arguments)
        monkeypatch.setattr(cache, "unpack", unpack)
        first.append(cache.gguf_copy(file, torch.float32)[0].stat().st_ino)

    monkeypatch.setattr(cache, "unpack", overtaken)
    folder, _ = cache.gguf_copy(file, torch.float32)
    assert [folder.stat().st_ino] == first
    assert [copy.folder for copy in copies()] == [folder]


def test_an_older_converters_copy_is_replaced(file: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_FORMAT", 0)
    LanguageModel.from_pretrained(file)
    [old] = copies()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh))
    LanguageModel.from_pretrained(file)
    [new] = copies()
    assert new.folder != old.folder


def test_the_command_lists_and_removes_copies(file: Path, fresh: Path) -> None:
    assert nabla("cache").stdout == ""
    LanguageModel.from_pretrained(file)
    listed = nabla("cache").stdout
    assert listed.count("\n") == 1
    assert all(word in listed for word in (str(file), "float32", "0.00 GB"))
    assert nabla("cache", "clear").stdout == "0.00 GB are free again.\n"
    assert nabla("cache").stdout == ""


# ── doors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_engine_takes_a_file_or_a_folder_and_the_name_of_one(file: Path) -> None:
    doors: list[dict[str, Any]] = [
        {"model": str(file)},
        {"model": file},
        {"model": file.parent, "gguf_file": file.name},
        {"model": str(file.parent), "gguf_file": file.name},
    ]
    engines = [Engine(**door, strategy=na.Greedy()) for door in doors]
    expected = Engine(model=truth(), strategy=na.Greedy()).generate("What?", sampling=GREEDY).token_ids
    assert all(engine.generate("What?", sampling=GREEDY).token_ids == expected for engine in engines)


@pytest.fixture
def hub(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub id whose file was downloaded before."""
    snapshot = tmp_path / "hub" / "models--someone--llamas" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(file, snapshot / "tiny.gguf")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return "someone/llamas"


@pytest.mark.parametrize("door", [{"gguf_file": "tiny.gguf"}, {}])
def test_a_hub_id_and_a_name_are_a_file(door: dict[str, str], hub: str) -> None:
    name = hub if door else f"{hub}/tiny.gguf"
    assert torch.equal(
        LanguageModel.from_pretrained(name, **door).transformer.embedding.weight, truth().transformer.embedding.weight
    )


def test_rewards_are_loaded_from_files(file: Path, job: Any) -> None:
    reward = ImplicitReward.from_pretrained(file, reference=file)
    [score] = reward.bind(truth()).score(truth().rollout([job(truth(), "What?")]))
    assert score.value == pytest.approx(0, abs=1e-5), "a model and itself"


def test_a_reward_that_needs_a_head_says_that_the_file_has_none(file: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no weights for score\.bias, score\.weight"):
        na.ProcessReward.from_pretrained(file)


def test_the_command_line_answers_from_a_file_and_says_that_it_unpacks(
    file: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1" if name.startswith(("HF_HUB_D", "TQDM")) else "error")
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.tqdm", partial(tqdm, disable=True))  # as it is then
    command = ("solve", "What?", "--model", file, "--max-tokens", "12", "--json", "--strategy")
    done = nabla(*command, "greedy")
    assert done.exit_code == 0, done.output
    expected = Engine(model=truth(), strategy=na.Greedy()).generate("What?", sampling=Sampling(max_tokens=12)).text
    assert json.loads(done.stdout)["text"] == expected
    assert done.stderr.splitlines() == [f"Unpacking {file.name}, once (0.0 GB)", f"Loading {file.name}"]
    judged = nabla(*command, "best-of-n", "--reward", f"0.5*implicit:{file}", "--rollouts", "2")
    assert json.loads(judged.stdout)["score"]["value"] == pytest.approx(0, abs=1e-5)
    assert judged.stderr == "", "it is unpacked already"


@pytest.mark.slow
def test_nothing_of_transformers_is_seen_while_the_command_unpacks(file: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from nabla_agents.cli import main; main()",
        "solve",
        "What?",
        "--model",
        file,
        "--strategy",
        "greedy",
    ]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([*command, "--max-tokens", "3"], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"Unpacking {file.name}, once (0.0 GB)", f"Loading {file.name}"]


def test_a_bench_file_names_a_file_and_its_rewards_are_not_of_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BenchConfig(
        model=str(file.parent),
        loading={"gguf_file": file.name},
        problems=1,
        rewards={"itself": f"implicit:{file}"},
        strategies={"best-of-n": {}},
    )
    ready = config.bench()
    assert torch.equal(ready._model.transformer.embedding.weight, truth().transformer.embedding.weight)


@pytest.mark.filterwarnings("ignore:The engine has no reward")
def test_the_fields_of_adapters_take_a_file(file: Path) -> None:
    for settings in ({"model": str(file)}, {"model": str(file.parent), "gguf_file": file.name}):
        model = EngineSettings(**settings).load().model
        assert torch.equal(model.transformer.embedding.weight, truth().transformer.embedding.weight)


# ── what cannot be loaded ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("no.gguf", lambda data: b"PK\x03\x04" + data[4:], r"no GGUF file: it begins with b'PK.*Give a GGUF file"),
        ("empty.gguf", lambda data: b"", "is empty. Fetch or convert it anew"),
        ("cut.gguf", lambda data: data[:-1000], r"ends after [\d,]+ of [\d,]+ bytes. Fetch"),
        ("head.gguf", lambda data: data[:3000], r"header that cannot be read.*Fetch"),
        ("old.gguf", lambda data: data[:4] + b"\x01" + data[5:], "version 1; expected 2 or 3"),
    ],
)
@pytest.mark.usefixtures("packed")
def test_a_file_that_is_not_whole_is_refused_before_it_is_unpacked(
    name: str, spoil: Any, message: str, file: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ModelLoadError, match=message):
        LanguageModel.from_pretrained(tmp_path / name)


@pytest.mark.parametrize("cut", range(24, 4000, 331))
@pytest.mark.usefixtures("packed")
def test_wherever_a_header_is_cut_it_is_our_error(cut: int, file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelLoadError, match="cannot be read"):
        LanguageModel.from_pretrained(tmp_path / "x.gguf")


@pytest.mark.usefixtures("packed")
def test_an_architecture_that_transformers_does_not_read_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    file = write(truth(), tmp_path / "x.gguf", architecture="rwkv6")
    with pytest.raises(ModelLoadError, match=r"'rwkv6', which transformers .* does not read.*original checkpoint"):
        LanguageModel.from_pretrained(file)


@pytest.mark.usefixtures("packed")
def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    file = write(truth(), tmp_path / "x-00001-of-00003.gguf", split__count=3)
    with pytest.raises(ModelLoadError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        LanguageModel.from_pretrained(file)


def test_a_file_that_lacks_weights_is_refused_and_not_kept(tmp_path: Path, fresh: Path) -> None:
    """transformers would make them up at random."""
    file = write(truth(), tmp_path / "x.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(ModelLoadError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        LanguageModel.from_pretrained(file)
    assert copies() == []


@pytest.mark.usefixtures("packed")
def test_files_that_are_not_there_are_named(file: Path, tmp_path: Path) -> None:
    for name in ("no-such.gguf", tmp_path / "no-such.gguf", "./a/b/c.gguf"):
        with pytest.raises(ModelLoadError, match="there is no such file"):
            LanguageModel.from_pretrained(name)
    with pytest.raises(ModelLoadError, match="there is no such file"):
        LanguageModel.from_pretrained(tmp_path, gguf_file="no-such.gguf")
    with pytest.raises(ModelLoadError, match="Cannot load the GGUF file of model 'someone/else/x.gguf'"):
        LanguageModel.from_pretrained("someone/else", gguf_file="x.gguf")
    with pytest.raises(ModelLoadError, match=f"say which one, with gguf_file='{file.name}'"):
        LanguageModel.from_pretrained(file.parent)


@pytest.mark.usefixtures("packed")
def test_missing_packages_are_named_with_the_extra(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cache, "version", version)
    with pytest.raises(ModelLoadError, match=r"gguf and accelerate.*pip install 'nabla-agents\[gguf\]'"):
        LanguageModel.from_pretrained(file)


def test_transformers_that_are_too_old_are_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "version", lambda name: "5.9.1" if name == "transformers" else "1.0")
    with pytest.raises(ModelLoadError, match=r"need transformers 5\.22 or newer, this is 5\.9\.1: pip install"):
        LanguageModel.from_pretrained(file)


@pytest.mark.usefixtures("packed")
def test_a_disk_without_room_is_refused_before_it_is_filled(
    tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(truth(), tmp_path / "x.gguf")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(ModelLoadError, match=r"takes 0\.0 GB.*nabla cache clear.*XDG_CACHE_HOME.*bfloat16"):
        LanguageModel.from_pretrained(file)


def test_a_cache_that_cannot_be_written_is_our_error(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ModelLoadError, match="cannot be written to.*XDG_CACHE_HOME"):
        LanguageModel.from_pretrained(file)


def test_clearing_an_empty_cache_frees_nothing(fresh: Path) -> None:
    assert clear_copies() == 0
    assert Loading().gguf_file is None
