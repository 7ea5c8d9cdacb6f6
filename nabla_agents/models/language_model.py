"""A causal language model that renders prompts, samples rollouts and differentiates their likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from nabla_agents import tiny
from nabla_agents.chat.grammar import Grammar
from nabla_agents.chat.template import folded, in_dialect, with_tools_in_text
from nabla_agents.errors import ContextOverflowError, ModelLoadError, PromptError
from nabla_agents.functional import HEAD_CHUNK, NARROW, token_log_probs, wide
from nabla_agents.models.constraint import Compiler, Constraint
from nabla_agents.models.decoding import Decoding, RolloutJob, rollout
from nabla_agents.models.gradients import LikelihoodRows, token_gradient
from nabla_agents.models.grouping import by_length
from nabla_agents.models.loading import Loading, LoadingOptions, load
from nabla_agents.models.precision import widened
from nabla_agents.models.prefix_cache import PrefixCache
from nabla_agents.models.threads import release_threads
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.models.transformer import Transformer
from nabla_agents.types import Message, Prompt, Rollout, Usage


@dataclass(frozen=True, eq=False)
class LikelihoodGradient:
    """The gradient of one rollout's log-likelihood and what it cost."""

    gradient: LikelihoodRows
    usage: Usage


class LanguageModel:
    """Any Hugging Face causal language model with its tokenizer. Holds no request state; threads may share it.

    Raises:
        ModelLoadError: the architecture's logits are not its head on its body's hidden states, up to a constant factor.
    """

    def __init__(self, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "") -> None:
        self.transformer = Transformer(module)
        self.name = name or str(getattr(module.config, "_name_or_path", "")) or type(module).__name__
        self.tokenizer = Tokenizer(tokenizer, name=self.name)
        self.narrow = module.dtype in NARROW
        self._lm_head: Any = widened(module.get_output_embeddings())
        self.context_length = self.transformer.context_length
        self.vocab_size, width = map(int, self.transformer.embedding.weight.shape)
        self.head_flops = 2.0 * width * self.vocab_size
        self.eos_ids = frozenset(
            _ids(getattr(module.generation_config, "eos_token_id", None)) | _ids(tokenizer.eos_token_id)
        )
        self._logit_scale = 1.0
        self._logit_scale = self._measured_scale()
        release_threads()

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r})"

    @classmethod
    def from_pretrained(cls, name: str | Path, **loading: Unpack[LoadingOptions]) -> LanguageModel:
        """Loads a hub id, a folder, or `tiny` (the embedded model); options are those of `Loading`."""
        module, tokenizer = load(name, AutoModelForCausalLM, Loading(**loading), tiny_path=tiny.LM_PATH)
        return cls(module, tokenizer, name=str(name))

    # ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def prompt(
        self,
        conversation: str | Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        formatted: bool = False,
    ) -> Prompt:
        """Renders a conversation by the chat template; a plain string is one user turn.

        For a template without tools, they and their calls are written into the text; for one that refuses the system
        role or neighbours of one role, turns are joined.

        `formatted=True` takes a string verbatim, for completion models or already rendered prompts; a token that
        begins every text of the tokenizer is added where it is missing.

        Raises:
            PromptError: empty, no chat template, or refused by the template or the tokenizer.
            ContextOverflowError: no room for one completion token.
        """
        if formatted:
            if not isinstance(conversation, str):
                raise PromptError("formatted=True takes the prompt verbatim: expected one string, got messages.")
            messages, text = (), conversation
            if self.tokenizer.adds_bos and text and not text.startswith(self.tokenizer.bos):
                text = self.tokenizer.bos + text
        else:
            messages = (Message("user", conversation),) if isinstance(conversation, str) else tuple(conversation)
            if isinstance(tools, str) or not all(isinstance(tool, Mapping) for tool in tools or ()):
                raise PromptError(f"tools is {tools!r}; expected a list of functions described as in OpenAI's API.")
            if not any(m.content.strip() or m.extra for m in messages):
                raise PromptError("The prompt is empty; expected a question or a conversation with some text.")
            text = self.rendered(messages, tools)
        ids = self._ids(text)
        if not ids:
            raise PromptError("The prompt is empty; expected text that gives at least one token.")
        if len(ids) >= self.context_length:
            raise ContextOverflowError(
                f"The prompt has {len(ids)} tokens, but the context of {self.name} is {self.context_length} tokens and "
                "must also hold the completion. Shorten the prompt or choose a model with a longer context."
            )
        return Prompt(messages, text, ids)

    def rendered(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> str:
        """The conversation by the chat template: tools in text where it has none, fewer roles where it refuses some."""
        knows_tools, delimiters = self.tokenizer.knows_tools, self.tokenizer.delimiters
        messages, tools = delimiters.messages(messages), delimiters.tools(tools)  # before there are any of ours
        if not knows_tools and (tools or any(m.extra.get("tool_calls") for m in messages)):
            messages, tools = with_tools_in_text(messages, tools), None
        messages = in_dialect(messages, self.tokenizer.dialect)
        try:
            return self.tokenizer.written(messages, tools=tools)
        except PromptError as refusal:
            fewer = folded(messages if knows_tools else with_tools_in_text(messages, None))
            try:
                return self.tokenizer.written(fewer, tools=tools)
            except PromptError:
                raise refusal from None

    def _ids(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(self.tokenizer.encode(text))
        except Exception as e:  # half a surrogate pair, a word that it does not have: tokenizers raise anything
            raise PromptError(
                f"The tokenizer of {self.name} cannot read the prompt ({e}); expected text of whole characters that "
                "are in its vocabulary."
            ) from e

    def constraint(self, grammar: Grammar) -> Constraint:
        """The grammar compiled for this model's tokens, at the beginning of a completion.

        Raises:
            GrammarError: it does not compile.
            ConfigurationError: llguidance is not installed, or does not know the tokenizer.
        """
        return self._compiler.start(grammar)

    @cached_property
    def _compiler(self) -> Compiler:
        return Compiler(self.tokenizer, vocab_size=self.vocab_size, eos_ids=sorted(self.eos_ids))

    # ── sampling ──────────────────────────────────────────────────────────────────────────────────────────────────

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        """Completes every job's prefix in one batch; see `decoding.rollout`."""
        return rollout(self, jobs)

    def decoding(self) -> Decoding:
        """A batch of rollouts that further ones may join."""
        return Decoding(self)

    # ── tensors ───────────────────────────────────────────────────────────────────────────────────────────────────

    def head(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocab"]:
        """Logits of hidden states, scaled and soft-capped where the architecture does so. Of a model in half precision
        they are in float32.
        """
        weight = self._lm_head.weight
        hidden = wide(hidden) if weight.dtype == torch.float32 else hidden
        logits = self._lm_head(hidden.to(weight.device)) * self._logit_scale
        cap = getattr(self.transformer.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def log_probs(self, hidden: Float[Tensor, "time hidden"], tokens: Sequence[int]) -> Float[Tensor, "time"]:
        """log π of each token from the hidden state that predicts it, a chunk of vocabulary rows at a time."""
        targets = torch.tensor(list(tokens), dtype=torch.long, device=hidden.device)
        chunks = zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True)
        parts = [token_log_probs(self.head(h), t) for h, t in chunks]
        return torch.cat(parts) if parts else torch.zeros(0, device=hidden.device)

    def read_prompts(self, prompts: Sequence[Prompt], *, longest: int = 0) -> list[Usage]:
        """Reads prompts once, without their last tokens, for every pass over their completions, and says what each
        cost; keys and values are kept for as long as its `Prompt` object is in use. Nothing is read where a text of
        `longest` tokens is beyond a sliding window.
        """
        _, tokens = self.transformer.read_prompts(prompts, [p.ids[:-1] for p in prompts], longest=longest)
        return [self.usage(prefill=count) for count in tokens]

    def prefix(self, prompt: Prompt) -> PrefixCache | None:
        """What is kept of a prompt, if it was read."""
        return self.transformer.prefixes.get(prompt, prompt.ids[:-1])

    @torch.no_grad()
    def likeliest_ends(
        self, prompts: Sequence[Prompt], completions: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, Usage]]:
        """With which of its end tokens the model would end each completion, and the cost: one forward."""
        rows = [(*prompt.ids, *ids) for prompt, ids in zip(prompts, completions, strict=True)]
        _, hidden = self.transformer.read(rows, [None] * len(rows), total_tokens=max(map(len, rows)))
        ends = sorted(self.eos_ids)
        likeliest = self.head(hidden[:, -1])[:, ends].argmax(-1).tolist()
        return [(ends[i], self.usage(prefill=hidden.shape[1], rows=1)) for i in likeliest]

    def likelihood_gradient(
        self,
        rollouts: Sequence[Rollout],
        starts: Sequence[int],
        *,
        embedding_terms: bool = True,
    ) -> list[LikelihoodGradient]:
        """∂ Σ_{t ≥ start} log π(y_t) / ∂ one-hot rows, for every position from `start` on; rows of like length in one
        pass.

        The prompt and the tokens before `start` are read without gradient. Cost: one forward over everything but
        prompts that were read, and one backward over the tails; with `embedding_terms=False` the forward only.
        """
        differentiated = partial(self._likelihood_gradient, embedding_terms=embedding_terms)
        return by_length(self._lengths(rollouts, starts), differentiated, rollouts, starts)

    def _likelihood_gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], *, embedding_terms: bool
    ) -> list[LikelihoodGradient]:
        tails, read, hidden, embeddings = self._tail_states(rollouts, starts, needs_grad=embedding_terms)
        gradients: list[Tensor | None] = [None] * len(rollouts)
        if embedding_terms:
            cotangent = torch.zeros_like(hidden)
            rows = [hidden[i, : len(tail)].detach() for i, tail in enumerate(tails)]
            by_head = self._head_gradient(torch.cat(rows), [token for tail in tails for token in tail])
            for i, row in enumerate(by_head.split([len(tail) for tail in tails])):
                cotangent[i, : len(row)] = row
            (gradient,) = torch.autograd.grad(hidden, embeddings, cotangent)
            gradients = [token_gradient(gradient[i], len(tail)) for i, tail in enumerate(tails)]
        fed = hidden.shape[1]
        usage = self.usage(prefill=read, forward=fed, backward=fed if embedding_terms else 0)
        return [
            LikelihoodGradient(
                LikelihoodRows(self, start, hidden[i, : len(tail)].detach(), gradients[i]),
                usage + self.usage(rows=2 * len(tail) if embedding_terms else 0),  # forward and backward
            )
            for i, (tail, start) in enumerate(zip(tails, starts, strict=True))
        ]

    def token_log_probs(self, rollouts: Sequence[Rollout]) -> list[tuple[Float[Tensor, "time"], Usage]]:
        """log π of every completion token and the cost; rows of like length in one forward, their prompts read once
        while a request lasts.
        """
        prompts = self.read_prompts([r.prompt for r in rollouts], longest=longest(rollouts))
        passes = by_length(self._lengths(rollouts, [0] * len(rollouts)), self._token_log_probs, rollouts)
        return [(log_probs, usage + more) for (log_probs, usage), more in zip(passes, prompts, strict=True)]

    def reread(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Completions with log π of all their tokens read in one way: decoded tokens give others in half precision, and
        one that goes on from another would not compare with it. Their cost is with their own.
        """
        read = zip(rollouts, self.token_log_probs(rollouts), strict=True)
        return [replace(r, log_probs=log_probs, usage=r.usage + usage) for r, (log_probs, usage) in read]

    def _token_log_probs(self, rollouts: Sequence[Rollout]) -> list[tuple[Float[Tensor, "time"], Usage]]:
        tails, read, hidden, _ = self._tail_states(rollouts, [0] * len(rollouts), needs_grad=False)
        usage, lengths = self.usage(prefill=read, forward=hidden.shape[1]), [len(tail) for tail in tails]
        rows = torch.cat([hidden[i, :length] for i, length in enumerate(lengths)])
        log_probs = self.log_probs(rows, [token for tail in tails for token in tail]).double().cpu()
        return [(row, usage + self.usage(rows=len(row))) for row in log_probs.split(lengths)]

    def _lengths(self, rollouts: Sequence[Rollout], starts: Sequence[int]) -> list[int]:
        """Tokens that each rollout's pass reads, by which passes are grouped."""
        return [
            len(r.completion_ids) + (len(r.prompt.ids) if self.prefix(r.prompt) is None else -start)
            for r, start in zip(rollouts, starts, strict=True)
        ]

    def _tail_states(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], *, needs_grad: bool
    ) -> tuple[list[tuple[int, ...]], int, Tensor, Tensor]:
        """Reads each rollout up to `start` without gradient and its tail with gradient with respect to embeddings.

        The states at index i of the tail predict completion token start + i. Returns the tails, the tokens that each
        row read without gradient, the hidden states [batch, time, hidden] (right-padded) and the embeddings they came
        from.
        """
        known = [(*r.prompt.ids, *r.completion_ids[:start])[:-1] for r, start in zip(rollouts, starts, strict=True)]
        tails = [r.completion_ids[start:] for r, start in zip(rollouts, starts, strict=True)]
        fed = [(*r.prompt.ids, *r.completion_ids)[len(k) : -1] for r, k in zip(rollouts, known, strict=True)]
        prefixes = [self.prefix(r.prompt) for r in rollouts]
        before, hidden, embeddings = self.transformer.continued(known, fed, prefixes, needs_grad=needs_grad)
        return tails, before.shape[1], hidden, embeddings

    def usage(self, *, prefill: int = 0, forward: int = 0, backward: int = 0, rows: int = 0) -> Usage:
        """The ledger entry of tokens that this model computed, and of rows that its head did; prefill tokens are
        forward tokens too.
        """
        return Usage(
            prefill_tokens=prefill,
            lm_forward_tokens=prefill + forward,
            lm_backward_tokens=backward,
            flops=self.transformer.flops(forward=prefill + forward, backward=backward) + rows * self.head_flops,
        )

    def _head_gradient(
        self, hidden: Float[Tensor, "time hidden"], tokens: Sequence[int]
    ) -> Float[Tensor, "time hidden"]:
        """∂ Σ log π / ∂ hidden, without ever holding [time, vocab]."""
        parts = []
        targets = torch.tensor(list(tokens), dtype=torch.long, device=hidden.device)
        for h, t in zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True):
            leaf = h.detach().requires_grad_()
            with torch.enable_grad():
                total = token_log_probs(self.head(leaf), t).sum()
            parts.append(torch.autograd.grad(total, leaf)[0])
        return torch.cat(parts)

    @torch.no_grad()
    def _measured_scale(self) -> float:
        """The constant factor between head and logits (Cohere, Granite)."""
        kind = type(self.transformer.module).__name__
        ids = torch.arange(min(4, self.vocab_size), device=self.transformer.device)[None]
        try:
            expected = self.transformer.module(input_ids=ids, use_cache=False).logits
            got = self.head(self.transformer.body(input_ids=ids, use_cache=False).last_hidden_state)
            scale = float((got.double() * expected.double()).sum() / got.double().square().sum().clamp_min(1e-30))
        except Exception as e:  # an architecture of another shape raises anything
            raise ModelLoadError(
                f"{kind} is no decoder with an output head on its body's hidden states ({type(e).__name__}: {e}). "
                "Choose another architecture."
            ) from e
        scale = 1.0 if abs(scale - 1) < 1e-2 else scale
        if got.shape != expected.shape or not torch.allclose(scale * got, expected.to(got), rtol=1e-2, atol=1e-2):
            raise ModelLoadError(
                f"The logits of {kind} are not its output head applied to its last hidden states, so its gradient "
                "would be wrong. Choose another architecture."
            )
        return scale


def longest(rollouts: Sequence[Rollout]) -> int:
    """Tokens of the longest of these texts, prompts included."""
    return max((len(r.prompt.ids) + len(r.completion_ids) for r in rollouts), default=0)


def _ids(value: Any) -> set[int]:
    return set() if value is None else {value} if isinstance(value, int) else set(value)
