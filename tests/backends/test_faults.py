"""What servers do wrong: tried again where it may pass, refused with words where it will not, never a shorter list."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nabla_agents import (
    ConfigurationError,
    Engine,
    FinishReason,
    Greedy,
    LanguageModel,
    Nabla,
    RolloutError,
    Sampling,
    ServerFormat,
    ServerRollouts,
    VocabularyMismatchError,
)
from nabla_agents.errors import ContextOverflowError, ModelMismatchError
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import permuted_tokenizer, random_model

from .completions_server import CompletionsServer, broken_off, busy, changed, fewer, garbage, refused, seeded
from .conftest import WORDS

Connect = Callable[..., ServerRollouts]


def jobs(model: LanguageModel, count: int = 4, **sampling: Any) -> list[RolloutJob]:
    prompt = model.prompt("ab")
    settings = Sampling(temperature=1.0, **sampling)
    return [RolloutJob(prompt, (), settings, 8, torch.rand(8, generator=seeded(i))) for i in range(count)]


@pytest.mark.parametrize("fault", [busy(503), garbage, broken_off], ids=["503", "no JSON", "lost connection"])
def test_what_may_pass_is_tried_again_with_the_same_request(
    connect: Connect, server: CompletionsServer, fault: Any
) -> None:
    rollouts = connect()
    calm = [r.completion_ids for r in rollouts.rollout(jobs(server.model))]
    server.seen.clear()
    server.faults = [fault, fault]
    assert [r.completion_ids for r in rollouts.rollout(jobs(server.model))] == calm
    assert len(server.seen) == 3
    assert server.seen[0] == server.seen[1] == server.seen[2]


def test_choices_that_are_missing_or_broken_off_are_asked_for_anew_by_other_seeds(
    connect: Connect, server: CompletionsServer
) -> None:
    server.faults = [None, fewer(2), changed(finish_reason="abort"), changed(finish_reason=None)]
    rollouts = connect().rollout(jobs(server.model, 4))
    assert len(rollouts) == 4
    assert [body["n"] for body in server.requests] == [4, 2, 2, 2]
    assert len({body["seed"] for body in server.requests}) == 2
    assert sum(r.usage.lm_forward_tokens for r in rollouts) > 4 * len(rollouts[0].prompt.ids)  # each attempt reads it


def test_choices_without_all_log_probs_are_not_whole(connect: Connect, server: CompletionsServer) -> None:
    server.faults = [None, changed(logprobs={"token_logprobs": [None] * 8}), changed(logprobs={"token_logprobs": []})]
    assert len(connect().rollout(jobs(server.model, 2))) == 2
    assert len(server.requests) == 3


def tokens(*ids: int, **more: Any) -> Any:
    """Every choice has these tokens."""
    return changed(token_ids=list(ids), logprobs={"token_logprobs": [-1.0] * len(ids)}, **more)


MISSING = "gave 2 whole completions for 4 jobs in 3 attempts"
TRIED = "completions failed 3 times, the last time by: HTTP 503: try later"


@pytest.mark.parametrize(
    ("faults", "error", "message"),  # of the greeting, and of the request after it
    [
        ([None, busy(503), busy(503), busy(503)], RolloutError, TRIED),
        ([None, busy(422)], RolloutError, r"refuses the request \(HTTP 422: try later\)\.$"),
        ([None, busy(404)], RolloutError, "HTTP 404: try later.*ends in /v1 with most servers"),
        ([None, fewer(3), fewer(3), fewer(2)], RolloutError, MISSING),
        ([None, tokens(0, finish_reason="stop")], RolloutError, "none of which is one of the end tokens"),
        ([None, tokens(*[0] * 9)], RolloutError, "returned 9 tokens; at most 8"),
        ([None, tokens(*[99] * 8)], VocabularyMismatchError, "returned token 99, but random qwen2 has 12 tokens"),
        ([tokens(*[99] * 8)], VocabularyMismatchError, "returned token 99, but random qwen2 has 12 tokens"),
        ([changed(prompt_token_ids=[1, 2, 3])], VocabularyMismatchError, "add_special_tokens"),
        ([changed(token_ids=None)], RolloutError, "expected token_ids"),
    ],
)
def test_what_does_not_pass_is_an_error_that_says_what_it_is(
    connect: Connect, server: CompletionsServer, faults: list[Any], error: type[Exception], message: str
) -> None:
    server.faults = list(faults)
    with pytest.raises(error, match=message):
        connect(attempts=3).rollout(jobs(server.model))
    assert (len(server.seen), server.faults) == (len(faults), [])


@pytest.mark.usefixtures("socket_enabled")
def test_a_server_that_is_not_there_is_an_error(model: LanguageModel) -> None:
    with ServerRollouts("http://127.0.0.1:9/v1", model, attempts=1) as rollouts:
        engine = Engine(model=model, rollouts=rollouts, strategy=Greedy())
        with pytest.raises(RolloutError, match="models failed 1 times, the last time by: ConnectError"):
            engine.generate("ab")


def test_an_error_in_the_middle_of_a_search_leaves_the_best_so_far(connect: Connect, server: CompletionsServer) -> None:
    model = server.model
    run = Engine(model=model, strategy=Nabla(), rollouts=connect(attempts=1)).steps(
        "ab", sampling=Sampling(max_tokens=12)
    )
    next(run)
    server.faults = [busy(503)] * 99
    with pytest.raises(RolloutError):
        run.drain()
    assert run.result.finish_reason is FinishReason.INTERRUPTED
    assert "HTTP 503" in run.result.detail
    assert run.result.text


# ── another server than was declared ──────────────────────────────────────────────────────────────────────────────


def first_call(rollouts: ServerRollouts, model: LanguageModel) -> None:
    rollouts.rollout(jobs(model))


def test_other_weights_are_found_out_by_the_first_call(connect: Connect, server: CompletionsServer) -> None:
    local = random_model(vocabulary=WORDS, context_length=64, seed=1)
    with pytest.raises(ModelMismatchError, match=r"differ by \d+\.\d\d nats a token; expected at most 0.5"):
        first_call(connect(local), local)
    assert len(server.seen) == 1


def test_log_probs_of_another_kind_are_found_out_by_the_first_call(connect: Connect, server: CompletionsServer) -> None:
    server.scaled = True
    with pytest.raises(ModelMismatchError, match="are not those that the format declares"):
        first_call(connect(), server.model)


def test_another_tokenizer_of_the_same_size_is_found_out_by_its_text(
    connect: Connect, server: CompletionsServer
) -> None:
    tokenizer, _ = permuted_tokenizer(WORDS, seed=1)
    local = random_model(tokenizer=tokenizer, context_length=64)
    with pytest.raises(VocabularyMismatchError, match="with the same tokenizer"):
        first_call(connect(local), local)


def test_a_greeting_that_failed_is_made_again(connect: Connect, server: CompletionsServer) -> None:
    rollouts = connect(attempts=1)
    server.faults = [busy(503)]
    with pytest.raises(RolloutError):
        first_call(rollouts, server.model)
    first_call(rollouts, server.model)
    first_call(rollouts, server.model)
    assert [body["temperature"] for body in server.seen] == [2.0, 2.0, 1.0, 1.0]


def test_threads_greet_the_server_once(connect: Connect, server: CompletionsServer) -> None:
    rollouts = connect()
    threads = [threading.Thread(target=first_call, args=(rollouts, server.model)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(body["temperature"] == 2.0 for body in server.seen) == 1


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_model_is_named_or_the_only_one(connect: Connect, server: CompletionsServer) -> None:
    with pytest.raises(ConfigurationError, match=r"has no model 'other'; it has tiny"):
        first_call(connect(served_model="other"), server.model)
    first_call(connect(served_model="tiny"), server.model)


def test_a_server_that_does_not_list_its_models_has_the_one_that_is_named(
    connect: Connect, server: CompletionsServer
) -> None:
    server.lists_models = False
    with pytest.raises(ConfigurationError, match="has 0 models"):
        first_call(connect(), server.model)
    first_call(connect(served_model="tiny"), server.model)


def test_a_context_that_is_too_short_for_the_prompt_is_refused(connect: Connect, server: CompletionsServer) -> None:
    server.max_model_len = 3
    with pytest.raises(ContextOverflowError, match="The server's context is 3 tokens"):
        first_call(connect(), server.model)


def test_the_key_is_sent_and_not_shown(connect: Connect, server: CompletionsServer) -> None:
    rollouts = connect(api_key="secret")
    first_call(rollouts, server.model)
    assert set(server.keys) == {"Bearer secret"}
    server.faults = [lambda _: refused(401, "Incorrect key")]
    with pytest.raises(ConfigurationError, match=r"refuses the key \(HTTP 401: Incorrect key\)") as caught:
        first_call(rollouts, server.model)
    assert "secret" not in f"{caught.value} {rollouts!r}"


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "expected for example http://host:8000/v1"),
        ({"attempts": 0}, "attempts is 0"),
        ({"concurrency": True}, "concurrency is True"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"tolerance_nats": "x"}, "tolerance_nats is 'x'"),
    ],
)
def test_settings_that_cannot_work_are_refused(model: LanguageModel, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ServerRollouts(**{"url": "http://127.0.0.1:9/v1", "model": model, **options})


def test_a_format_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="log_probs"):
        ServerFormat(log_probs="top")  # type: ignore[arg-type]
