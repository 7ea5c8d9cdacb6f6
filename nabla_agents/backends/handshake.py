"""The first call to a server: is its model the local one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nabla_agents.backends.completions import Choice, complete, models
from nabla_agents.backends.formats import ServerFormat
from nabla_agents.backends.http import HttpClient
from nabla_agents.backends.local import read
from nabla_agents.config import Sampling
from nabla_agents.errors import ConfigurationError, ContextOverflowError, ModelMismatchError, VocabularyMismatchError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.rows import RolloutJob
from nabla_agents.types import Usage

TOKENS = 8
REVEALING = 2.0  # a temperature at which tokens are unlikely, and other kinds of log-probabilities are far off


@dataclass(frozen=True)
class Served:
    """The model as its server names it, and the context it has there in tokens, where it says so."""

    name: str
    context_length: int | None

    def room(self, context: Sequence[int], wanted: int) -> int:
        """How many of the tokens wanted fit after a context.

        Raises:
            ContextOverflowError: none.
        """
        if self.context_length is None:
            return wanted
        if len(context) >= self.context_length:
            raise ContextOverflowError(
                f"The server's context is {self.context_length} tokens; the prompt and what is written of the "
                f"completion have {len(context)}. Start it with a longer one, as the local model has."
            )
        return min(wanted, self.context_length - len(context))


def shake_hands(
    http: HttpClient,
    model: LanguageModel,
    job: RolloutJob,
    *,
    named: str | None,
    format: ServerFormat,
    tolerance_nats: float,
) -> tuple[Served, Usage]:
    """The served model, once eight tokens of its own, judged by the local model, show that it is the same; the cost.

    Raises:
        ConfigurationError: the server has no such model, or several and none is named.
        ModelMismatchError, VocabularyMismatchError: it is another model.
    """
    served, url = _served(http, named), http.url
    answer = complete(
        http,
        format.request(
            served.name,
            job.prompt.ids,
            Sampling(temperature=REVEALING if format.log_probs == "model" else 1.0),
            max_tokens=served.room(job.prompt.ids, TOKENS),
            n=1,
            seed=0,
            end_ids=model.eos_ids,
        ),
    )
    if not answer.choices or not answer.choices[0].ids:
        raise ModelMismatchError(f"{url} gave no whole completion of one prompt; expected {TOKENS} tokens.")
    [choice] = answer.choices
    _check_vocabulary(model, choice, job, url)
    [(local, usage)] = read(model, [(job, choice.ids, 0)])
    difference = sum(abs(a - b) for a, b in zip(local.tolist(), choice.log_probs, strict=True)) / len(choice.ids)
    if difference > tolerance_nats:
        raise ModelMismatchError(
            f"The log-probabilities of {url} ({served.name}) and of {model.name} differ by {difference:.2f} nats a "
            f"token; expected at most {tolerance_nats:g}. Either the server has other weights, or its "
            f"log-probabilities are not those that the format declares (log_probs={format.log_probs!r})."
        )
    return served, usage + model.usage(prefill=answer.read_tokens, forward=len(choice.ids) - 1, rows=len(choice.ids))


def _served(http: HttpClient, named: str | None) -> Served:
    listed = models(http)
    names = [str(m["id"]) for m in listed]
    if named is None and len(names) != 1:
        have = ", ".join(names) or "it does not say which"
        raise ConfigurationError(f"{http.url} has {len(names)} models ({have}); name one: served_model=... .")
    if named is not None and names and named not in names:
        raise ConfigurationError(f"{http.url} has no model {named!r}; it has {', '.join(names)}.")
    name = names[0] if named is None else named
    longest = next((m.get("max_model_len") for m in listed if m["id"] == name), None)
    stated = isinstance(longest, int) and not isinstance(longest, bool) and 0 < longest < 1 << 31
    return Served(name, longest if stated else None)


def _check_vocabulary(model: LanguageModel, choice: Choice, job: RolloutJob, url: str) -> None:
    if choice.prompt_ids is not None and choice.prompt_ids != job.prompt.ids:
        raise VocabularyMismatchError(
            f"{url} read {len(choice.prompt_ids)} prompt tokens, not the {len(job.prompt.ids)} it was given; expected "
            'a server that adds none: format=ServerFormat(body={"add_special_tokens": False, ...}).'
        )
    check_tokens(model, choice, url)
    here, there = _bare(model.tokenizer.decode(choice.ids)), _bare(choice.text)
    if there and not (here.startswith(there) or there.startswith(here)):
        raise VocabularyMismatchError(
            f"{url} reads its tokens as {choice.text!r}, {model.name} as {model.tokenizer.decode(choice.ids)!r}; "
            "expected a server with the same tokenizer."
        )


def check_tokens(model: LanguageModel, choice: Choice, url: str) -> None:
    """Raises VocabularyMismatchError for a token that the local model does not have."""
    strange = [token for token in choice.ids if not 0 <= token < model.vocab_size]
    if strange:
        raise VocabularyMismatchError(
            f"{url} returned token {strange[0]}, but {model.name} has {model.vocab_size} tokens; expected a server of "
            "the same model."
        )


def _bare(text: str) -> str:
    """Without what servers treat differently: spaces at the ends of tokens, halves of characters."""
    return "".join(text.replace("\ufffd", "").split())
