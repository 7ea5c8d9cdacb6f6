"""The records: sums, derived facts, limits and what they refuse."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from nabla_agents import (
    Budget,
    ConfigurationError,
    FinishReason,
    Message,
    Prompt,
    PromptError,
    Result,
    RewardError,
    Rollout,
    Score,
    Span,
    Step,
    Trace,
    Usage,
)

LIMITS = [f.name for f in dataclasses.fields(Budget)]
FLOATS = ("flops", "seconds")


def budget(name: str, limit: float | None) -> Budget:
    """One limit and no other."""
    return Budget(**{"rollouts": None, name: limit if limit is None or name not in FLOATS else float(limit)})


def usage(amount: float, *names: str) -> Usage:
    return Usage(**{name: float(amount) if name in FLOATS else amount for name in names})


def rollout(log_probs: torch.Tensor | None) -> Rollout:
    return Rollout(Prompt((), "q", (1,)), (2, 3), "ab", log_probs)


def test_usage_adds_field_by_field_and_takes_the_larger_peak() -> None:
    names = [f.name for f in dataclasses.fields(Usage)]
    one, two = Usage(), Usage()
    for i, name in enumerate(names):
        one += usage(i + 1, name)
        two += usage(100 * (i + 1), name)
    expected = {name: 101 * (i + 1) for i, name in enumerate(names)}
    assert (one + two).as_dict() == {**expected, "peak_memory_bytes": two.peak_memory_bytes}
    assert one + Usage() == one


def test_every_budget_field_is_a_usage_field() -> None:
    assert set(LIMITS) <= {f.name for f in dataclasses.fields(Usage)}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_reached_when_it_is_spent_and_the_message_prints_both(name: str) -> None:
    assert budget(name, 3).exhausted(usage(2, name), [name]) is None
    assert budget(name, 3).exhausted(usage(3, name), [name]) == f"{name} 3/3"
    assert budget(name, 3).exhausted(usage(5, name), [name]) == f"{name} 5/3"


def test_large_numbers_are_printed_whole() -> None:
    limited = budget("generated_tokens", 1_234_567)
    assert limited.exhausted(usage(1_234_568, "generated_tokens"), LIMITS) == "generated_tokens 1234568/1234567"


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_refuses_only_the_operations_that_spend_it(name: str) -> None:
    everything = usage(9, *LIMITS)
    assert budget(name, 1).exhausted(everything, [other for other in LIMITS if other != name]) is None
    assert budget(name, 1).exhausted(everything, LIMITS) == f"{name} 9/1"


@pytest.mark.parametrize("name", LIMITS)
def test_none_is_no_limit(name: str) -> None:
    assert budget(name, None).exhausted(usage(10**9, *LIMITS), LIMITS) is None


@pytest.mark.untyped
@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [-1, True, math.nan, "8", [8]])
def test_a_limit_that_is_no_number_or_negative_is_refused_by_name_and_value(name: str, value) -> None:
    with pytest.raises(ConfigurationError, match=rf"Budget\.{name} is ") as e:
        Budget(**{name: value})
    assert repr(value) in str(e.value)


@pytest.mark.parametrize("name", ["rollouts", "generated_tokens"])
def test_a_budget_without_one_rollout_of_one_token_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Budget\.{name} is 0.*at least 1: one completion needs one rollout"):
        Budget(**{name: 0})


@pytest.mark.untyped
@pytest.mark.parametrize("name", ["rollouts", "generated_tokens", "gradient_passes", "reward_calls"])
def test_half_a_rollout_is_refused(name: str) -> None:
    """A count that is no whole number cannot size a batch."""
    with pytest.raises(ConfigurationError, match=rf"Budget\.{name} is 2\.5; expected .*whole number"):
        Budget(**{name: 2.5})


@pytest.mark.untyped
def test_whole_seconds_and_the_numbers_of_numpy_are_numbers() -> None:
    limited = Budget(rollouts=np.int64(3), seconds=30, flops=np.float32(1e12))
    assert limited.exhausted(Usage(rollouts=3), ["seconds", "flops", "rollouts"]) == "rollouts 3/3"


@pytest.mark.parametrize("name", ["gradient_passes", "reward_calls", "flops", "seconds"])
def test_zero_is_a_limit_where_nothing_needs_it(name: str) -> None:
    assert budget(name, 0).exhausted(Usage(), [name]) == f"{name} 0/0"


@pytest.mark.parametrize("record", [Usage(), Budget(), Score(1.0), Message("user", "a"), Span(0, 1, 1.0)])
def test_records_cannot_be_changed_in_place(record) -> None:
    field = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, field, 7)


def test_an_unknown_role_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PromptError, match=r"'robot'; expected system, user, assistant or tool"):
        Message("robot", "hello")


def test_what_a_template_reads_besides_does_not_override_role_and_content() -> None:
    message = Message("tool", "7", {"name": "calculator", "content": "other"})
    assert message.as_template_input() == {"name": "calculator", "role": "tool", "content": "7"}


def test_the_question_is_the_last_user_turn_or_the_text() -> None:
    turns = (Message("user", "first"), Message("assistant", "a"), Message("user", "second"), Message("assistant", "b"))
    assert Prompt(turns, "rendered", (1,)).question == "second"
    assert Prompt((), "plain", (1,)).question == "plain"


def test_the_log_likelihood_is_the_sum_in_nats_and_unknown_without_a_model() -> None:
    """The sum is in double precision: 1e8 + 1 would lose the 1 in single."""
    assert rollout(torch.tensor([-0.5, -1.25])).log_likelihood == -1.75
    assert rollout(torch.tensor([-1e8, -1.0])).log_likelihood == -100_000_001.0
    assert math.isnan(rollout(None).log_likelihood)


def test_not_judged_is_nan_with_an_explanation_and_no_verdict() -> None:
    score = Score.not_judged("timed out", Usage(reward_calls=1))
    assert not score.judged
    assert (score.verdict, score.verified, score.explanation, score.usage.reward_calls) == (None, None, "timed out", 1)
    assert Score(0.0).judged


def test_a_text_alone_is_a_rollout_for_tools() -> None:
    made = Rollout.from_text("What?", "1 + 1 = 2")
    assert (made.text, made.prompt.question, made.completion_ids) == ("1 + 1 = 2", "What?", ())
    turns = [Message("system", "be brief"), Message("user", "Why?")]
    assert Rollout.from_text(turns, "x").prompt.messages == tuple(turns)


@pytest.mark.untyped
@pytest.mark.parametrize("value", [-1.0, 0, 1, np.float32(0.5)])
def test_a_span_has_a_place_a_value_and_a_credit(value) -> None:
    assert Span(0, 0, value).start == Span(np.int64(0), np.int64(3), value, credit=-2).start


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("change", "named"),
    [
        *[({"start": start}, "Span is ") for start in (math.nan, -1, 0.5, "0", None, True, 3)],
        *[({"end": end}, "Span is 1:") for end in (math.nan, 0, math.inf, None)],
        *[({"value": value}, r"Span\.value") for value in (math.nan, math.inf, 1.5, -1.01, "1", None, True)],
        *[({"credit": credit}, r"Span\.credit") for credit in (math.nan, math.inf, -math.inf, "1", None)],
    ],
)
def test_a_span_that_is_no_place_or_no_verdict_is_refused(change, named: str) -> None:
    with pytest.raises(RewardError, match=named):
        Span(**{"start": 1, "end": 2, "value": 1.0, **change})


def test_records_show_what_says_something() -> None:
    assert repr(Usage(rollouts=2, flops=3.0)) == "Usage(rollouts=2, flops=3.0)"
    assert repr(Score(0.0, verified=False)) == "Score(value=0.0, verified=False)"
    assert repr(Step("commit", "", done=True)) == "Step(kind='commit', committed_text='', done=True)"
    trace = Trace([Step("rollout", "")])
    result = Result("7", (3, 4), None, FinishReason.STOP, Usage(), trace=trace, log_probs=(-1.0,))
    assert repr(result) == "Result(text='7', score=None, finish_reason=<FinishReason.STOP: 'stop'>, usage=Usage())"
