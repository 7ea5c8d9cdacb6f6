"""EngineSettings: settings under other names, and what a model of a framework is shown as."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from langchain_nabla import ChatNabla
from llama_index.llms.nabla import NablaLLM
from nabla_agents import Engine, EngineSettings, Greedy

MODELS = [ChatNabla, NablaLLM]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_completion_tokens", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("model_name", "model"),
        ("tempereture", "temperature"),
    ],
)
def test_a_setting_under_another_name_is_refused_with_the_one_that_is_meant(
    kind: type[EngineSettings], name: str, meant: str
) -> None:
    with pytest.raises(ValidationError, match=f"{name} is no setting of {kind.__name__} .did you mean {meant}"):
        kind(**{name: 3})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        kind(**{"quite_something_else": 3})


def test_an_option_of_a_call_under_another_name_is_refused_so() -> None:
    with pytest.raises(TypeError, match="did you mean max_tokens"):
        ChatNabla(model="tiny").invoke("x", max_completion_tokens=3)
    with pytest.raises(TypeError, match="did you mean max_tokens"):
        NablaLLM(model="tiny").complete("x", max_completion_tokens=3)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_and_an_engine_are_shown_in_one_line(
    kind: type[EngineSettings], capfd: pytest.CaptureFixture[str]
) -> None:
    shown = repr(kind(model="tiny", max_tokens=9, seed=2, strategy=Greedy()))
    assert shown == f"{kind.__name__}(model='tiny', max_tokens=9, seed=2, strategy=Greedy(rule='objective'))"
    assert "secret" not in repr(kind(model="m", base_url="http://127.0.0.1:1/v1", api_key="secret"))
    assert repr(Engine.tiny()) == "Engine(model='tiny', strategy=Nabla)"
    assert capfd.readouterr() == ("", ""), "transformers shows no bar of its own"
