"""`from_pretrained` for language and reward models: checks first, weights last, errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from pydantic import field_validator
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from nabla_agents.config import Settings
from nabla_agents.errors import ModelLoadError, NablaError
from nabla_agents.models.checkpointing import checkpoint_layers
from nabla_agents.models.compiled import compile_passes
from nabla_agents.models.gguf_copy import gguf_copy
from nabla_agents.models.gguf_header import is_gguf
from nabla_agents.models.gguf_unpacking import without_bars
from nabla_agents.models.precision import fastest
from nabla_agents.models.quantised import check_gradient, prepare

LoadedT = TypeVar("LoadedT")

TINY = "tiny"
_LOCAL = ("/", "./", "../", "~")
_NAMES = "Give a folder with config.json and tokenizer files, a model hub id, a GGUF file, or 'tiny' (embedded)."


class LoadingOptions(TypedDict, total=False):
    """The settings of `Loading`, as keywords of whatever loads a model."""

    dtype: str | torch.dtype | None
    device_map: str | dict[str, Any] | None
    revision: str | None
    gguf_file: str | None
    quantization_config: Any
    check_gradient: bool
    trust_remote_code: bool
    activation_checkpointing: bool
    compile: bool


class Loading(Settings):
    """How weights are loaded; passed on to transformers' `from_pretrained`.

    `dtype` None means the checkpoint's own on a GPU and float32 on a CPU; `fastest` is bfloat16 where the device
    computes with it, else float32. `device_map` None means one GPU if there is
    one, else the CPU; any other value needs accelerate. `gguf_file` names a GGUF file of a folder or hub id, which is
    unpacked once (see `gguf_copy`). Quantised layers that no gradient goes through are refused, but with
    `check_gradient=False`, for searches that take none. Code shipped with a checkpoint runs only with
    `trust_remote_code=True`. With `activation_checkpointing` a gradient pass holds the activations of one layer at a
    time, and costs one forward more. With `compile` passes without gradient are compiled by `torch.compile`:
    decode steps of small layers take two thirds of the time, after up to a minute when they are first needed.
    """

    dtype: str | torch.dtype | None = None
    device_map: str | dict[str, Any] | None = None
    revision: str | None = None
    gguf_file: str | None = None
    quantization_config: Any = None
    check_gradient: bool = True
    trust_remote_code: bool = False
    activation_checkpointing: bool = False
    compile: bool = False

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str | torch.dtype | None) -> str | torch.dtype | None:
        if value in ("auto", "fastest") or not isinstance(value, str):
            return value
        if not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError("expected a torch dtype such as 'bfloat16', 'auto', 'fastest' or None")
        return value


def load(
    name: str | Path,
    auto_class: Any,
    loading: Loading,
    *,
    tiny_path: Path,
    check: Callable[[Any, PreTrainedTokenizerBase], None] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a hub id, a folder or a GGUF file; the name `tiny` is the embedded model.

    Config and tokenizer are read, and given to `check`, before any weight; a GGUF file is unpacked before that, once.

    Raises:
        ModelLoadError: nothing loadable under that name, remote code without consent, wrong architecture, or a
            checkpoint without some of the weights (transformers would make them up at random), or quantised layers
            without a gradient.
    """
    device, dtype = _device(), chosen_dtype(loading)
    path, file, common = located(name, loading, tiny_path=tiny_path)
    if file is not None:
        folder, dtype = gguf_copy(file, precision(dtype))
        path, common = str(folder), {}
    config = attempt(name, "config", lambda: AutoConfig.from_pretrained(path, **common))
    tokenizer = attempt(name, "tokenizer", lambda: _tokenizer(path, common))
    if check is not None:
        check(config, tokenizer)
    options: dict[str, Any] = {**common, "dtype": dtype}
    if loading.device_map is not None:
        options["device_map"] = loading.device_map
    if loading.quantization_config is not None:
        options["quantization_config"] = loading.quantization_config
    model: Any = _weights(name, path, auto_class, options)
    if loading.device_map is None and loading.quantization_config is None:
        model = model.to(device)
    if getattr(model, "is_quantized", False):
        prepare(model)
        if loading.check_gradient:
            check_gradient(model, str(name))
    if loading.activation_checkpointing:
        checkpoint_layers(model)
    if loading.compile:
        compile_passes(model)
    return model, tokenizer


def chosen_dtype(loading: Loading) -> str | torch.dtype:
    """The type of weights: a torch dtype, its name, or `auto`, the checkpoint's own."""
    if loading.dtype is None:
        return "auto" if _device() == "cuda" else torch.float32
    return fastest() if loading.dtype == "fastest" else loading.dtype


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def located(name: str | Path, loading: Loading, *, tiny_path: Path) -> tuple[str, Path | None, dict[str, Any]]:
    """Where a model is: its folder or hub id, its GGUF file if it is one, and how transformers is told to read it.

    Raises:
        ModelLoadError: there is no such folder or file.
    """
    path = str(tiny_path) if str(name) == TINY else str(name)
    common: dict[str, Any] = {"revision": loading.revision} if loading.revision else {}
    common["trust_remote_code"] = loading.trust_remote_code
    if (file := _gguf_file(path, loading)) is None:
        _refuse_missing(path, local=isinstance(name, Path))
    return path, file, common


def _weights(name: str | Path, path: str, auto_class: Any, options: Mapping[str, Any]) -> PreTrainedModel:
    with without_bars():
        model, info = attempt(
            name, "weights", lambda: auto_class.from_pretrained(path, output_loading_info=True, **options)
        )
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelLoadError(
            f"The checkpoint {str(name)!r} has no weights for {', '.join(missing[:3])}{more} of "
            f"{type(model).__name__}: it is another kind of model. Choose the class or format that it was trained "
            "with; if it ships its own code, read that code and consent with trust_remote_code=True."
        )
    return model


def _gguf_file(path: str, loading: Loading) -> Path | None:
    """The GGUF file that is meant, there or not: by its path, in a folder, or of a hub id (`owner/name/x.gguf`)."""
    name, local = loading.gguf_file, Path(path).expanduser()
    if name is None:
        if local.is_file():
            return local if path.endswith(".gguf") or is_gguf(local) else None
        if not path.endswith(".gguf"):
            return None
        *owner_and_name, file = path.split("/", 2)
        if len(owner_and_name) < 2 or path.startswith(_LOCAL):
            return local
        path, name = "/".join(owner_and_name), file
    elif local.is_dir():
        return local / name
    fetch: Any = partial(cached_file, path, name, revision=loading.revision)
    return Path(attempt(f"{path}/{name}", "GGUF file", fetch))


def _refuse_missing(path: str, *, local: bool) -> None:
    folder = Path(path)
    if (local or path.startswith(_LOCAL)) and not folder.is_dir():
        raise ModelLoadError(f"Cannot load model {path!r}: there is no such folder. {_NAMES}")
    if folder.is_dir() and not (folder / "config.json").exists() and (files := sorted(folder.glob("*.gguf"))):
        raise ModelLoadError(
            f"The folder {path!r} has GGUF files and no config.json: say which one, with gguf_file={files[0].name!r} "
            f"or as {str(files[0])!r}."
        )


def precision(dtype: str | torch.dtype) -> torch.dtype | None:
    """The torch dtype of that name; None for `auto`."""
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    return named if isinstance(named, torch.dtype) else None


def _tokenizer(path: str, common: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Raises OSError for a tokenizer without words, which transformers makes up where a folder has none."""
    tokenizer = AutoTokenizer.from_pretrained(path, **common)
    words = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
    if len(words) < 2:
        raise OSError("it has no vocabulary.")
    return tokenizer


def attempt(name: str | Path, what: str, load_it: Any) -> Any:
    """What a step of loading gives, or a ModelLoadError that names the model and says what to do."""
    try:
        return load_it()
    except NablaError:
        raise
    except Exception as e:  # a broken checkpoint or a missing device or package raises anything
        if "trust_remote_code" in str(e):
            advice = "It ships its own code: read that code, then consent with trust_remote_code=True."
        elif isinstance(e, ImportError):
            advice = "Install the package that it names."
        else:
            advice = _NAMES
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelLoadError(f"Cannot load the {what} of model {str(name)!r}: {reason} {advice}") from e
