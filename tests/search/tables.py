"""A language model that is a table: each row is what a function says of the prompt's text and the completion so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nabla_agents import LanguageModel

Ids = tuple[int, ...]
Table = Callable[[str, Ids], Tensor]  # text of the prompt, completion so far -> log-probabilities [vocab]


def table_model(table: Table, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """Its keys are the token ids, so that prompts are kept as those of any other model are."""
    config = PretrainedConfig(
        vocab_size=len(tokenizer),
        hidden_size=len(tokenizer),
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LanguageModel(_Model(config, _Body(config, table, tokenizer)), tokenizer, name="table")


class _Body(nn.Module):
    def __init__(self, config: PretrainedConfig, table: Table, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(config.vocab_size, dtype=torch.float64))
        self._table, self._tokenizer = table, tokenizer
        self._opening = tokenizer.encode("<assistant>", add_special_tokens=False)[0]

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
        known = ids
        if past_key_values is not None:
            keys, _values = past_key_values.update(ids[:, None, :, None].double(), ids[:, None, :, None].double(), 0)
            known = keys[:, 0, :, 0].long()
        mask = torch.ones_like(known, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        rows = [self._rows(row.tolist(), m.tolist(), ids.shape[1]) for row, m in zip(known, mask, strict=True)]
        return SimpleNamespace(last_hidden_state=torch.stack(rows) + 0.0 * embeds)

    def _rows(self, ids: Sequence[int], mask: Sequence[bool], newest: int) -> Tensor:
        rows = torch.ones(newest, self.embedding.num_embeddings, dtype=torch.float64)  # what is within a prompt
        for i in range(newest):
            end = len(ids) - newest + i + 1
            real = [token for token, there in zip(ids[:end], mask[:end], strict=True) if there]
            if mask[end - 1] and self._opening in real:
                begin = len(real) - real[::-1].index(self._opening)
                rows[i] = self._table(self._tokenizer.decode(real[:begin]), tuple(real[begin:]))
        return rows


class _Model(PreTrainedModel):
    config_class = PretrainedConfig
    base_model_prefix = "body"

    def __init__(self, config: PretrainedConfig, body: _Body) -> None:
        super().__init__(config)
        self.generation_config = GenerationConfig(eos_token_id=config.eos_token_id)
        self.body = body
        self.head = nn.Linear(config.vocab_size, config.vocab_size, bias=False)
        self.head.weight = nn.Parameter(torch.eye(config.vocab_size, dtype=torch.float64))

    def get_input_embeddings(self) -> nn.Module:
        return self.body.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.body(input_ids).last_hidden_state))
