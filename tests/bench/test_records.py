"""The store: nothing that was measured is lost, mixed up or misread."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from nabla_agents import ConfigurationError, NablaError, Usage
from nabla_agents.bench import Record, Store

SETTINGS: dict[str, Any] = {"seed": 0, "rewards": {"process": "abc"}, "arms": {"greedy": {"reward": None}}}


def record(problem: int = 0, arm: str = "greedy", **fields: Any) -> Record:
    given = {
        "correct": True,
        "pool_correct": True,
        "text": "Answer: 1",
        "finish_reason": "stop",
        "usage": Usage(rollouts=2),
    }
    return Record(arm=arm, problem=problem, **{**given, **fields})


def store(folder: Path, **changes: Any) -> Store:
    return Store(folder, {**SETTINGS, **changes})


@pytest.mark.parametrize("text", ["", "é\n∇ 🍎", "a\u2028b\u0085c\x0bd\x1ee\r\nf", '"\\{', "\ufffd\x00"])
def test_what_was_appended_is_read(tmp_path: Path, text: str) -> None:
    """Whatever a model wrote: characters that some count as line ends too."""
    one = record(0, text=text, reward=-1.5, log_likelihood=-2.25, usage=Usage(rollouts=3, flops=1e9, seconds=0.1))
    other = record(1)
    for r in (one, other):
        store(tmp_path).append(r)
    assert store(tmp_path).read() == [one, other]
    assert (tmp_path / "records.jsonl").read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_line_is_json_whatever_was_measured(number: float) -> None:
    line = record(log_likelihood=number, reward=number).as_line()
    assert json.loads(line, parse_constant=pytest.fail)["log_likelihood"] is None
    assert Record.from_line(line) == record()


def test_a_line_that_was_cut_off_is_removed_and_measured_again(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.append(record(0))
    kept.append(record(1, text="é"))
    lines = tmp_path / "records.jsonl"
    whole = lines.read_bytes()
    for cut in range(1, len(record(1, text="é").as_line().encode()), 40):
        lines.write_bytes(whole[:-cut])
        assert store(tmp_path).read() == [record(0)]
        assert lines.read_bytes() == whole[: whole.index(b"\n") + 1]
        kept.append(record(1, text="é"))
        assert lines.read_bytes() == whole


def test_of_two_lines_for_one_question_the_first_counts(tmp_path: Path) -> None:
    kept = store(tmp_path)
    for r in (record(0), record(0, arm="nabla"), record(0, correct=False)):
        kept.append(r)
    assert kept.read() == [record(0), record(0, arm="nabla")]


WHOLE: dict[str, Any] = json.loads(record().as_line())


def with_(**fields: Any) -> bytes:
    return json.dumps({**WHOLE, **fields}).encode() + b"\n"


@pytest.mark.parametrize(
    "garbage",
    [
        b"nonsense\n",
        b"null\n",
        b"[]\n",
        b'{"arm": "greedy"}\n',
        b"\xff\xfe\n",
        b"\n",
        b'{"usage": {"x": 1}}\n',
        b"[" * 100_000 + b"\n",
        with_(x=1),
        with_(arm=None),
        with_(problem="0"),
        with_(problem=-1),
        with_(seed=1.5),
        with_(correct="yes"),
        with_(text=["a"]),
        with_(text="\ud800"),
        with_(reward="1"),
        with_(log_likelihood=math.nan),
        with_(curve=[[True, 1.0]]),
        with_(curve=[["x", None, None]]),
        with_(usage=None),
        with_(usage=[1]),
        with_(usage={"dollars": 1}),
        with_(usage={"rollouts": "2"}),
        with_(usage={"rollouts": -2}),
        with_(usage={"flops": math.inf}),
        with_(usage={"rollouts": [[1]]}),
    ],
    ids=lambda line: line[-30:].decode(errors="replace"),
)
def test_a_line_that_is_no_record_is_named_and_kept(tmp_path: Path, garbage: bytes) -> None:
    kept = store(tmp_path)
    kept.append(record(0))
    lines = tmp_path / "records.jsonl"
    lines.write_bytes(lines.read_bytes() + garbage)
    before = lines.read_bytes()
    with pytest.raises(ConfigurationError, match=r"records.jsonl:2 is no record.*Remove the line or choose another"):
        kept.read()
    assert lines.read_bytes() == before


def test_other_settings_are_refused_by_name_and_nothing_is_changed(tmp_path: Path) -> None:
    store(tmp_path).append(record())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for changes, says in (
        ({"seed": 1}, "seed was 0, is 1"),
        ({"rewards": {"process": "abd"}}, 'rewards.process was "abc", is "abd"'),
        ({"arms": {"greedy": {"reward": "process"}}}, 'arms.greedy.reward was null, is "process"'),
    ):
        with pytest.raises(ConfigurationError, match="holds results of other settings") as e:
            store(tmp_path, **changes)
        assert says in str(e.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_new_arms_are_added_and_old_ones_stay(tmp_path: Path) -> None:
    store(tmp_path)
    store(tmp_path, arms={"nabla": {"reward": "process"}})
    store(tmp_path)
    with pytest.raises(ConfigurationError, match="arms.nabla.reward"):
        store(tmp_path, arms={"nabla": {"reward": "both"}})


@pytest.mark.parametrize("settings", [b"{", b"[]", b"\xff", b"", b'{"arms": []}', b'{"seed":' * 100_000])
def test_settings_that_are_none_are_refused(tmp_path: Path, settings: bytes) -> None:
    (tmp_path / "settings.json").write_bytes(settings)
    with pytest.raises(ConfigurationError, match=r"settings.json holds no settings.*Choose another --out"):
        store(tmp_path)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"Cannot keep results in .*file.*Choose another --out"):
        store(tmp_path / "file" / inside)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="Cannot keep results in"):
        store(tmp_path)


def test_records_that_cannot_be_written_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").mkdir()
    with pytest.raises(ConfigurationError, match="Cannot keep results in"):
        store(tmp_path)


def test_half_of_a_surrogate_pair_is_kept_as_what_text_can_hold(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.append(record(0, text="a\ud800b"))
    assert kept.read() == [record(0, text="a\ufffdb")]


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_record_that_a_full_disk_cuts_off_is_an_error_and_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    kept = store(tmp_path)
    kept.append(record(0))
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[: int(len(data) * share)]))
        with pytest.raises(NablaError, match=r"was not kept in .*records.jsonl .*Make room; the same command goes on"):
            kept.append(record(1))
    kept.append(record(2))
    assert kept.read() == [record(0), record(2)]


def test_a_disk_that_refuses_a_record_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    kept = store(tmp_path)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NablaError, match=r"No space left on device.*Make room"):
        kept.append(record(0))
