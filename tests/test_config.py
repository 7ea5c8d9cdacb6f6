"""Settings refuse what cannot work, by name, value and what is allowed."""

from typing import Any

import pytest
from pydantic import ValidationError

from nabla_agents import BestOfN, ConfigurationError, MirrorDTO, Nabla, Sampling
from nabla_agents.config import GREEDY


def test_an_unknown_option_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ConfigurationError, match=r"temprature = 0\.7.*Known settings: temperature, top_p, top_k") as e:
        Sampling(temprature=0.7)
    assert "Sampling" in str(e.value)


@pytest.mark.parametrize(
    ("settings", "end"),
    [
        ({"stepss": 1}, "not permitted. Known"),
        ({"min_promis": 1}, "did you mean 'min_promise'? Known"),
        ({"dto": {"kl_budgt": 1.0}}, "did you mean 'kl_budget'? Known settings: beta, kl_budget; dto"),
    ],
)
def test_each_sentence_of_an_error_has_one_end(settings: dict[str, Any], end: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        Nabla(**settings)
    assert end in str(e.value)
    assert not any(twice in str(e.value) for twice in ("..", "?.", ".;"))


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("temperature", -0.1, "greater than or equal to 0"),
        ("temperature", float("nan"), "finite|greater than or equal to 0"),
        ("temperature", float("inf"), "finite"),
        ("temperature", "hot", "number"),
        ("top_p", 0.0, "greater than 0"),
        ("top_p", 1.1, "less than or equal to 1"),
        ("top_k", 0, "greater than or equal to 1"),
        ("top_k", 2.5, "integer"),
        ("min_p", -0.01, "greater than or equal to 0"),
        ("min_p", 1.5, "less than or equal to 1"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("stop", ("",), "empty"),
        ("stop", 5, "text"),
        ("stop", (5,), "string"),
    ],
)
def test_a_value_out_of_range_is_refused_with_name_value_and_what_is_allowed(setting, value, allowed) -> None:
    with pytest.raises(ConfigurationError, match=rf"Sampling: {setting}.*{allowed}") as e:
        Sampling(**{setting: value})
    shown = value[0] if isinstance(value, tuple) else value
    assert repr(shown) in str(e.value)


def test_a_configuration_error_is_a_value_error_and_keeps_its_cause() -> None:
    with pytest.raises(ValueError, match="top_k") as e:
        Sampling(top_k=-3)
    assert isinstance(e.value.__cause__, ValidationError)


def test_an_error_in_a_setting_within_a_setting_names_the_path() -> None:
    with pytest.raises(ConfigurationError, match=r"plausibility_floor = -1"):
        Nabla(plausibility_floor=-1)
    with pytest.raises(ConfigurationError, match="beta"):
        Nabla(dto=MirrorDTO(beta=-1))


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"top_p = 2\.0.*top_k = 0"):
        Sampling(top_p=2.0, top_k=0)


def test_settings_cannot_be_changed_in_place() -> None:
    sampling = Sampling(temperature=0.5)
    with pytest.raises(ValueError, match="frozen"):
        sampling.temperature = 0.9
    assert sampling.temperature == 0.5


def test_a_changed_copy_is_validated_and_leaves_the_original() -> None:
    sampling = Sampling(temperature=0.5, stop="\n")
    assert sampling.replace(top_k=3) == Sampling(temperature=0.5, stop="\n", top_k=3)
    assert sampling == Sampling(temperature=0.5, stop="\n")
    with pytest.raises(ConfigurationError, match="top_k"):
        sampling.replace(top_k=0)
    with pytest.raises(ConfigurationError, match="topk"):
        sampling.replace(topk=1)


def test_a_changed_copy_of_nested_settings_keeps_them() -> None:
    nabla = Nabla(dto=MirrorDTO(beta=2.0)).replace(temperature=0.3)
    assert (nabla.dto, nabla.temperature) == (MirrorDTO(beta=2.0), 0.3)


@pytest.mark.parametrize(
    ("given", "kept"), [("x", ("x",)), (None, ()), (["a", "bc"], ("a", "bc")), (("a",), ("a",)), ([], ())]
)
def test_stop_takes_one_string_several_or_none(given, kept) -> None:
    assert Sampling(stop=given).stop == kept


def test_equal_settings_are_equal_keys() -> None:
    assert len({Sampling(temperature=0.5, stop="a"), Sampling(temperature=0.5, stop=["a"]), GREEDY}) == 2
    assert Sampling(temperature=0) == GREEDY


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_best_of_n_needs_at_least_one(n) -> None:
    with pytest.raises(ConfigurationError, match=f"n = {n}"):
        BestOfN(n=n)
