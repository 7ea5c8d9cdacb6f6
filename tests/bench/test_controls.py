"""Rewards made worse on purpose do exactly that, the same way every time, and to the share that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from nabla_agents import ArithmeticSteps, ConfigurationError, ImplicitReward, Rollout, Score
from nabla_agents.bench import Flipped, OthersRemarks, Shuffled, Unlocated, blur
from nabla_agents.config import GREEDY
from nabla_agents.models.decoding import RolloutJob
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.rewards.base import judged
from nabla_agents.testing import FixedReward, random_model

RIGHT, WRONG = "2 + 3 = 5\nAnswer: 5", "2 + 3 = 6\nAnswer: 6"


def answer(question: str, text: str) -> Rollout:
    return Rollout.from_text(question, text)


def rolled(model: LanguageModel, questions: Sequence[str], tokens: int = 6) -> list[Rollout]:
    uniforms = torch.full((tokens,), 0.5)
    return model.rollout([RolloutJob(model.prompt(q), (), GREEDY, tokens, uniforms) for q in questions])


def test_a_flipped_verdict_is_the_opposite_in_value_vouching_and_places() -> None:
    right, wrong = Flipped(ArithmeticSteps(), 1.0).score([answer("q", RIGHT), answer("q", WRONG)])
    assert (right.value, right.verdict, right.verified) == (0.0, 0.0, False)
    assert (wrong.value, wrong.verdict, wrong.verified) == (1.0, 1.0, True)
    assert [(s.value, s.expected) for s in (*right.spans, *wrong.spans)] == [(-1.0, None), (1.0, None)]


def test_a_share_is_flipped_and_always_the_same_completions() -> None:
    """Of 400 at a rate of 0.3, 82 to 158: a false alarm has odds below 1e-4 (4 standard deviations)."""
    rollouts = [answer(f"q{i}", RIGHT) for i in range(400)]
    always = FixedReward(lambda _: Score(1.0, verdict=1.0))
    reward = Flipped(always, 0.3)
    lies = [s.value == 0 for s in reward.score(rollouts)]
    assert 82 < sum(lies) < 158
    assert [s.value == 0 for s in reward.score(rollouts[::-1])] == lies[::-1]
    assert [s.value == 0 for s in Flipped(always, 0.3, seed=1).score(rollouts)] != lies
    assert not any(s.value == 0 for s in Flipped(always, 0.0).score(rollouts))


def test_a_learned_reward_is_flipped_with_its_gradient() -> None:
    model, tuned = random_model(width=16, layers=1), random_model(width=16, layers=1, seed=1)
    plain, lying = ImplicitReward(tuned).bind(model), Flipped(ImplicitReward(tuned), 1.0).bind(model)
    rollouts = rolled(model, ["a"])
    assert lying.score(rollouts)[0].value == -plain.score(rollouts)[0].value
    gradients = [g.gradient for g in model.likelihood_gradient(rollouts, [0])]
    [a], [b] = (r.gradient(rollouts, [0], gradients) for r in (plain, lying))
    assert a is not None
    assert b is not None
    assert torch.equal(b.gradient.rows([0, 3]), -a.gradient.rows([0, 3]))


def test_a_sum_is_not_flipped_as_a_whole_and_a_rate_is_a_share() -> None:
    with pytest.raises(ConfigurationError, match="flip one of its terms"):
        Flipped(ArithmeticSteps() + ArithmeticSteps(), 0.1)
    with pytest.raises(ConfigurationError, match="share from 0 to 1"):
        Flipped(ArithmeticSteps(), 1.5)


def test_a_shuffled_reward_judges_an_answer_to_another_question() -> None:
    donors = [answer("p", RIGHT), answer("q", WRONG)]
    reward = Shuffled(ArithmeticSteps(), donors)
    for text in ("anything", "else", RIGHT, WRONG):
        [p, q] = reward.score([answer("p", text), answer("q", text)])
        assert (p.verified, q.verified) == (False, True)  # never the answer to the same question
    many = Shuffled(FixedReward(lambda r: float(r.text)), [answer(f"d{i}", str(i)) for i in range(10)])
    rollouts = [answer("q", f"text {i}") for i in range(200)]
    values = [s.value for s in judged(many, rollouts)]
    assert len(set(values)) == 10  # odds that a donor stays unused: 10 * 0.9 ** 200 < 1e-8
    assert [s.value for s in judged(many, rollouts)] == values
    with pytest.raises(ConfigurationError, match="two questions"):
        Shuffled(ArithmeticSteps(), donors[:1])


def test_a_shuffled_learned_reward_steers_by_the_donors_gradient() -> None:
    model, tuned = random_model(width=16, layers=1), random_model(width=16, layers=1, seed=1)
    donors = rolled(model, ["x", "y"], tokens=4)
    plain, shuffled = ImplicitReward(tuned).bind(model), Shuffled(ImplicitReward(tuned), donors).bind(model)
    rollouts = rolled(model, ["x"])
    assert shuffled.score(rollouts)[0].value == plain.score(donors[1:])[0].value
    [got] = shuffled.gradient(rollouts, [2], [])
    gradients = [g.gradient for g in model.likelihood_gradient(donors[1:], [0])]
    [expected] = plain.gradient(donors[1:], [0], gradients)
    assert got is not None
    assert expected is not None
    length = len(donors[1].completion_ids)
    positions = list(range(len(rollouts[0].completion_ids)))
    rows = expected.gradient.rows([p % length for p in positions])
    assert torch.equal(got.gradient.rows(positions), rows)


def test_remarks_of_others_leave_the_verdict_and_say_nothing_of_the_answer() -> None:
    donors = [answer("p", WRONG), answer("q", "1 + 1 = 3\nAnswer: 3"), answer("r", RIGHT), answer("s", RIGHT)]
    reward = OthersRemarks(ArithmeticSteps(), donors)
    own = {d.prompt.question: ArithmeticSteps().judge(d.text).feedback for d in donors}
    for question, others in {"p": {own["q"]}, "q": {own["p"]}, "s": {own["p"], own["q"]}}.items():
        rollouts = [answer(question, f"{WRONG}{' ' * i}") for i in range(40)]
        scores = reward.score(rollouts)
        plain = ArithmeticSteps().score(rollouts)
        assert [replace(s, feedback="") for s in scores] == [replace(s, feedback="") for s in plain]
        assert {s.feedback for s in scores} == others
    [right] = reward.score([answer("p", RIGHT)])
    assert (right.verified, right.feedback) == (True, "")
    with pytest.raises(ConfigurationError, match="remarks on fewer than two"):
        OthersRemarks(ArithmeticSteps(), [donors[0], donors[2]])


def test_without_places_a_verdict_says_only_whether() -> None:
    [score] = Unlocated(ArithmeticSteps()).score([answer("q", WRONG)])
    assert (score.value, score.verified, score.spans) == (0.0, False, ())
    assert score.feedback == ArithmeticSteps().judge(WRONG).feedback != ""


def test_who_lies_has_no_true_remark_to_give_away() -> None:
    [score] = Flipped(ArithmeticSteps(), 1.0).score([answer("q", WRONG)])
    assert (score.verified, score.feedback) == (True, "")


def test_blur_moves_every_weight_by_the_spread_and_only_of_what_has_weights() -> None:
    """1,000s of weights: the standard deviation of the noise is within 5 % of what was asked for."""
    reward, same = (ImplicitReward(random_model(width=32, layers=1, seed=1)) for _ in range(2))
    blur(reward, 0.5, seed=3)
    moved = dict(reward.transformer.module.named_parameters())
    for name, weights in same.transformer.module.named_parameters():
        if weights.numel() > 4000:
            assert float((moved[name] - weights).detach().std() / weights.detach().std()) == pytest.approx(
                0.5, rel=0.05
            )
    with pytest.raises(ConfigurationError, match="has no weights"):
        blur(ArithmeticSteps(), 0.5)
