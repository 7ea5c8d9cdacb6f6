"""ChatAnswer: what a run says as clients of chat APIs read it, and the fields of a model that has an engine."""

import json
from dataclasses import replace

import pytest

from nabla_agents import ArithmeticSteps, Budget, ChatAnswer, Engine, NablaError, Reply, Request, Step, StreamedText
from nabla_agents.testing import scripted_model

CALL = '<tool_call>\n{"name": "add", "arguments": {"x": "é"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
TEXT = f"<think>\nhm\n</think>\n\nI add.\n{CALL}"


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = scripted_model(lambda prompt: TEXT)
    return Engine(model=model, reward=ArithmeticSteps(), budget=Budget(rollouts=1))


@pytest.fixture
def answer(engine: Engine) -> ChatAnswer:
    return ChatAnswer(engine.request("x"), engine.model.tokenizer, tools=TOOLS)


def test_what_steps_add_and_what_the_result_adds_are_the_whole_reply(engine: Engine, answer: ChatAnswer) -> None:
    result = engine.generate("x")
    pieces = [answer.added_by(Step("refine", TEXT[:n])) for n in range(0, len(TEXT), 7)]
    assert not answer.added_by(Step("commit", TEXT, done=True)), "the last step leaves all to `rest`"
    pieces.append(answer.rest(result))
    whole = answer.read(result.text)
    assert "".join(piece.content for piece in pieces) == whole.content == "I add."
    assert "".join(piece.reasoning for piece in pieces) == whole.reasoning == "hm"
    assert [call for piece in pieces for call in piece.tool_calls] == list(whole.tool_calls)
    assert answer.reply == whole
    assert whole.tool_calls[0].arguments_text == '{"x": "é"}'
    assert Reply.read("<tool_call>{x</tool_call>", tools=True).tool_calls[0].arguments_text == "{x"


def test_why_it_ended_what_it_used_and_its_log_probabilities_are_in_openais_form(
    engine: Engine, answer: ChatAnswer
) -> None:
    result = engine.submit(Request(prompt=engine.prompt("x"), top_logprobs=2)).drain()
    assert answer.finish_reason(result) == "tool_calls"
    assert answer.finish_reason(replace(result, truncated=True)) == "length"
    assert answer.finish_reason(replace(result, text="Hello.")) == "stop"
    assert answer.finish_reason(replace(result, text="<tool_call>\n{broken\n</tool_call>")) == "stop"
    prompt, completion = len(engine.prompt("x").ids), len(result.token_ids)
    assert list(result.token_usage.values()) == [prompt, completion, prompt + completion]
    assert 0 < answer.reasoning_tokens(result) < completion
    entries = answer.log_probs(replace(result, log_probs=(-float("inf"), *result.log_probs[1:])))
    assert "".join(entry["token"] for entry in entries).startswith("<think>\nhm")
    assert entries[0]["logprob"] == -9999.0, "JSON has no infinity"
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    json.dumps(entries, allow_nan=False)


def test_a_strategy_that_takes_back_committed_text_is_an_error() -> None:
    text = StreamedText()
    committed = ["", "a", "a", "ab c", "ab cd"]
    assert [text.added_by(Step("refine", c)) for c in committed] == ["", "a", "", "b c", "d"]
    with pytest.raises(NablaError, match="took back"):
        text.added_by(Step("commit", "ab", done=True))


async def test_who_drains_a_run_may_see_every_round(engine: Engine) -> None:
    for asynchronous in (False, True):
        steps: list[Step] = []
        run = engine.submit(engine.request("x"))
        result = await run.adrain(steps.append) if asynchronous else run.drain(steps.append)
        assert steps == list(result.trace)
        assert steps[-1].done
