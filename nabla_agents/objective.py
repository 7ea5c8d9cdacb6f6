"""The objective: likelihood, rewards and tool credit joined into one value and one gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from nabla_agents.errors import ConfigurationError
from nabla_agents.models.gradients import CreditRows, GradientRows, LikelihoodRows, Meter, WeightedRows, row_flops
from nabla_agents.models.language_model import LanguageModel, LikelihoodGradient
from nabla_agents.models.precision import NOISE
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.rewards.base import Reward, judged
from nabla_agents.types import Rollout, Score, Span, Usage

_LOOKAHEAD = 32  # characters of a corrected text that decide its next token


@dataclass(frozen=True, eq=False)
class ObjectiveGradient:
    """∂J/∂ one-hot rows of one rollout for every position from `start` on, and what it cost.

    `credit` is the tools' part of it: {position: {token: nats}}. `meter` counts the rows that are built, which `usage`
    does not have.
    """

    likelihood: LikelihoodRows
    gradient: GradientRows
    credit: Mapping[int, Mapping[int, float]]
    usage: Usage
    meter: Meter = field(default_factory=Meter)

    def metered(self, meter: Meter) -> ObjectiveGradient:
        """The same gradient, whose rows are counted there."""
        return replace(self, likelihood=replace(self.likelihood, meter=meter), meter=meter)

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        """g_t over the vocabulary, in the objective's units (nats at likelihood weight 1)."""
        self.meter.flops += len(positions) * row_flops(self.gradient)
        return self.gradient.rows(positions)

    def logits(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        """The language model's logits for the same positions."""
        return self.likelihood.logits(positions)

    def plus(self, credit: Mapping[int, Mapping[int, float]], weight: float) -> ObjectiveGradient:
        """This gradient with more credit, `weight` nats for each unit of it; free of charge."""
        if not credit or weight == 0:
            return self
        model = self.likelihood.model
        added = CreditRows(credit, model.vocab_size, model.transformer.device)
        joined = {position: dict(row) for position, row in self.credit.items()}
        for position, row in credit.items():
            known = joined.setdefault(position, {})
            for token, amount in row.items():
                known[token] = known.get(token, 0.0) + weight * amount
        return replace(self, gradient=WeightedRows(((1.0, self.gradient), (weight, added))), credit=joined)


class Objective:
    """J(y) = likelihood_weight · Σ log π(y_t | …) + reward(y).

    The paper's λ is 1 / likelihood_weight. Without a reward, J is the likelihood alone. `embedding_terms=False` keeps
    only the direct term of each gradient, which needs no backward pass.
    """

    def __init__(
        self,
        model: LanguageModel,
        reward: Reward | None = None,
        *,
        likelihood_weight: float = 1.0,
        embedding_terms: bool = True,
    ) -> None:
        check_parts(reward, likelihood_weight)
        self.model = model
        self.reward = None if reward is None else reward.bind(model)
        self.likelihood_weight, self.embedding_terms = likelihood_weight, embedding_terms

    @property
    def _tools_alone(self) -> bool:
        return self.reward is not None and not self.reward.learned

    @property
    def noise(self) -> float:
        """By how much two values of J may differ for no reason; 0 but in half precision."""
        return self.likelihood_weight * NOISE if self.model.narrow else 0.0

    def value(self, rollout: Rollout, score: Score | None) -> float:
        """J of a scored rollout; NaN if its reward could not judge."""
        weighted = self.likelihood_weight * rollout.log_likelihood if self.likelihood_weight else 0.0
        return weighted + (0.0 if score is None else score.value)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        """The reward's scores; None for each rollout where there is no reward. What was cut off is not verified."""
        if self.reward is None:
            return [None] * len(rollouts)
        scores = judged(self.reward, rollouts)
        return [_of_a_cut(score) if r.cut else score for r, score in zip(rollouts, scores, strict=True)]

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        """The reward's scores of unfinished completions; None where nothing can be said of them."""
        return [None] * len(rollouts) if self.reward is None else self.reward.score_prefixes(rollouts)

    def states(self, rollouts: Sequence[Rollout], starts: Sequence[int]) -> list[LikelihoodGradient]:
        """The language model's rows on its own rollouts, for searches that go without gradient: one forward."""
        return self.model.likelihood_gradient(rollouts, starts, embedding_terms=False)

    def gradient(
        self,
        rollouts: Sequence[Rollout],
        scores: Sequence[Score | None],
        starts: Sequence[int],
    ) -> list[ObjectiveGradient]:
        """One gradient pass per rollout: a forward and backward of each model over its tail.

        The gradient is that of the tail's objective: the tokens before `start` are committed and fixed.

        The likelihood holds a learned reward's gradient in check. Where only tools have a say it has no part: at the
        model's own rollout it points back to that rollout, which hides what the tools say of other tokens. That is so
        where all rewards are tools, and then no backward pass is paid; and for a rollout on which tools locate
        something and no learned reward has a gradient. A learned reward without one, alone, leaves the likelihood's.
        """
        embedding_terms = self.embedding_terms and not self._tools_alone
        likelihoods = self.model.likelihood_gradient(rollouts, starts, embedding_terms=embedding_terms)
        own = [g.gradient for g in likelihoods]
        rewards = [None] * len(rollouts) if self.reward is None else self.reward.gradient(rollouts, starts, own)
        gradients: list[ObjectiveGradient] = []
        for rollout, score, likelihood, reward in zip(rollouts, scores, likelihoods, rewards, strict=True):
            judged_spans = () if score is None or not score.judged else score.spans
            credit = token_credit(self.model.tokenizer, rollout, judged_spans)
            only_tools = self._tools_alone or (reward is None and bool(credit))
            terms: list[tuple[float, GradientRows]] = [
                (0.0 if only_tools else self.likelihood_weight, likelihood.gradient)
            ]
            usage = likelihood.usage + Usage(gradient_passes=1)
            if reward is not None:
                terms.append((1.0, reward.gradient))
                usage = usage + reward.usage
            if credit or all(weight == 0 for weight, _ in terms):
                device = self.model.transformer.device
                terms.append((1.0, CreditRows(credit, self.model.vocab_size, device)))
            gradients.append(ObjectiveGradient(likelihood.gradient, WeightedRows(tuple(terms)), credit, usage))
        return gradients


def check_parts(reward: object, likelihood_weight: object) -> None:
    """Raises ConfigurationError for what no objective can be made of."""
    if not isinstance(likelihood_weight, int | float) or not 0 <= likelihood_weight < float("inf"):
        raise ConfigurationError(f"likelihood_weight is {likelihood_weight!r}; expected a finite number ≥ 0.")
    if reward is not None and not isinstance(reward, Reward):
        raise ConfigurationError(
            f"reward is {reward!r}; expected a Reward such as ArithmeticSteps(), or a sum of them."
        )


def _of_a_cut(score: Score) -> Score:
    """Nobody vouches for a text that a limit cut off."""
    if not score.verified:
        return score
    return replace(score, verified=None, explanation=f"cut off before its end; of what there is: {score.explanation}")


def token_credit(tokenizer: Tokenizer, rollout: Rollout, spans: Sequence[Span]) -> dict[int, dict[int, float]]:
    """Located verdicts as credit c_t(v) in nats: {position: {token: credit}}.

    A token in a judged range gets value · credit. Where the expected text is known, credit starts at the first token
    that differs from it, and the token that the expected text begins with there gets +credit.
    """
    steering = [s for s in spans if s.credit and s.end <= len(rollout.text) and s.start < s.end]
    if not steering:
        return {}
    offsets = tokenizer.token_offsets(rollout.completion_ids)
    credit: dict[int, dict[int, float]] = {}

    def add(position: int, token: int, amount: float) -> None:
        row = credit.setdefault(position, {})
        row[token] = row.get(token, 0.0) + amount

    for span in steering:
        inside = [i for i, (start, end) in enumerate(offsets) if start < span.end and end > span.start]
        if span.expected is not None:
            corrected = rollout.text[: span.start] + span.expected + rollout.text[span.end :]
            from_here = range(inside[0], len(offsets)) if inside else range(0)
            first = next((i for i in from_here if _differs(rollout.text, corrected, offsets[i])), None)
            if first is None:
                continue
            start = offsets[first][0]
            right = tokenizer.encode(corrected[start : start + _LOOKAHEAD])
            if right:
                add(first, right[0], span.credit)
            inside = [first, *[i for i in inside if i > first]]
        for i in inside:
            add(i, rollout.completion_ids[i], span.value * span.credit)
    return credit


def _differs(text: str, corrected: str, offset: tuple[int, int]) -> bool:
    start, end = offset
    return start < end and text[start:end] != corrected[start:end]
