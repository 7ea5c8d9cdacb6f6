"""The command `nabla` within this process: what it prints for pipes and programs, and what it refuses."""

from __future__ import annotations

import functools
import json
import shlex
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result as Invoked
from transformers import AutoTokenizer
from typer.testing import CliRunner

import nabla_agents as na
from nabla_agents import tiny
from nabla_agents.cli import app
from nabla_agents.registry import STRATEGIES
from nabla_agents.testing import random_model, random_process_reward

Nabla = Callable[..., Invoked]
SAMPLE = ("solve", "--sample", "28")  # its first answer is wrong, and two changes put it right
LOADERS = {part: functools.cache(part.from_pretrained) for part in (na.LanguageModel, na.ImplicitReward)}
[*_, PROBLEM] = tiny.problems(28, seed=0, split="test")


@pytest.fixture
def nabla(monkeypatch: pytest.MonkeyPatch) -> Nabla:
    """Runs a command line. Anything raised but an exit is an error of the test."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1" if name.endswith(("BARS", "DISABLE")) else "error")

    def run(*arguments: str | Path) -> Invoked:
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


@pytest.fixture(autouse=True)
def _embedded_models_are_loaded_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "unloaded" in request.fixturenames:
        return
    for part, load in LOADERS.items():
        monkeypatch.setattr(
            part,
            "from_pretrained",
            lambda name, load=load, **o: load(name) if name == "tiny" else load.__wrapped__(name, **o),
        )


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are read in this test."""
    monkeypatch.setattr("nabla_agents.models.language_model.load", lambda *_, **__: pytest.fail("weights were loaded"))


def printed(done: Invoked) -> dict[str, Any]:
    """The one JSON object that is all of stdout."""
    assert done.exit_code == 0, done.output
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def assert_refused(done: Invoked, *words: str) -> None:
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model on bytes."""
    model, path = random_model("llama"), tmp_path_factory.mktemp("model")
    model.transformer.module.save_pretrained(path)
    model.tokenizer.hf.save_pretrained(path)
    return path


# ── solve ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_a_question_may_come_from_a_pipe(arguments: tuple[str, ...], nabla: Nabla) -> None:
    """As `echo QUESTION | nabla solve` and `nabla solve - < file`."""
    options = ("--json", "--strategy", "greedy", "--rollouts", "1")
    piped = CliRunner().invoke(app, ["solve", *arguments, *options], input=f"{PROBLEM.question}\n")
    assert json.loads(piped.stdout)["text"] == json.loads(nabla("solve", PROBLEM.question, *options).stdout)["text"]
    assert "Give either a question" in CliRunner().invoke(app, ["solve", *arguments, *options], input="\n").stderr


def test_a_pipe_gets_the_question_each_change_the_answer_and_the_verdict(nabla: Nabla) -> None:
    done = nabla(*SAMPLE)
    assert done.exit_code == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == f"question: {PROBLEM.question}"
    assert lines[1].startswith("✓ rollout 1  reward ")
    changes = [line for line in lines if " → " in line]
    assert len(changes) >= 2
    assert all("  ranked by " in line and " · realised " in line and " · reward " in line for line in changes)
    assert lines.index("draft:") < lines.index("answer:")
    assert lines[-1] == f"expected: {PROBLEM.answer} · answer correct · draft wrong"


def test_json_is_the_whole_result_and_nothing_else_and_a_report_shows_what_was_tried(
    nabla: Nabla, tmp_path: Path
) -> None:
    file = tmp_path / "out.html"
    done = nabla(*SAMPLE, "--json", "--report", file)
    assert done.stderr == ""
    got = printed(done)
    assert set(got) == {"question", "expected", "correct"} | {f.name for f in fields(na.Result)}
    assert all(set(step) == {f.name for f in fields(na.Step)} for step in got["trace"])
    assert set(got["usage"]) == {f.name for f in fields(na.Usage)}
    engine = na.Engine(model=LOADERS[na.LanguageModel]("tiny"), reward=LOADERS[na.ImplicitReward]("tiny"))
    result = engine.generate(PROBLEM.question, seed=0, budget=na.Budget(rollouts=8))
    assert (got["question"], got["expected"], got["correct"]) == (PROBLEM.question, PROBLEM.answer, True)
    assert (got["text"], got["token_ids"], got["finish_reason"]) == (result.text, list(result.token_ids), "stop")
    assert result.score is not None
    assert got["score"]["value"] == pytest.approx(result.score.value)
    assert got["usage"]["flops"] == result.usage.flops
    assert got["seed"] == 0
    html = file.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    tried = [step for step in got["trace"] if step["kind"] != "commit"]
    assert html.count("<details") == len(tried) >= 2
    assert "promises most" in html
    assert any(step["gains"] for step in tried)


def test_a_wrong_answer_is_called_wrong(nabla: Nabla) -> None:
    done = nabla(*SAMPLE, "--strategy", "greedy")
    assert done.stdout.splitlines()[-1] == f"expected: {PROBLEM.answer} · answer wrong"


def test_what_could_not_be_judged_is_null(nabla: Nabla) -> None:
    got = printed(nabla(*SAMPLE, "--reward", "arithmetic", "--max-tokens", "1", "--json"))
    assert got["trace"][0]["gain"] is None
    plain = printed(nabla("solve", "a", "--reward", "none", "--max-tokens", "1", "--json"))
    assert plain["score"] is None
    assert "expected" not in plain


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_answers_within_the_budget(nabla: Nabla, strategy: str) -> None:
    got = printed(nabla(*SAMPLE, "--strategy", strategy, "--rollouts", "3", "--max-tokens", "12", "--json"))
    sampled = strategy in ("best-of-n", "self-consistency", "weighted-vote")
    assert got["usage"]["rollouts"] in ([3] if sampled else [1] if strategy == "greedy" else [1, 2, 3])
    assert got["text"] in [step["text"] for step in got["trace"]]
    assert 1 <= len(got["token_ids"]) <= 12
    gradients = strategy in ("nabla", "nabla-random", "nabla-parallel", "nabla-paper")
    assert (got["usage"]["gradient_passes"] > 0) == gradients


def test_rewards_add_and_scale(nabla: Nabla) -> None:
    def score(expression: str) -> dict[str, Any]:
        got = printed(nabla(*SAMPLE, "--strategy", "greedy", "--reward", expression, "--json"))
        assert got["correct"] is False
        return got["score"]

    process, tool, both = score("tiny"), score("arithmetic"), score(" 0.5 * tiny+2*arithmetic ")
    assert process["verdict"] is None
    assert tool["verdict"] == tool["value"]
    assert [span["expected"] for span in tool["spans"] if span["value"] < 0] == ["3"]
    assert both["value"] == pytest.approx(0.5 * process["value"] + 2 * tool["value"])
    assert both["verdict"] == 2 * tool["value"]


def test_a_process_reward_of_a_folder_judges_and_steers(nabla: Nabla, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.LM_PATH)
    random_process_reward(tokenizer).transformer.module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    done = nabla(*SAMPLE, "--reward", f"process:{tmp_path}", "--json", "--rollouts", "2")
    got = printed(done)
    assert done.stderr == ""
    assert 0 <= got["score"]["value"] <= 1
    assert len(got["score"]["spans"]) >= 2  # one for each step
    assert got["usage"]["reward_backward_tokens"] > 0


def test_a_seed_gives_the_same_answers_again(nabla: Nabla) -> None:
    def texts(seed: int) -> list[str]:
        sampled = ("--strategy", "best-of-n", "--rollouts", "3", "--temperature", "1.5", "--max-tokens", "10")
        return [s["text"] for s in printed(nabla(*SAMPLE, *sampled, "--seed", str(seed), "--json"))["trace"]]

    first = texts(1)
    assert texts(1) == first
    assert texts(2) != first
    assert len(set(first)) > 1


def test_another_model_has_no_reward_unless_one_is_given(nabla: Nabla, folder: Path) -> None:
    asked = ("solve", "2 + 2", "--model", folder, "--max-tokens", "5", "--rollouts", "2", "--json")
    got = printed(nabla(*asked))
    model = na.LanguageModel.from_pretrained(folder)
    assert got["score"] is None
    assert got["prompt_tokens"] == len(model.prompt("2 + 2").ids)
    assert (len(got["token_ids"]), got["truncated"]) == (5, True)
    with_system = printed(nabla(*asked, "--system", "Be brief."))
    messages = [na.Message("system", "Be brief."), na.Message("user", "2 + 2")]
    assert with_system["prompt_tokens"] == len(model.prompt(messages).ids)
    assert_refused(nabla(*asked, "--reward", "tiny"), "different vocabularies")


def test_an_answer_that_was_cut_is_said_to_be(nabla: Nabla) -> None:
    assert "cut by the length limit" in nabla(*SAMPLE, "--max-tokens", "3", "--strategy", "greedy").stdout


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("solve", ["a question or --sample N"]),
        ("solve a --sample 1", ["a question or --sample N"]),
        ("solve ''", ["question is empty"]),
        ("solve ' \t\n'", ["question is empty"]),
        ("solve a --strategy best", ["Unknown strategy 'best'", "best-of-n, self-consistency"]),
        ("solve a --reward good", ["Unknown reward 'good'", "tiny, arithmetic, located, tests, none, implicit:MODEL"]),
        ("solve a --reward ''", ["Unknown reward ''"]),
        ("solve a --reward tiny+", ["Unknown reward ''"]),
        ("solve a --reward tiny+none", ["'none'", "tiny, arithmetic"]),
        ("solve a --reward judge:x", ["Unknown kind of reward model 'judge'", "implicit, sibling, process, outcome"]),
        ("solve a --reward two*tiny", ["weight 'two'", "is no number"]),
        ("solve a --reward tiny*2", ["weight 'tiny'", "is no number"]),
        ("solve a --reward nan*tiny", ["weight 'nan'", "not finite"]),
        ("solve a --reward tiny+inf*arithmetic", ["weight 'inf'", "not finite"]),
        ("solve a --rollouts 0", ["Budget.rollouts is 0", "at least 1"]),
        ("solve a --max-tokens 0", ["max_tokens = 0"]),
        ("solve a --temperature -1", ["temperature = -1"]),
        ("solve a --temperature nan", ["temperature = nan"]),
        ("solve a --dtype float99", ["dtype = 'float99'", "bfloat16"]),
        ("bench --arms nope", ["No arm matches 'nope'", "greedy, majority@8"]),
        ("bench --arms nabla[x=1]", ["x = 1", "Known settings: direction"]),
        ("bench --rollouts 0", ["Budget.rollouts is 0; expected"]),
        ("solve a --report /no/such/folder/x.html", ["--report /no/such/folder/x.html", "cannot be written"]),
        ("bench --task poems", ["Unknown task 'poems'", "words, code"]),
        ("bench --problems 0", ["problems = 0"]),
        ("bench --seed -1", ["seeds.0 = -1"]),
        ("bench --batch 0", ["batch = 0"]),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_weights_are_read(
    nabla: Nabla, arguments: str, words: list[str]
) -> None:
    assert_refused(nabla(*shlex.split(arguments)), *words)


@pytest.mark.parametrize("arguments", ["solve --sample 0", "solve --sample x", "solve a --nope", "nope", "solve a b"])
def test_bad_usage_is_refused_with_a_hint(nabla: Nabla, arguments: str) -> None:
    done = nabla(*arguments.split())
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", ""])
def test_an_unknown_model_or_reward_model_says_what_names_there_are(nabla: Nabla, name: str) -> None:
    for given in (("--model", name), ("--reward", f"process:{name}")):
        assert_refused(nabla("solve", "a", *given), repr(name), "Give a folder with config.json")


def test_code_of_a_model_does_not_run_without_consent(nabla: Nabla, folder: Path, tmp_path: Path) -> None:
    """Nor the code that would load its reward."""
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "stranger",
        "auto_map": {"AutoConfig": "stranger.Config", "AutoModelForCausalLM": "stranger.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "stranger.py").write_text("raise SystemExit('it ran')")
    for given in (("--model", tmp_path), ("--reward", f"implicit:{tmp_path}")):
        assert_refused(nabla("solve", "a", *given), "ships its own code", "trust_remote_code")


def test_a_question_of_half_characters_is_refused_and_whole_ones_are_asked(nabla: Nabla) -> None:
    """What is not UTF-8 on the command line comes as surrogates."""
    assert_refused(nabla("solve", "a\udcffb", "--max-tokens", "3"), "whole characters")
    got = printed(nabla("solve", "Zoë\x1b[2J\t🍎", "--max-tokens", "3", "--json"))
    assert got["question"] == "Zoë\x1b[2J\t🍎"
    assert "\x1b" not in nabla("solve", "Zoë\x1b[2J\t🍎", "--max-tokens", "3").stdout


# ── bench ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bench_measures_keeps_and_goes_on(nabla: Nabla, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ("bench", "--arms", "greedy,nabla", "--out", tmp_path, "--rollouts", "3", "--max-tokens", "16")
    done = nabla(*bench, "--problems", "2")
    assert done.exit_code == 0
    assert "2/4 greedy: " in done.stdout
    assert "\x1b" not in done.stdout
    assert {"records.jsonl", "settings.json", "results.json", "table.md"} < {f.name for f in tmp_path.iterdir()}
    assert "accuracy.svg" in done.stdout
    monkeypatch.setattr("nabla_agents.bench.plots.draw", lambda *_, **__: [])  # takes a second
    before = (tmp_path / "records.jsonl").read_text()
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"arm": "nabl')
    assert nabla(*bench, "--problems", "3").exit_code == 0
    after = (tmp_path / "records.jsonl").read_text()
    assert after.startswith(before)
    assert after.count("\n") == 6
    other = nabla(*bench, "--problems", "2", "--rollouts", "2")
    assert_refused(other, "holds results of other settings", "rollouts was 3, is 2")
    assert nabla(*bench, "--problems", "1", "--seed", "1").exit_code == 0  # another seed is added
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write("garbage\n")
    assert_refused(nabla(*bench, "--problems", "2"), "records.jsonl:9 is no record", "Remove the line")


def test_bench_into_a_place_that_cannot_be_written_is_refused(nabla: Nabla, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(nabla("bench", "--problems", "1", "--arms", "greedy", "--out", tmp_path / "file"), "another --out")


@pytest.mark.usefixtures("unloaded")
def test_arms_are_listed_without_loading_anything(nabla: Nabla) -> None:
    done = nabla("bench", "--list", "--arms", "greedy,nabla/*/both@-1", "--rollouts", "3")
    assert done.stdout.splitlines() == ["greedy", "nabla/none/both@-1", "nabla/random/both@-1"]


def test_version_and_help(nabla: Nabla) -> None:
    assert nabla("--version").stdout == f"nabla-agents {na.__version__}\n"
    for command in ("solve", "bench"):
        assert nabla(command, "-h").exit_code == 0


def test_ctrl_c_that_a_half_imported_library_reports_as_its_own_error_is_still_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    def load(*args: object, **options: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as e:
            raise ModuleNotFoundError("Could not import module 'PreTrainedModel'") from e

    monkeypatch.setattr(na.LanguageModel, "from_pretrained", load)
    result = CliRunner().invoke(app, ["solve", "How many?"])
    assert result.exit_code == 130, result.output
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
