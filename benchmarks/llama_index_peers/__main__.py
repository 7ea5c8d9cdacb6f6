"""What LlamaIndex's local integrations do, rule by rule, by running them.

    pip install llama-index-llms-huggingface llama-index-llms-ollama
    pip install --no-deps llama-index-llms-vllm llama-index-llms-llama-cpp
    python benchmarks/llama_index_peers

Prints a table with a column for each that is installed. vLLM, llama.cpp and a server of Ollama are not needed: see
`backends.py`. A cell with ʳ was not run but read: in the source of the version that docs/llamaindex.md names,
or of the back end.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import probes
from asking import ASYNC, SYNC, Row, outcome, said, user, works
from backends import WINDOW, installed
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.llms.loading import load_llm
from probes import CALL, Person, calls, structured

NO, NO_SEARCH, NO_THREADS = {"others": "no"}, {"others": "no search"}, {"others": "no threads"}
OPTIONS: dict[str, Any] = {"temperature": 0.125, "top_p": 0.875, "top_k": 7, "max_tokens": 13, "seed": 17}
WRONG = {"calls": [{"name": "multiply", "arguments": {"a": "six", "b": 7}}]}
REACT = {"says": 'Thought: a tool.\nAction: multiply\nAction Input: {"a": 6, "b": 7}'}
ANSWER = {"says": "Thought: I can answer.\nAnswer: 42"}
ANN = {"says": '{"name": "Ann", "age": 7}'}
HEEDS = {"says": '{"name": "ann", "age": 7}', "heeds": {"begins with a capital": ANN["says"]}}
ENFORCED = {"ollama": "the server's grammar"}


# fmt: off
ROWS = (
    Row("1", "base class", probes.base),
    Row("2", "methods that answer, of 8", lambda p: sum(works(p.ask, method) for method in SYNC + ASYNC)),
    Row("3", "start events of one `chat`; how often `TokenCountingHandler` counts it", probes.counted),
    Row("4", "`formatted` and `completion_to_prompt` heeded, in 8 cases", probes.formatted),
    Row("5", "`logprobs` returned", lambda p: bool(p.last(logprobs=1).logprobs)),
    Row("6", "async methods that leave the event loop free, of 4", probes.free),
    Row("7", "the caller's context in threads", probes.context, {**NO_THREADS, "huggingface": ""}),
    Row("8–9", "a timeout of 0.1 s on `achat`; calls of the model that begin after it", probes.timeout),
    Row("10", "a method for many prompts; 4 awaited calls run", probes.batch),
    Row("11", "settings unchanged by a call and a stream", probes.unchanged),
    Row("12", "`metadata` of 512 tokens, 17 of them new; chat model; calls functions", probes.metadata),
    Row("13", "answers as long as the context refused early", lambda p: not works(p.llm, tokens=WINDOW)),
    Row("14", "a prompt that does not fit", probes.overflow),
    Row("15", "its tokenizer, for `set_global_tokenizer`", lambda p: hasattr(p.llm(), "tokenizer_fn"),
        {"huggingface": "the one it was given"}),
    Row("16", "chat template in `chat`; in `predict`", probes.template, {"ollama": "server; server"}),
    Row("17", "roles of messages, of 8",
        lambda p: sum(works(p.llm().chat, [ChatMessage(role=role, content="x")]) for role in MessageRole)),
    Row("18", "an image in a message", probes.image),
    Row("19", "`additional_kwargs` of a message stay out of the prompt", probes.kept_out),
    Row("20", "thoughts apart from the text", probes.thoughts, script={"thinks": "Add.", "says": "7"}),
    Row("21", "`stop` of a call heeded, in 4 methods",
        lambda p: [outcome(lambda m=m: said(p.last(m, stop=["7"])).strip()) for m in SYNC].count("It is"),
        script={"says": "It is 7."}),
    Row("22", "temperature, top_p, top_k, max_tokens, seed of a call that arrive, of 5",
        lambda p: sum(p.heard(**{name: value}).get(name) == value for name, value in OPTIONS.items())),
    Row("22", "top_k, stop, seed of the object that arrive", probes.settings,
        {"huggingface": "top_k, stop"}),
    Row("23", "an unknown option of a call", lambda p: outcome(p.ask, temprature=3, good="ignored")),
    Row("24", "copies with other options share the model; are checked", probes.copies),
    Row("25–26", "options in a scope, also through `predict`; a call's go before them", probes.scope, NO),
    Row("27", "a policy which calls are refined", probes.policy, NO_SEARCH),
    Row("28", "the seed is in `raw`", lambda p: "'seed'" in str(p.last().raw)),
    Row("29", "streams: text so far, and its `delta`; end as `chat` does", probes.stream),
    Row("30, 48", "rounds of a search are events with the call's span", probes.progress, NO_SEARCH),
    Row("31", "usage in a stream's last chunk", lambda p: probes.usage(p, "stream_chat")),
    Row("32", "errors of the back end reach who reads the stream",
        lambda p: outcome(p.ask, "stream_chat").replace("BrokenPipeError", "yes"),
        script={"error": BrokenPipeError("device")}),
    Row("33", "`raw` has usage; is JSON",
        lambda p: (probes.usage(p, "chat"), outcome(lambda: json.dumps(p.last().raw), good="yes"))),
    Row("34–35", "`raw`, and no message's `additional_kwargs`, has what a search spent",
        lambda p: p.last().raw["nabla"]["usage"]["rollouts"] == len(p.backend.prompts) > 1
        and not p.last().message.additional_kwargs, NO_SEARCH),
    Row("36", "end event of `chat` has `raw`",
        lambda p: all(event.response.raw for event in p.events().of("LLMChatEndEvent"))),
    Row("37", "`chat_with_tools` leaves the chat history alone", probes.history, tools=True),
    Row("37", "`tool_required=True` gives a call", lambda p: works(calls, p, tool_required=True), tools=True),
    Row("38", "two calls of one tool have two ids",
        lambda p: len({call.tool_id for call in calls(p, allow_parallel_tool_calls=True)}) == 2,
        script={"calls": [CALL, CALL]}, tools=True),
    Row("39", "arguments that are no whole JSON", probes.malformed, {"ollama": "the server's"}, tools=True),
    Row("40", "arguments that do not fit the tool's schema", probes.unfit, script=WRONG, tools=True),
    Row("41", "`predict_and_call` without tool calling", probes.react, script=REACT),
    Row("42", "agents that run: Function, ReAct, CodeAct, `AgentWorkflow`", probes.agents, script=ANSWER),
    Row("43", "`structured_predict` where the model says `nope`",
        lambda p: outcome(structured, p, good="an object"), ENFORCED, {"says": "nope"}),
    Row("43", "where it omits a field",
        lambda p: outcome(structured, p, good="an object"), ENFORCED, {"says": '{"name": "Ann"}'}),
    Row("43", "the schema that it is told", probes.schema, script=ANN),
    Row("44", "the system prompt comes along", probes.system, script=ANN),
    Row("44", "structured start events; end events", probes.structured_events, script=ANN),
    Row("45", "`tool_choice=None`, as programs pass it", lambda p: outcome(p.ask, tool_choice=None, good="accepted")),
    Row("46", "`as_structured_llm`",
        lambda p: p.llm(window=2048, tokens=200).as_structured_llm(Person).chat(user()).raw.name == "Ann", script=ANN),
    Row("47", "a validator refuses, the model would heed the reason",
        lambda p: outcome(structured, p, Person, good="an object"), script=HEEDS),
    Row("49", "spans of one `chat`", probes.spans),
    Row("50", "a failing event handler stops no call", probes.failing),
    Row("51", "secrets of the settings stay out of events", probes.secrets),
    Row("52", "events of `chat` are JSON",
        lambda p: outcome(lambda: [event.model_dump_json() for event in p.events().events], good="yes")),
    Row("53", "`to_dict` is JSON; a pickled copy answers",
        lambda p: (outcome(json.dumps, p.llm().to_dict(), good="yes"), probes.pickled(p)),
        {"vllm": "yes; no", "ollama": "yes; yes"}),
    Row("54", "a deep copy shares the model", probes.deep_copy, {"ollama": "the server's"}),
    Row("55", "construction loads", probes.lazy, {"huggingface": "weights"}),
    Row("56", "`class_name()`", lambda p: f"`{p.llm().class_name()}`"),
    Row("57", "`load_llm`, which knows LlamaIndex's own alone", lambda p: outcome(load_llm, p.llm().to_dict())),
    Row("–", "verifiers, a query engine, workflow steps and agents' tools besides", probes.companions, NO),
)
# fmt: on


def main() -> None:
    there = installed()
    print("| rule | | " + " | ".join(there) + " |\n|---:|---|" + "---|" * len(there))
    for row in ROWS:
        cells = [row.cell(name, make) for name, make in there.items()]
        print(f"| {row.rules} | {row.what} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    main()
