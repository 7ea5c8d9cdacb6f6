"""The benchmark scripts run, on small shapes, and say what they need."""

import hashlib
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nabla_agents import OutcomeReward, Rollout
from nabla_agents.tiny import LM_PATH, problems

FOLDER = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(FOLDER / script), *arguments], capture_output=True, text=True)


def test_the_gpu_benchmark_measures_a_small_shape_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ("--device", "cpu", "--questions", "1", "--repeats", "1", "--batches", "1,3", "--tokens", "10")
    done = run("gpu.py", "--shapes", "smoke", *options, "--json", str(out))
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = {f"{m['what']}: {m['unit']}": m["value"] for m in json.loads(out.read_text())}
    assert figures["rollouts, batch of 3: tokens/s"] > 0
    assert figures["gradient pass, 10 tokens: × its FLOP floor"] > 1  # no pass is faster than its matrix products
    assert figures["best-of-8: rollouts"] == 8
    assert 1 <= figures["parallel, forced: rollouts"] <= 8
    assert figures["parallel, forced: s/question"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_large_shapes_are_refused_with_advice() -> None:
    done = run("gpu.py")
    assert done.returncode == 1
    assert "There is no GPU here" in done.stderr
    assert "--shapes smoke" in done.stderr


@pytest.mark.slow
def test_the_scaling_benchmark_finds_an_exponent() -> None:
    small = ("--lengths", "8,16", "--layers", "1", "--width", "32", "--repeats", "1")
    assert "exponent" in run("scaling.py", *small, "--most", "9").stdout
    refused = run("scaling.py", *small, "--most", "-9")
    assert refused.returncode == 1
    assert "Time grows as T to the power of" in refused.stderr


def test_the_phases_of_two_answers_add_up_and_are_joined() -> None:
    alone, together = run("phases.py", "--questions", "2", "--rounds", "1").stdout.split("2 at once")
    for table in (alone, together):
        seconds = {line.split("│")[1].strip(): float(line.split("│")[2]) for line in table.splitlines() if "│" in line}
        assert seconds.pop("all") == pytest.approx(sum(seconds.values()), abs=0.05)
        assert {"gradient", "score", "proposals", "rollouts: decode", "rollouts: prefill", "search"} == set(seconds)
    steps = [int(re.findall(r"rollouts: decode +│ +[\d.]+ │ +(\d+)", table)[0]) for table in (alone, together)]
    assert steps[1] < steps[0]


def test_the_benchmark_of_arithmetic_counts_what_is_found_and_what_is_false(tmp_path: Path) -> None:
    steps = [
        {"steps": ["A = (1 + 2)", "A = (1 + 2) = 3", "(1 + 2) * 4 = 11"], "mistake_index": 2},
        {"steps": ["A = 1 + 2 = 4", "4 * 5 = 21"], "mistake_index": 1},  # a label that errs
        {"steps": ["1 + 2 = 3"], "mistake_index": None},
    ]
    solutions = [
        {"solution": "1 + 2 = 3", "is_correct": True},
        {"solution": "1 + 2 = 4", "is_correct": False},
        {"solution": "3", "is_correct": True},
    ]
    files = [tmp_path / "steps.jsonl", tmp_path / "solutions.jsonl"]
    for file, rows in zip(files, (steps, solutions), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = run("arithmetic.py", *map(str, files)).stdout
    shares = re.findall(r"^  ([a-z ]+): (\d+ of \d+), ", printed, re.MULTILINE)
    assert shares == [
        ("first mistakes found", "1 of 2"),
        ("objections against the label", "1 of 3"),
        ("false objections", "0 of 3"),
        ("solutions with equations", "2 of 3"),
        ("right solutions objected to", "0 of 2"),
        ("false objections", "0 of 2"),
        ("wrong solutions objected to", "1 of 1"),
    ]
    assert "A = 1 + 2 = 3, not 4" not in printed
    assert "1 + 2 = 3, not 4; 4 * 5 = 20, not 21" in printed


@pytest.mark.slow
def test_a_verifier_is_a_reward_model_whose_score_is_what_was_fitted(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {a} + {b}?", "solution": f"{a} + {b} = {a + b + wrong}", "is_correct": not wrong}
        for a in range(4)
        for b in range(4)
        for wrong in (0, 1)
    ]
    solutions, questions = tmp_path / "solutions.jsonl", tmp_path / "questions.jsonl"
    solutions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions.write_text("".join(json.dumps({"question": q, "answer": "#### 5"}) + "\n" for q in ("2 + 3?", "1 + 4?")))
    options = ("--solutions", str(solutions), "--questions", str(questions), "--count", "2", "--samples", "2")
    command = ("verifier.py", str(LM_PATH), *options, "--out", str(tmp_path / "verifier"))
    assert run(*command).returncode == 0
    report = json.loads((tmp_path / "verifier" / "report.json").read_text())
    low, high = report["held out, all"]["interval"]
    assert 0 <= low <= report["held out, all"]["auc"] <= high <= 1
    states = torch.load(tmp_path / "verifier" / "states.pt")
    reward = OutcomeReward.from_pretrained(tmp_path / "verifier")
    weight = reward.transformer.module.score.weight[0]  # type: ignore[union-attr, index]
    for row in rows[:3]:
        question = (
            f"{row['question']}\nSolve it step by step with equations, and end with a line `Answer:` and the number."
        )
        state = states[hashlib.sha256(f"{question}\0{row['solution']}".encode()).hexdigest()]
        [score] = reward.score([Rollout.from_text(question, str(row["solution"]))])
        assert score.value == pytest.approx(float(state @ weight), rel=1e-3, abs=1e-3)
    written = (tmp_path / "verifier" / "answers.jsonl").read_text()
    assert run(*command).returncode == 0  # goes on from what is there
    assert (tmp_path / "verifier" / "answers.jsonl").read_text() == written


def test_the_auc_is_the_share_of_pairs_in_order_and_the_head_separates_what_can_be() -> None:
    sys.path.insert(0, str(FOLDER.parent))
    from benchmarks.verifier import auc, logistic

    generator = torch.Generator().manual_seed(0)
    values, right = torch.randn(40, generator=generator).double(), torch.rand(40, generator=generator) < 0.4
    pairs = [(a > b).double() for a in values[right] for b in values[~right]]
    assert auc(values, right) == pytest.approx(float(torch.stack(pairs).mean()))
    states = torch.randn(400, 5, generator=generator).double() * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])
    truth = torch.tensor([1.0, -0.1, 10.0, 0.0, 0.0]).double()
    labels = torch.rand(400, generator=generator) < (states @ truth).sigmoid()
    off = (logistic(states, labels, 1e-6) - truth).abs()
    assert bool((off < torch.tensor([0.5, 0.05, 5.0, 0.15, 0.5])).all())


def test_the_benchmark_of_predictions_ranks_as_the_ranks_say(tmp_path: Path) -> None:
    sys.path.insert(0, str(FOLDER.parent))
    from benchmarks.first_order import spearman

    x, y = torch.tensor([3.0, 1.0, 2.0, 2.0]).double(), torch.tensor([9.0, 1.0, 8.0, 0.0]).double()
    ranks = torch.tensor([4.0, 1.0, 2.5, 2.5]), torch.tensor([4.0, 2.0, 3.0, 1.0])
    assert spearman(x, y) == pytest.approx(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
    questions, out = tmp_path / "questions.jsonl", tmp_path / "out"
    asked = [problem.question for problem in problems(6, seed=3, split="test")]
    questions.write_text("".join(json.dumps({"question": question}) + "\n" for question in asked))
    options = ("--questions", str(questions), "--prompt", "{question}", "--answers", "4", "--places", "3")
    done = run("first_order.py", "tiny", "tiny", *options, "--tails", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "changes.jsonl").read_text().splitlines()]
    assert f"{len(rows)} changes of {len({row['answer'] for row in rows})} answers" in done.stdout
    assert len(rows) >= 6
    for row in rows:  # the direct term of log π is what the token itself changes: behind it the model may be surer
        assert row["predicted"]["log π"]["direct"] != 0
        assert abs(row["predicted"]["reward"]["direct"]) > 0
    table = (out / "table.md").read_text()
    assert table.count("|") == 5 * 11
    assert re.search(r"\| log π \| direct \| -?[01]\.\d\d \[", table)


@pytest.mark.slow
def test_the_benchmark_of_threads_has_every_way_to_wait() -> None:
    printed = run("threads.py", "--seconds", "1").stdout
    found = re.findall(r"│ ([\w` ]+?) +│ +([\d.]+) +│ +([\d.]+) +│", printed)
    assert [way for way, *_ in found] == ["as torch waits", "as `nabla` waits", "sleeps at once", "one thread"]
    assert all(float(seconds) > 0 for _, *row in found for seconds in row)
    assert len(re.findall(r"its own +│ +[\d.]+ +│", printed)) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory in /proc")
def test_memory_is_computed_as_it_is_measured() -> None:
    printed = run("memory.py", "tiny", "--passes", "gradient", "--rows", "32", "--tokens", "128").stdout
    [ratio] = [float(row.split(" | ")[4]) for row in printed.splitlines()[2:]]
    assert 0.8 < ratio < 1.25  # libraries take a few MB more or less


@pytest.mark.slow
def test_the_pairs_that_fit_are_those_of_the_page() -> None:
    page = (FOLDER.parent / "docs/models.md").read_text(encoding="utf-8")
    assert run("fits.py").stdout.strip() in page


@pytest.mark.slow
def test_texts_are_the_same_alone_compiled_and_in_a_batch() -> None:
    done = run("same_texts.py", "--questions", "4", "--batch", "3")
    assert done.returncode == 0, done.stderr
    assert [same for _, same in re.findall(r"│ +(\d) +│ (\d) +│", done.stdout)] == ["4"] * 3


@pytest.mark.slow
def test_the_throughput_benchmark_has_every_arm() -> None:
    printed = run("throughput.py", "--questions", "1", "--rounds", "1").stdout
    for arm in ("best-of-8, one rollout at a time", "best-of-8", "nabla, forced", "parallel 7 wide, forced"):
        assert len(re.findall(rf"│ {arm} +│", printed)) == 1
    assert "faster" in printed


@pytest.mark.slow
def test_the_duality_benchmark_computes_what_the_engine_draws(tmp_path: Path) -> None:
    """73 completions: the engine's answers are as near to the exact distribution as exact draws are (about 0.1)."""
    done = run("duality.py", "--pairs", "1", "--length", "2", "--check", "300", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    for kind in ("implicit", "outcome"):
        check, samplers = found[f"check, {kind}"], found["rewards"][kind]
        assert check["engine_to_exact"] < check["draws_to_exact"] + 0.06
        assert samplers["the optimum q"]["1"]["total_variation"] < 1e-6
        assert 0 < samplers["no gradient"]["1"]["total_variation"] < 1
    assert "<path" in (tmp_path / "duality.svg").read_text()


def test_the_context_benchmark_gives_the_numbers_of_the_page() -> None:
    printed = run("llama_index_context.py").stdout
    page = (FOLDER.parent / "docs/llamaindex.md").read_text()
    for output in ("64", "256"):
        rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith(f"| {output} |")]
        assert f"| {output} | {' | '.join(row[3] for row in rows)} |" in page


@pytest.mark.slow
def test_the_column_of_this_integration_is_what_the_page_of_llama_index_says() -> None:
    done = run("llama_index_peers")
    assert done.returncode == 0, done.stderr
    page = (FOLDER.parent / "docs/llamaindex.md").read_text()
    said, found = (
        [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("|")]
        for text in (page[page.index("| rule |") :], done.stdout)
    )
    assert len(found) > 50
    assert found[2:] == said[2:]


@pytest.mark.slow
def test_the_serving_benchmark_sees_right_answers_and_named_errors_only(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = run("serve.py", "--quick", "--json", str(out))
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = {part["part"]: part["figures"] for part in json.loads(out.read_text())}
    loads = [found[f"{clients} clients"] for clients in (1, 4)]
    for figures in (found["engine in one process, no server"], *loads):
        assert figures["answers/s"] > 0
        assert figures["p50 s"] <= figures["p95 s"] <= figures["p99 s"]
    small, retried, killed, stopped = list(found.values())[-4:]
    assert small["200"] >= 4  # two places and two to wait
    assert sum(small.values()) == small["200"] + small.get("429", 0) == 8
    assert retried == {"as the engine says": 8}
    for figures in (killed, stopped):
        assert sum(figures.values()) == 32
        assert all(outcome == "as the engine says" or outcome.startswith("RemoteError: ") for outcome in figures)


@pytest.mark.slow
@pytest.mark.enable_socket
def test_the_benchmark_of_replicas_has_a_row_for_each_number() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    small = ("--questions", "4", "--concurrency", "2", "--rounds", "1", "--rollouts", "2")
    done = run("replicas.py", "--replicas", "1,2", *small, "--port", port)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows] == ["1", "2"]
    for row in rows:
        speed, least, most, p50, p95 = map(float, row[1:6])
        assert least == speed == most > 0
        assert 0 < p50 <= p95


@pytest.mark.slow
def test_limits_bind_on_a_small_model_in_every_way() -> None:
    """What is over is not looked at: decode steps of so small a model take less than the clock's noise."""
    done = run("limits.py", "--layers", "1", "--threads", "1")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert len(rows) == 18, done.stderr
    assert {row[0] for row in rows} >= {"0.5 seconds", "Ctrl-C", "a cancelled task", "a closed connection"}
    assert {row[6].split(":")[0] for row in rows} <= {"budget", "interrupted", "length"}  # some are faster than that


@pytest.mark.slow
def test_every_stream_comes_in_pieces() -> None:
    done = run("streaming.py", "--layers", "1", "--threads", "1", "--rounds", "1")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert len(rows) == 7, done.stderr
    assert all(int(row[5]) >= 60 for row in rows)
