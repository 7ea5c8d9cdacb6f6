"""scripted_model: a language model that says what a script tells it, for tests of agents and adapters.

Everything but the choice of words is real: templates, tokens, caches, decoding, grammars, gradients and the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nabla_agents import tiny
from nabla_agents.models.language_model import LanguageModel

Script = Callable[[str], str]
_CERTAIN = 30.0  # nats by which the scripted token is ahead
_ENDINGS = {'"': 2.0, "}": 2.0, "]": 1.5, "\n": 1.0}  # where a grammar forbids the scripted token, it ends soon


def scripted_model(script: Script, *, tokenizer: PreTrainedTokenizerBase | None = None) -> LanguageModel:
    """A language model whose completion of a prompt is `script(prompt text)`, whatever has been completed so far.

    Where a grammar forbids the script's next token, what the grammar has comes instead, as short as may be. The
    tokenizer is that of the embedded model, whose template knows tools, if none is given.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(tiny.LM_PATH)
    return LanguageModel(_Scripted(_config(tokenizer), _Speaker(script, tokenizer)), tokenizer, name="scripted")


class _Speaker:
    """Which token comes next, given all tokens so far."""

    def __init__(self, script: Script, tokenizer: PreTrainedTokenizerBase) -> None:
        self._script, self._tokenizer = script, tokenizer
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        opened = tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
        )
        self._opening = self._ids(str(opened)[len(str(rendered)) :])
        self._said: dict[tuple[int, ...], list[int]] = {}

    def begins(self, ids: Sequence[int]) -> int | None:
        """Where the newest completion begins; None within a prompt."""
        size = len(self._opening)
        places = range(len(ids) - size, -1, -1)
        return next((i + size for i in places if list(ids[i : i + size]) == self._opening), None)

    def next(self, prompt: Sequence[int], completion: Sequence[int]) -> int | None:
        """The scripted token; None where the completion has left the script."""
        prompt = tuple(prompt)
        if prompt not in self._said:
            text = str(self._tokenizer.decode(list(prompt), skip_special_tokens=False))
            eos: Any = self._tokenizer.eos_token_id
            self._said[prompt] = [*self._ids(self._script(text)), eos]
        said = self._said[prompt]
        at = len(completion)
        return said[at] if at < len(said) and list(completion) == said[:at] else None

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


class _Body(nn.Module):
    """One layer whose keys are the token ids themselves, so that the cache knows what was read."""

    def __init__(self, config: PretrainedConfig, speaker: _Speaker) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(config.vocab_size))
        self._speaker = speaker
        self._lost = torch.zeros(config.vocab_size)
        for text, logit in _ENDINGS.items():
            self._lost[speaker._ids(text)[0]] = logit
        self._lost[config.eos_token_id] = 3.0

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> SimpleNamespace:
        embeds = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        ids = embeds.argmax(-1)
        if past_key_values is None:
            known = ids
        else:
            keys, _values = past_key_values.update(ids[:, None, :, None].float(), ids[:, None, :, None].float(), 0)
            known = keys[:, 0, :, 0].long()
        mask = torch.ones_like(known, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        states = [self._states(row.tolist(), m.tolist(), ids.shape[1]) for row, m in zip(known, mask, strict=True)]
        return SimpleNamespace(last_hidden_state=torch.stack(states).to(embeds) + 0.0 * embeds)

    def _states(self, row: list[int], mask: list[bool], newest: int) -> Tensor:
        """[newest, vocab]: the logits after each of the tokens read last."""
        states = self._lost.repeat(newest, 1)
        real = [token for token, there in zip(row, mask, strict=True) if there]
        begin = self._speaker.begins(real)
        if begin is None:
            return states
        place = len(real)
        for back in range(1, newest + 1):
            if not mask[-back] or place < begin:
                continue
            token = self._speaker.next(real[:begin], real[begin:place])
            if token is not None:
                states[-back, token] = _CERTAIN
            place -= 1
        return states


class _Scripted(PreTrainedModel):
    """The body with an output head that changes nothing."""

    config_class = PretrainedConfig
    base_model_prefix = "body"

    def __init__(self, config: PretrainedConfig, speaker: _Speaker) -> None:
        super().__init__(config)
        self.generation_config = GenerationConfig(eos_token_id=config.eos_token_id)
        self.body = _Body(config, speaker)
        self.head = nn.Linear(config.vocab_size, config.vocab_size, bias=False)
        self.head.weight = nn.Parameter(torch.eye(config.vocab_size))

    def get_input_embeddings(self) -> nn.Module:
        return self.body.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **options: Any) -> SimpleNamespace:
        read = self.body(input_ids, **{**options, "past_key_values": None})
        return SimpleNamespace(logits=self.head(read.last_hidden_state))


def _config(tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": len(tokenizer),
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return PretrainedConfig(**shape)
