"""How a GGUF file is unpacked: weights, tokenizer, chat template and end tokens, all from the file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from nabla_agents.errors import ModelLoadError
from nabla_agents.models.gguf_header import GgufHeader

_END_FIELDS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
# Ends of a document: a turn that runs into one is over, whatever the file says. As llama.cpp takes them.
_DOCUMENT_ENDS: Final = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<eos>", "</s>")
# `tokenizer.ggml.pre` of vocabularies whose digits stand alone, which transformers splits as GPT-2's.
_SINGLE_DIGITS: Final = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


def refuse_unknown(file: Path, header: GgufHeader) -> None:
    """Raises ModelLoadError where transformers knows no such architecture."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as known

    def plain(name: str) -> str:
        return name.replace("-", "").replace("_", "")

    names = set(known)
    try:
        from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
        from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
    except ImportError:  # not before 5.2x
        pass
    else:
        names |= {*GGUF_ARCHS, *GGUF_CONFIG_ARCHS}
    if plain(header.architecture) not in set(map(plain, names)):
        raise ModelLoadError(
            f"{str(file)!r} holds a model of architecture {header.architecture!r}, which transformers "
            f"{transformers.__version__} does not read from GGUF files. Give the folder or hub id of the original "
            "checkpoint, or update transformers."
        )


def unpack(file: Path, header: GgufHeader, target: Path, dtype: torch.dtype) -> None:
    """Writes a checkpoint with weights of this type, and of less precision where a tensor loses nothing by it.

    Raises:
        ModelLoadError: the file lacks weights, or transformers fails at it.
    """
    with tempfile.TemporaryDirectory() as alone:  # files beside the GGUF file would be read too
        folder, name = _alone(file, Path(alone))
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            with without_bars():
                module, about = _module(folder, name, dtype)
        except Exception as e:  # transformers and gguf raise anything
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise ModelLoadError(
                f"transformers {transformers.__version__} cannot unpack {str(file)!r} "
                f"({header.architecture}): {reason} Give the folder or hub id of the original checkpoint."
            ) from e
    if lacking := sorted(about["missing_keys"]):
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ModelLoadError(
            f"{str(file)!r} has no weights for {', '.join(lacking[:3])}{more} of {type(module).__name__}. Give the "
            "folder or hub id of the original checkpoint."
        )
    _split_as_trained(tokenizer, header)
    generation: Any = module.generation_config
    generation.eos_token_id = end_ids(tokenizer, header)
    _narrow(module)
    with without_bars():
        module.save_pretrained(target)
    tokenizer.save_pretrained(target)


def end_ids(tokenizer: Any, header: GgufHeader) -> list[int]:
    """Tokens that end an answer: those that the file names, what its chat template writes behind an answer, and the
    end of a document.
    """
    named = (header.fields.get(f"tokenizer.ggml.{field}") for field in _END_FIELDS)
    ids = {int(token) for token in named if token is not None}
    special = tokenizer.get_added_vocab()
    ids |= {special[text] for text in _DOCUMENT_ENDS if text in special}
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            behind = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("answer")[2].lstrip()
        except Exception:  # a template raises what it likes
            behind = ""
        ids |= {special[text] for text in sorted(special, key=len) if text and behind.startswith(text)}
    return sorted(ids)


def _alone(file: Path, folder: Path) -> tuple[str, str]:
    try:
        (folder / "model.gguf").symlink_to(file.resolve())
    except OSError:  # not allowed to every user of Windows
        return str(file.parent), file.name
    return str(folder), "model.gguf"


def _module(folder: str, name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A plain model: nothing in it says any more that it was quantised."""
    config: Any = getattr(transformers, "GgufConfig", None)  # where there is one, weights could stay packed on a GPU
    options = {} if config is None else {"quantization_config": config(dequantize=True)}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=dtype, output_loading_info=True, **options
    )
    module, about = loaded
    module.is_quantized, module.hf_quantizer = False, None
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config
    return module, about


@torch.no_grad()
def _narrow(module: PreTrainedModel) -> None:
    """A file in half precision stays as small as it is."""
    for parameter in module.parameters():
        for dtype in (torch.float16, torch.bfloat16):
            narrow = parameter.to(dtype)
            if parameter.dtype is torch.float32 and torch.equal(narrow.float(), parameter):
                parameter.data = narrow
                break


def _split_as_trained(tokenizer: Any, header: GgufHeader) -> None:
    """Has a byte-level tokenizer split text as the vocabulary was learned."""
    pre = header.fields.get("tokenizer.ggml.pre")
    if header.fields.get("tokenizer.ggml.model") != "gpt2" or pre in (None, "default", "gpt-2", "gpt2"):
        return
    if pre in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    elif type(tokenizer.backend_tokenizer.pre_tokenizer) is ByteLevel:
        warnings.warn(
            f"Text is split as for GPT-2, since transformers does not know the way of {pre!r} that the GGUF file "
            "names: some numbers and spaces may become other tokens than the model was trained on.",
            stacklevel=2,
        )


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers shows a bar of its own for every model, in whatever program it is."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
