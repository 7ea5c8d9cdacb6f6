"""What differs between servers that complete token ids, declared; and the declarations of the known ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from nabla_agents.config import Sampling, Settings


class ServerFormat(Settings):
    """How a server's `/v1/completions` is asked for token ids and log-probabilities, and what these are.

    `body` goes into every request. Every choice must come back with `token_ids`, the one that ended it included, and
    `logprobs.token_logprobs`, one for each.

    `log_probs`: `model` are log π at temperature 1 whatever the sampling is; `sampling` are those at the sampling
    temperature, which are of use at temperatures 0 and 1 only: at others the local model reads the completion, one
    forward. `choices` is the most that one request may ask for; 1 where choices of one seed are all the same.
    """

    body: Mapping[str, Any] = {}
    log_probs: Literal["model", "sampling"] = "model"
    choices: Annotated[int, Field(ge=1)] = 64

    def request(
        self,
        model: str,
        context: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        n: int,
        seed: int,
        end_ids: Collection[int],
    ) -> dict[str, Any]:
        """The body of one request. Every setting is named: a server's own defaults are often those of the model's
        generation config.
        """
        return {
            "model": model,
            "prompt": list(context),
            "max_tokens": max_tokens,
            "n": n,
            "seed": seed,
            "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "top_k": -1 if sampling.top_k is None else sampling.top_k,
            "min_p": sampling.min_p or 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(end_ids),
            **self.body,
        }

    def usable(self, sampling: Sampling) -> bool:
        """Whether the server's log-probabilities are log π at temperature 1."""
        return self.log_probs == "model" or sampling.temperature in (None, 0.0, 1.0)


# vLLM since it has `return_token_ids` (its pull request 22587), with its default `--logprobs-mode raw_logprobs`. A
# server that was started with another mode, or has another model, is found out by the first call.
VLLM = ServerFormat(body={"return_token_ids": True, "add_special_tokens": False, "logprobs": 0})

# SGLang since it has `return_token_ids` (its pull request 30917). One seed is one text there, and log-probabilities are
# scaled by the temperature unless the server runs with SGLANG_RETURN_ORIGINAL_LOGPROB=1.
SGLANG = ServerFormat(body={"return_token_ids": True, "logprobs": 0}, log_probs="sampling", choices=1)
