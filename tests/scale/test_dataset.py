"""Whole datasets: one completion for each row, in order, whatever interrupts the job; and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nabla_agents import ArithmeticSteps, Budget, ConfigurationError, Engine, NablaError, Sampling
from nabla_agents.scale import DatasetSettings, complete_dataset, engine_maker
from nabla_agents.scale.dataset import Shard, on_this_machine
from nabla_agents.testing import random_model

ENGINE = Engine(
    model=random_model(vocabulary=("1", "2", "3", "+", "=", "\n"), context_length=64),
    reward=ArithmeticSteps(),
    budget=Budget(rollouts=2),
)
SETTINGS = DatasetSettings(shard=3, max_tokens=6)


def make() -> Engine:
    return ENGINE


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight rows, with what other readers take for the end of a line; the sixth cannot be asked, and the seventh has
    no question.
    """
    rows: list[dict[str, Any]] = [{"id": i, "question": "12+3"[: 1 + i % 4], "é": "a\u2028b\x85c\rd"} for i in range(8)]
    rows[5]["question"] = ""
    del rows[6]["question"]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n", encoding="utf-8")
    return file


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def run_to_end(source: Path, out: Path, **options: Any) -> list[tuple[int, int]]:
    return list(complete_dataset(source, out, make, SETTINGS, **options))


def test_every_row_comes_back_once_in_order_with_the_completion_of_its_own_seed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run_to_end(source, out) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    questions, rows = rows_of(source), rows_of(out)
    assert [{k: v for k, v in row.items() if k not in ("completion", "nabla")} for row in rows] == questions
    for i, row in enumerate(rows):
        if i in (5, 6):
            assert row["completion"] is None
            assert row["nabla"]["error"].startswith("PromptError: ")
            continue
        alone = ENGINE.generate(questions[i]["question"], seed=i, sampling=Sampling(max_tokens=6))
        assert row["completion"] == alone.text
        assert row["nabla"]["seed"] == i
        assert row["nabla"]["usage"]["rollouts"] == alone.usage.rollouts
    assert "no field 'question'" in rows[6]["nabla"]["error"]
    assert list(tmp_path.glob("*.parts")) == []


def test_a_job_goes_on_where_it_was_stopped_and_computes_nothing_twice(source: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run_to_end(source, whole)
    computed: list[int] = []

    def watched(shards: Sequence[Shard], *rest: Any) -> Iterator[Any]:
        for number, rows in on_this_machine(shards, *rest):
            computed.append(number)
            yield number, rows

    for _ in range(3):  # stopped after each shard
        job = complete_dataset(source, out, make, SETTINGS, run=watched)
        done = next(job)[0]
        assert next(job)[0] == done + 1
        job.close()
        assert not out.exists()
    assert run_to_end(source, out, run=watched)[-1] == (3, 3)
    assert computed == [0, 1, 2]
    resumed, uninterrupted = rows_of(out), rows_of(whole)
    assert [strip(row) for row in resumed] == [strip(row) for row in uninterrupted]
    assert likelihoods(resumed) == pytest.approx(likelihoods(uninterrupted), abs=1e-4)


def strip(row: dict[str, Any]) -> dict[str, Any]:
    """Without what the clock, the memory and the rounding of a batch say."""
    return {**row, "nabla": {k: v for k, v in row["nabla"].items() if k not in ("usage", "log_likelihood")}}


def likelihoods(rows: list[dict[str, Any]]) -> list[float]:
    return [row["nabla"].get("log_likelihood", 0.0) for row in rows]


def test_a_worker_that_was_thought_lost_changes_nothing(source: Path, tmp_path: Path) -> None:
    """Shards come in any order, and some of them twice."""

    def twice(shards: Sequence[Shard], *rest: Any) -> Iterator[Any]:
        found = list(on_this_machine(shards, *rest))
        yield from [found[2], found[0], found[2], found[1], found[0]]

    out = tmp_path / "out.jsonl"
    run_to_end(source, out, run=twice)
    assert [row["id"] for row in rows_of(out)] == list(range(8))


def test_shards_that_never_come_are_an_error_and_the_rest_is_kept(source: Path, tmp_path: Path) -> None:
    def some(shards: Sequence[Shard], *rest: Any) -> Iterator[Any]:
        yield from list(on_this_machine(shards[:1], *rest))

    out = tmp_path / "out.jsonl"
    with pytest.raises(NablaError, match="2 of 3 shards have no result; run the same job again"):
        run_to_end(source, out, run=some)
    assert run_to_end(source, out)[0] == (1, 3)
    assert len(rows_of(out)) == 8


def test_a_crash_between_the_file_and_the_end_of_the_job_is_made_good(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    job = complete_dataset(source, out, make, SETTINGS)
    assert [next(job) for _ in range(4)][-1] == (3, 3)
    job.close()  # all shards are there, the file is not
    assert run_to_end(source, out) == [(3, 3)]
    assert len(rows_of(out)) == 8


HALF, DEEP = '{"question": "\\ud800"}', '{"question": "1", "a": ' + "[" * 100_000 + "]" * 100_000 + "}"
CLOSE = '{"question": "1", "a": ' + "[" * 300 + "]" * 300 + "}"  # no deeper than the interpreter allows, but than we do


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_row_that_cannot_be_read_is_that_rows_error(tmp_path: Path, suffix: str) -> None:
    """Halves of surrogate pairs, which no file of text holds, and nesting that ends every recursion."""
    lines = [HALF, DEEP, '{"question": "1", "id": "\\udfff"}', CLOSE, '{"question": "1"}']
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    out = tmp_path / f"out{suffix}"
    run_to_end(tmp_path / "q.jsonl", out)
    if suffix == ".jsonl":
        rows = rows_of(out)
        assert (rows[0]["question"], rows[2]["id"]) == ("\ud800", "\udfff")
    else:
        import pyarrow.parquet as pq

        rows = [{**row, "nabla": json.loads(row["nabla"])} for row in pq.read_table(out).to_pylist()]
        assert (rows[0]["question"], rows[2]["id"]) == ("\ufffd", "\ufffd")
    assert [row["completion"] is None for row in rows] == [True, True, False, True, False]
    assert rows[0]["nabla"]["error"].startswith("PromptError: ")
    assert rows[1]["nabla"]["error"] == "Line 2 is nested more than 200 levels deep."
    assert "Line 4" in rows[3]["nabla"]["error"]
    assert [rows[i]["nabla"]["seed"] for i in (2, 4)] == [2, 4]


def test_columns_of_several_kinds_are_json_text_in_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    values = [1, "a", 2**70, None]
    lines = [json.dumps({"question": "1", "v": value, "huge": 2**70}) for value in values]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    run_to_end(tmp_path / "q.jsonl", tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["v"] for row in rows] == ["1", '"a"', str(2**70), None]
    assert rows[0]["huge"] == str(2**70)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_full_disk_is_an_error_and_the_job_goes_on_when_there_is_room(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / f"out{suffix}"
    rows = [row for row in rows_of(source) if "question" in row]
    source.write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in rows))
    for broken, done in (("fsync", 0), ("replace", 0)):
        with monkeypatch.context() as patched:
            job = complete_dataset(source, out, make, SETTINGS)
            assert next(job)[0] == done
            patched.setattr(os, broken, full)
            with pytest.raises(NablaError, match=r"cannot be written .*No space left.*run the same job again"):
                next(job)
        assert [p.name for p in (tmp_path / f"{out.name}.parts").iterdir()] == ["job"]
    assert run_to_end(source, out)[-1] == (3, 3)


def test_a_finished_shard_that_lost_rows_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    job = complete_dataset(source, out, make, SETTINGS)
    for _ in range(2):
        next(job)
    job.close()
    part = tmp_path / "out.jsonl.parts" / "00000000.jsonl"
    whole = part.read_text()
    part.write_text(whole[: whole.index("\n") + 1])
    with pytest.raises(ConfigurationError, match="has 1 rows; expected 3. Remove it, and run the same job again"):
        run_to_end(source, out)
    part.write_text(whole[:-5])
    with pytest.raises(ConfigurationError, match=r"Line 3 of .*00000000.jsonl is no JSON"):
        run_to_end(source, out)


def test_parquet_goes_in_and_comes_out(source: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines, table = tmp_path / "out.jsonl", tmp_path / "out.parquet"
    run_to_end(source, lines)
    rows = rows_of(source)
    pq.write_table(
        pa.table({name: [row.get(name) for row in rows] for name in ("id", "question")}), tmp_path / "q.parquet"
    )
    run_to_end(tmp_path / "q.parquet", table)
    found = pq.read_table(table).to_pylist()
    assert [row["completion"] for row in found] == [row["completion"] for row in rows_of(lines)]
    assert [row["id"] for row in found] == list(range(8))
    assert json.loads(found[0]["nabla"])["seed"] == 0
    assert "error" in json.loads(found[6]["nabla"])


def test_no_rows_are_no_completions(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("")
    assert run_to_end(tmp_path / "q.jsonl", tmp_path / "out.jsonl") == [(0, 0)]
    assert (tmp_path / "out.jsonl").read_text() == ""


# ── what is refused before an engine is made ──────────────────────────────────────────────────────────────────────


def unmade() -> Engine:
    pytest.fail("an engine was made")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "a"}\n[1]\n', r"Line 2 of .*q.jsonl is \[1\]; expected a JSON object"),
        ('{"question": "a"\n', r"Line 1 of .*q.jsonl is no JSON"),
        ('{"completion": "a"}\n', "Row 0 of .* has a field 'completion', which results have; rename it"),
        ('{"question": "a"}\n{"nabla": 1}\n', "Row 1 of .* has a field 'nabla'"),
    ],
)
def test_rows_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        list(complete_dataset(tmp_path / "q.jsonl", tmp_path / "out.jsonl", unmade))
    assert [p.name for p in tmp_path.iterdir()] == ["q.jsonl"]


def test_files_that_cannot_be_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    def refused(said: str, source: Path = source, out: Path = out, settings: DatasetSettings = SETTINGS) -> None:
        with pytest.raises(ConfigurationError, match=said):
            list(complete_dataset(source, out, unmade, settings))

    refused("expected .jsonl or .parquet", source=tmp_path / "q.csv")
    refused("expected .jsonl or .parquet", out=tmp_path / "out.txt")
    refused("cannot be read", source=tmp_path / "none.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    refused("cannot be read", source=tmp_path / "bytes.jsonl")
    (tmp_path / "q.parquet").write_bytes(b"no table")
    refused("is no Parquet file", source=tmp_path / "q.parquet")
    out.write_text("mine")
    refused("is there already")
    out.unlink()
    job = complete_dataset(source, out, make, SETTINGS)
    next(job)
    next(job)
    job.close()
    refused("has parts of another job", settings=SETTINGS.replace(seed=1))
    other = tmp_path / "other.jsonl"
    (tmp_path / "other.jsonl.parts").mkdir()
    (tmp_path / "other.jsonl.parts" / "mine").write_text("mine")
    refused("has other files in it", out=other)


@pytest.mark.parametrize("settings", [{"shard": 0}, {"seed": -1}, {"workers": 0}, {"rollouts": 0}, {"shards": 1}])
def test_settings_that_cannot_be_are_refused(settings: Any) -> None:
    with pytest.raises(ConfigurationError, match="DatasetSettings"):
        DatasetSettings(**settings)


@pytest.mark.parametrize("engine", ["module", ":f", "m:", "m:f.g"])
def test_a_place_that_is_none_is_refused(engine: str) -> None:
    with pytest.raises(ConfigurationError, match="expected package.module:function"):
        engine_maker(engine=engine)


def test_an_engine_is_made_by_a_function_of_ones_own_and_what_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no_such_module:make made no engine"):
        engine_maker(engine="no_such_module:make")()
    with pytest.raises(ConfigurationError, match=r"json:dumps made no engine \(TypeError"):
        engine_maker(engine="json:dumps")()
    with pytest.raises(ConfigurationError, match="expected an Engine"):
        engine_maker(engine="time:time")()


def test_the_command_completes_a_file_and_says_what_is_wrong(source: Path, tmp_path: Path) -> None:
    import typer

    from nabla_agents.scale.__main__ import main

    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "out.jsonl"
    text = "Tom has 12 apples. He then has 3 times as many. How many apples are left?"
    (tmp_path / "q.jsonl").write_text(json.dumps({"asked": text}) + "\n")
    options = ["--question", "asked", "--rollouts", "1", "--max-tokens", "4"]
    done = CliRunner().invoke(app, [str(tmp_path / "q.jsonl"), str(out), *options])
    assert done.exit_code == 0, done.output
    assert [line for line in done.stderr.splitlines() if "shards" in line] == ["0/1 shards", "1/1 shards"]
    [row] = rows_of(out)
    assert row["asked"] == text
    assert row["completion"]
    again = CliRunner().invoke(app, [str(tmp_path / "q.jsonl"), str(out), *options])
    assert again.exit_code == 2
    assert again.stderr.startswith("error: ")
