"""The table of arms and the expressions that choose and change them."""

from __future__ import annotations

import json

import pytest

from nabla_agents import (
    BestOfN,
    ConfigurationError,
    Greedy,
    MirrorDTO,
    Nabla,
    NoDirection,
    RandomDirection,
    SelfConsistency,
)
from nabla_agents.bench import WORDS, Arm, choose


def names(expression: str, rollouts: int = 8) -> list[str]:
    return [arm.name for arm in choose(expression, WORDS.arms(rollouts))]


def only(expression: str) -> Arm:
    [arm] = choose(expression, WORDS.arms())
    return arm


def test_every_directed_arm_has_both_controls_and_best_of_n_with_the_same_reward() -> None:
    table = WORDS.arms(4)
    for suffix, reward in (("", "process"), ("/arithmetic", "arithmetic"), ("/both", "both")):
        directed, none, random = (table[name + suffix] for name in ("nabla", "nabla/none", "nabla/random"))
        assert isinstance(directed.strategy, Nabla)
        assert none.strategy == directed.strategy.replace(direction=NoDirection())
        assert random.strategy == directed.strategy.replace(direction=RandomDirection())
        assert {arm.reward for arm in (directed, none, random, table[f"best-of-4{suffix}"])} == {reward}
    assert table["greedy"] == Arm("greedy", Greedy(), None)
    assert table["best-of-4"].strategy == BestOfN(n=4)
    assert table["majority@4"].strategy == SelfConsistency(n=4)
    assert table["nabla-paper"].strategy == Nabla.paper()
    assert [arm.name for arm in table.values()] == list(table)


def test_globs_and_lists_choose_each_arm_once_in_order() -> None:
    assert names("*") == list(WORDS.arms())
    assert names("nabla, greedy ,nabla,g*") == ["nabla", "greedy"]
    assert names("nabla/*/both") == ["nabla/none/both", "nabla/random/both"]
    assert names("majority@8") == ["majority@8"]  # an @ of its own
    assert names("best-of-3", 3) == ["best-of-3"]


def test_an_at_sets_the_least_promise() -> None:
    arm = only("nabla/none@-5")
    assert arm.name == "nabla/none@-5"
    assert arm.strategy == Nabla(direction=NoDirection(), min_promise=-5.0)
    assert names("nabla/*/both@-1.5") == ["nabla/none/both@-1.5", "nabla/random/both@-1.5"]
    assert names("nabla,nabla@-2") == ["nabla", "nabla@-2"]


def test_brackets_change_any_setting() -> None:
    arm = only("nabla[dto.beta=0.3, acceptance=reward,plausibility_floor=null]")
    assert arm.strategy == Nabla(dto=MirrorDTO(beta=0.3), acceptance="reward", plausibility_floor=None)
    weighed = only("nabla/both[likelihood_weight=2,embedding_terms=false]")
    assert (weighed.likelihood_weight, weighed.embedding_terms) == (2.0, False)
    assert weighed.strategy == Nabla()
    assert only("best-of-8[n=3]").strategy == BestOfN(n=3)
    assert WORDS.arms()["nabla"].strategy == Nabla()  # the table is as it was


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("nope", "No arm matches 'nope'; known are greedy, majority@8"),
        ("", "No arm matches ''"),
        ("greedy,,nabla", "No arm matches ''"),
        ("Greedy", "No arm matches 'Greedy'"),
        ("nope@-1", "No arm matches 'nope@-1'"),
        ("nabla[dto.beta=0.3", "No arm matches"),
        ("nabla[]", "changes nothing; expected setting=value"),
        ("nabla[x]", "'x' in 'nabla.x.' changes nothing"),
        ("nabla[promise=1]", "Extra inputs are not permitted.*Known settings: direction, dto"),
        ("nabla[dto.gamma=1]", "MirrorDTO: gamma = 1.*Known settings: beta, kl_budget"),
        ("nabla[dta.beta=1]", "Nabla has no setting 'dta'"),
        ("nabla[min_promise.x=1]", "'x' is no setting of -2.0"),
        ("nabla[dto.beta=much]", "beta = 'much'"),
        ("nabla@much", "min_promise = 'much'"),
        ("greedy@-1", "Greedy: min_promise = -1"),
        ("nabla[likelihood_weight=much]", "likelihood_weight is 'much'; expected"),
        ("nabla[embedding_terms=1]", "embedding_terms is 1; expected true or false"),
    ],
)
def test_a_wrong_expression_says_what_is_known(expression: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        choose(expression, WORDS.arms())


def test_settings_differ_where_answers_may() -> None:
    expressions = [
        *WORDS.arms(),
        "nabla@-1",
        "nabla[dto.beta=0.3]",
        "nabla[likelihood_weight=2]",
        "nabla[embedding_terms=false]",
    ]
    seen = {json.dumps(only(e).settings(), sort_keys=True) for e in expressions}
    assert len(seen) == len(expressions)
