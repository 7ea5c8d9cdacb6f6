"""Doubles for tests of code that uses this package: small random models of real architectures, tokenizers, rewards.

Nothing is downloaded. The weights are random but scaled so that distributions are far from uniform: every code path
runs as with a trained model, and the numbers differ from position to position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from nabla_agents.errors import ConfigurationError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.rewards.base import Reward
from nabla_agents.rewards.learned.aggregation import Aggregation
from nabla_agents.rewards.learned.formats import SEQUENCE_CLASSIFICATION, TRL_PRM, OutcomeFormat, StepFormat
from nabla_agents.rewards.learned.heads import HEAD_NAMES, loader
from nabla_agents.rewards.learned.outcome import OutcomeReward
from nabla_agents.rewards.learned.process import ProcessReward
from nabla_agents.types import Rollout, Score, Usage

Architecture = Literal["qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3"]
EOS = "<eos>"
ROLES = ("<system>", "<user>", "<assistant>", "<tool>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '>' + message.content + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word, and text that is the words joined without a separator.

    Ids are 0, 1, ... in the order given; `<eos>` and one marker for each role follow. The longest word that fits is
    read first; if no word begins another, ids and text determine each other. Text with anything else in it is refused.
    """
    if not words or len(set(words)) < len(words) or "" in words:
        raise ConfigurationError(f"word_tokenizer got {list(words)!r}; expected different words, none of them empty.")
    special = (EOS, *ROLES)
    raw = RawTokenizer(models.WordLevel({word: i for i, word in enumerate((*words, *special))}))
    longest_first = sorted(words, key=len, reverse=True)
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(_escaped, longest_first))), behavior="isolated")
    raw.decoder = decoders.Fuse()
    return _fast(raw)


def permuted_tokenizer(words: Sequence[str], seed: int = 0) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A `word_tokenizer` of the same words with other ids, and its id for each id of the first."""
    order: list[int] = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed)).tolist()
    tokenizer = word_tokenizer([words[i] for i in order])
    rest = range(len(words), len(tokenizer))
    return tokenizer, [*(order.index(i) for i in range(len(words))), *rest]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each byte, so that any text round-trips; `<eos>` and role markers follow."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*alphabet, EOS, *ROLES))}
    raw = RawTokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return _fast(raw)


def random_model(
    architecture: Architecture = "qwen2",
    *,
    vocabulary: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    scale: float = 2.0,
    **shape: Any,
) -> LanguageModel:
    """A language model with random weights, the same for the same arguments.

    Its tokens are the words of `vocabulary`, or those of `tokenizer`; bytes if neither is given. `scale` is the spread
    of the logits in nats. Further options: seed, dtype, layers, width, sliding_window (not of llama), context_length.
    """
    if vocabulary is not None and tokenizer is not None:
        raise ConfigurationError("random_model got a vocabulary and a tokenizer; expected at most one of them.")
    tokenizer = tokenizer or (byte_tokenizer() if vocabulary is None else word_tokenizer(vocabulary))
    module = _module(AutoModelForCausalLM, architecture, tokenizer, scale, **shape)
    return LanguageModel(module, tokenizer, name=f"random {architecture}")


def random_process_reward(
    tokenizer: PreTrainedTokenizerBase,
    architecture: Architecture = "qwen2",
    *,
    format: StepFormat | None = None,
    separator: str | None = None,
    aggregation: Aggregation | None = None,
    labels: int = 2,
    min_coverage: float = 0.5,
    scale: float = 2.0,
    **shape: Any,
) -> ProcessReward:
    """A process reward with random weights and the true head of its format (TRL's, with `labels`, if none is given).

    The default aggregation is the format's. Further options as in `random_model`.
    """
    shape = {**shape, "num_labels": labels} if format is None or format.head == "classes" else shape
    module = _module(loader(format or TRL_PRM), architecture, tokenizer, scale, **shape)
    return ProcessReward(
        module,
        tokenizer,
        format=format,
        separator=separator,
        aggregation=aggregation,
        min_coverage=min_coverage,
    )


def random_outcome_reward(
    tokenizer: PreTrainedTokenizerBase,
    architecture: Architecture = "qwen2",
    *,
    format: OutcomeFormat = SEQUENCE_CLASSIFICATION,
    min_coverage: float = 0.5,
    scale: float = 2.0,
    **shape: Any,
) -> OutcomeReward:
    """An outcome reward with random weights; further options as in `random_model`."""
    module = _module(loader(format), architecture, tokenizer, scale, num_labels=1, **shape)
    return OutcomeReward(module, tokenizer, format=format, min_coverage=min_coverage)


class FixedReward(Reward):
    """A reward that a plain function of the rollout decides: a number, or a whole `Score`. It has no gradient."""

    def __init__(self, judge: Callable[[Rollout], float | Score]) -> None:
        self._judge = judge

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        verdicts = [self._judge(r) for r in rollouts]
        return [v if isinstance(v, Score) else Score(float(v), usage=Usage(reward_calls=1)) for v in verdicts]


def _fast(raw: RawTokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=EOS,
        extra_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _escaped(word: str) -> str:
    """Every character as a code point, which no regular expression reads as anything else."""
    return "".join(f"\\x{{{ord(c):X}}}" for c in word)


def _module(
    auto_class: Any,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    scale: float,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    width: int = 32,
    sliding_window: int | None = None,
    context_length: int = 512,
    **config: Any,
) -> PreTrainedModel:
    """Weights drawn from a generator of their own: the global one is left as it was."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": context_length,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": None,
        **_windows(architecture, layers, sliding_window, context_length),
        **config,
    }
    made = AutoConfig.for_model("gemma3_text" if architecture == "gemma3" else architecture, **settings)
    try:
        with torch.random.fork_rng(devices=[]):
            module = auto_class.from_config(made)
    except ValueError as e:
        raise ConfigurationError(f"transformers has no {auto_class.__name__} of {architecture}.") from e
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(e.weight) for e in (module.get_input_embeddings(), module.get_output_embeddings()) if e}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                spread = scale if id(parameter) in embeddings or name.startswith(HEAD_NAMES) else 1.0
                parameter.normal_(0, spread / parameter.shape[1] ** 0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
            elif architecture.startswith("gemma") and "layernorm" in name and "post_" in name:
                parameter.fill_(3.0)  # else every layer adds little, and the tied head repeats the token just read
    return module.to(dtype)


def _windows(
    architecture: Architecture, layers: int, sliding_window: int | None, context_length: int
) -> dict[str, Any]:
    """Sliding attention as the architecture has it: in every layer of Mistral, in every other one elsewhere."""
    if architecture == "llama":
        if sliding_window is not None:
            raise ConfigurationError("Llama has no sliding window; choose mistral, qwen2, gemma2 or gemma3.")
        return {}
    if architecture == "mistral":
        return {"sliding_window": sliding_window}
    if architecture.startswith("qwen") and sliding_window is None:
        return {}
    alternating = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    used = {"use_sliding_window": True} if architecture.startswith("qwen") else {}
    return {"sliding_window": sliding_window or context_length, "layer_types": alternating, **used}
