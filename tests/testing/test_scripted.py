"""The scripted model, and searches that start from a draft: both on the real engine."""

from typing import Any

import pytest

from nabla_agents import (
    ArithmeticSteps,
    BestOfN,
    Budget,
    ConfigurationError,
    ContextOverflowError,
    Engine,
    Grammar,
    Greedy,
    Nabla,
    PromptError,
    Sampling,
)
from nabla_agents.testing import scripted_model

WRONG, RIGHT = "3 * 4 = 13\nAnswer: 13", "3 * 4 = 12\nAnswer: 12"


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = scripted_model(lambda prompt: RIGHT if "3 * 4" in prompt else "你好 🙂")
    return Engine(model=model, reward=ArithmeticSteps(credit=60.0), budget=Budget(rollouts=8))


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=3), Nabla()])
def test_it_says_what_the_script_says_under_every_strategy(engine: Engine, strategy: Any) -> None:
    assert engine.generate("3 * 4?", strategy=strategy).text == RIGHT
    assert [r.text for r in engine.generate_batch(["x", "3 * 4?"], strategy=strategy)] == ["你好 🙂", RIGHT]


def test_what_a_grammar_forbids_is_not_said(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert engine.generate("x", sampling=Sampling(grammar=Grammar.json(schema))).text == '{"a": ""}'


def test_a_draft_is_judged_first_and_made_better(engine: Engine) -> None:
    run = engine.steps("3 * 4?", draft=WRONG, strategy=Nabla(min_promise=-99.0))
    first = next(run)
    assert first.text == WRONG
    assert first.usage.generated_tokens == 0
    assert first.score is not None
    assert first.score.verified is False
    result = run.drain()
    assert result.text == RIGHT
    assert result.score is not None
    assert result.score.verified is True


def test_a_right_draft_costs_its_check(engine: Engine) -> None:
    result = engine.generate("3 * 4?", draft=RIGHT)
    assert (result.text, result.usage.rollouts, result.usage.generated_tokens) == (RIGHT, 1, 0)


@pytest.mark.untyped
def test_an_impossible_draft_is_refused_before_any_pass(engine: Engine) -> None:
    with pytest.raises(ContextOverflowError, match="draft"):
        engine.generate("x", draft="word " * 9000)
    with pytest.raises(ConfigurationError, match="grammar"):
        engine.generate("x", draft="maybe", sampling=Sampling(grammar=Grammar.choice(["yes", "no"])))
    with pytest.raises(PromptError, match="expected the text"):
        engine.generate("x", draft=3)
