"""NablaDecision: typed questions about a text or a conversation, answered by what a local model holds likely."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Final

from langchain_core.decisions import (
    Answer,
    BaseDecisionModel,
    Choice,
    ChoiceAnswer,
    ClassifierResponse,
    Noul,
    NoulAnswer,
    Question,
    Score,
    ScoreAnswer,
    State,
)
from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata
from pydantic import ConfigDict

from langchain_nabla._messages import PROVIDER, text_of
from langchain_nabla.chat_models import ChatNabla
from nabla_agents import ConfigurationError, Greedy, Request, Result, Sampling

_LIKELIEST: Final = 1000  # tokens whose likelihoods are looked at
_ASKED: Final = "Answer with the letter of one option and nothing else."


class NablaDecision(BaseDecisionModel):
    """Answers `Noul`, `Choice` and `Score` questions by the model's likelihoods of the options' letters.

    Nothing is sampled. A question with n options costs n forward passes over the state, in each of which another option
    is the first; an option's probability is proportional to the geometric mean over them, which takes out how much a
    model likes the first letters, whatever they stand for. `confidence` is the mean probability of the letters of the
    likeliest option among all tokens that the model might write: low where it would rather say something else. A
    `Score` is the expected level. A model of 0.5 B holds all letters nearly equally likely; choose model and thresholds
    on questions of your own. Rewards and strategies have no part in it.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    llm: ChatNabla
    """Whose engine reads. One on a server (`base_url`) gives no likelihoods."""
    model: str = ""
    """The name of the model of `llm`."""

    def __init__(self, llm: ChatNabla | None = None, **settings: Any) -> None:
        """With `llm`, or with the settings of a `ChatNabla`."""
        if llm is not None and settings:
            raise ConfigurationError(f"NablaDecision got llm and {', '.join(settings)}; expected one of the two.")
        llm = ChatNabla(**settings) if llm is None else llm
        if llm.base_url is not None:
            raise ConfigurationError(
                "NablaDecision got a model on a server (base_url); expected one that is loaded here."
            )
        parts: dict[str, Any] = {"llm": llm, "model": llm.model}
        super().__init__(**parts)

    @property
    def _provider(self) -> str:
        return PROVIDER

    def _classify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        engine = self.llm.load().with_reward(None)
        runs = [engine.submit(request) for request in self._readings(state, questions)]
        return self._response(questions, [run.drain() for run in runs])

    async def _aclassify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        readings = await asyncio.to_thread(self._readings, state, questions)
        engine = self.llm.load().with_reward(None)
        runs = [engine.submit(request) for request in readings]
        return self._response(questions, await asyncio.gather(*runs))

    def _readings(self, state: State, questions: Mapping[str, Question]) -> list[Request]:
        """For each question as many as it has options, each with another one first."""
        text, prompts = _text(state), list[str]()
        for name, question in questions.items():
            options, asked = _options(name, question), _json_or_text(question.instructions)
            for first in range(len(options)):
                turned = zip(ascii_uppercase, [*options[first:], *options[:first]], strict=False)
                prompts.append(
                    "\n".join([text, "", asked, *(f"{letter}. {option}" for letter, option in turned), _ASKED])
                )
        engine = self.llm.load()
        verbatim = not engine.model.tokenizer.has_template
        rendered = [engine.prompt(f"{p}\nAnswer:" if verbatim else p, formatted=verbatim) for p in prompts]
        parts: dict[str, Any] = {"sampling": Sampling(temperature=0.0, max_tokens=1), "strategy": Greedy()}
        return [Request(prompt=prompt, top_logprobs=_LIKELIEST, **parts) for prompt in rendered]

    def _response(self, questions: Mapping[str, Question], results: Sequence[Result]) -> ClassifierResponse:
        answers, left = dict[str, Answer](), iter(results)
        for name, question in questions.items():
            count = len(_options(name, question))
            rows = [self._letters(next(left), count) for _ in range(count)]
            of_each = [[rows[first][(option - first) % count] for first in range(count)] for option in range(count)]
            means = [math.exp(sum(map(math.log, each)) / count) for each in of_each]
            held = [min(1.0, sum(each) / count) for each in of_each]
            answers[name] = _answer(question, [mean / sum(means) for mean in means], held)
        read = sum(result.token_usage["prompt_tokens"] for result in results)
        usage = UsageMetadata(input_tokens=read, output_tokens=len(results), total_tokens=read + len(results))
        return ClassifierResponse(model=self.model, answers=answers, usage=usage)

    def _letters(self, result: Result, count: int) -> list[float]:
        """How likely each letter comes next, with a space before it or without; above 0."""
        tokenizer = self.llm.load().model.tokenizer
        likely = defaultdict[str, float](float)
        for token, log_prob in result.alternatives[0]:
            likely[tokenizer.token_text(token).strip()] += math.exp(log_prob)
        least = math.exp(result.alternatives[0][-1][1])  # what is not among these is no likelier
        return [max(likely[letter], least, sys.float_info.min) for letter in ascii_uppercase[:count]]


def _options(name: str, question: Question) -> list[str]:
    """What is listed, in its order.

    Raises:
        ConfigurationError: a question that has no answer in letters.
    """
    if isinstance(question, Noul):
        criteria = (None, None) if question.criteria is None else (question.criteria.true, question.criteria.false)
        options = [_named("yes", criteria[0]), _named("no", criteria[1])]
    elif isinstance(question, Choice):
        options = [_named(label, described) for label, described in question.criteria.items()]
    elif isinstance(question, Score):
        options = [_json_or_text(level) for level in question.criteria]
    else:
        raise ConfigurationError(f"The question {name!r} is for a model that sees images; this one reads text.")
    if len(options) > len(ascii_uppercase):
        raise ConfigurationError(f"The question {name!r} has {len(options)} options; expected at most 26.")
    return options


def _named(label: str, described: Any) -> str:
    return label if described is None else f"{label}: {_json_or_text(described)}"


def _answer(question: Question, shares: list[float], held: list[float]) -> Answer:
    if isinstance(question, Noul):
        return NoulAnswer(type="noul", noul=shares[0])
    best = max(range(len(shares)), key=shares.__getitem__)
    if isinstance(question, Choice):
        labels = list(question.criteria)
        chances = dict(zip(labels, shares, strict=True))
        return ChoiceAnswer(type="choice", choice=labels[best], probabilities=chances, confidence=held[best])
    assert isinstance(question, Score)
    return ScoreAnswer(
        type="score",
        score=sum(level * share for level, share in enumerate(shares)),
        legend=dict(enumerate(question.criteria)),
        probabilities=dict(enumerate(shares)),
        confidence=held[best],
    )


def _text(state: State) -> str:
    """A state as a model reads it: text as it is, messages a line each with who says them, all else as JSON."""
    if isinstance(state, str):
        return state
    if isinstance(state, BaseMessage):
        return text_of(state)
    if not isinstance(state, Mapping) and all(isinstance(part, BaseMessage) for part in state):
        return "\n".join(f"{part.type}: {text_of(part)}" for part in state if isinstance(part, BaseMessage))
    return json.dumps(state, ensure_ascii=False, default=_said)


def _said(part: Any) -> Any:
    if isinstance(part, BaseMessage):
        return {"role": part.type, "content": text_of(part)}
    raise ConfigurationError(f"The state has {part!r}; expected text, messages, or JSON of these.")


def _json_or_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
