"""Whole datasets: one completion for every row, on this machine or on a Ray cluster; goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

import nabla_agents
from nabla_agents.config import Sampling, Settings
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError, NablaError, PromptError
from nabla_agents.scale.engines import EngineMaker
from nabla_agents.scale.files import kind_of, read_lines, read_rows, replace_text, write_rows
from nabla_agents.types import Budget

COMPLETION, ABOUT = "completion", "nabla"

Row = dict[str, Any]


class DatasetSettings(Settings):
    """What is done with each row.

    `question` names the field with the question, a text or a list of messages. Row i is searched with seed `seed` + i,
    so its completion does not depend on what else is in the file. `shard` rows are one piece of work, run as one batch:
    what is lost with a worker, and the grain at which a job goes on.
    """

    question: Annotated[str, Field(min_length=1)] = "question"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    shard: Annotated[int, Field(ge=1)] = 32
    rollouts: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    workers: Annotated[int, Field(ge=1)] = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Shard:
    """Rows `first`, `first` + 1, ... of the dataset."""

    number: int
    first: int
    rows: tuple[Row, ...]


class Runner(Protocol):
    """Completes shards, in any order, each at least once."""

    def __call__(
        self, shards: Sequence[Shard], make_engine: EngineMaker, settings: DatasetSettings
    ) -> Iterable[tuple[int, list[Row]]]: ...


def on_this_machine(
    shards: Sequence[Shard], make_engine: EngineMaker, settings: DatasetSettings
) -> Iterator[tuple[int, list[Row]]]:
    """One shard after another, in this process."""
    engine = make_engine() if shards else None
    for shard in shards:
        assert engine is not None
        yield shard.number, completed(engine, shard, settings)


def complete_dataset(
    source: Path,
    out: Path,
    make_engine: EngineMaker,
    settings: DatasetSettings | None = None,
    *,
    run: Runner = on_this_machine,
) -> Iterator[tuple[int, int]]:
    """Writes `out` with every row of `source`, in its order, and two more fields: `completion`, and `nabla` with the
    search in a few numbers. Yields (shards done, shards in all) after each; nothing happens until it is iterated.

    A row that cannot be asked has no completion, and `nabla.error` says why. Finished shards are kept in the folder
    `out` + `.parts` until all are there; the same call goes on from them, whatever ended the one before. The suffix of
    a file says what it is: `.jsonl` or `.parquet`.

    Raises:
        ConfigurationError: files that cannot be read or written, or parts of another job; before anything is loaded.
        NablaError: what the engine raises for other reasons than the row itself; the job can go on later.
    """
    settings = settings or DatasetSettings()
    kind_of(out)
    rows = read_rows(source)
    shards = _shards(rows, settings)
    parts = out.with_name(out.name + ".parts")
    _claim(parts, _identity(rows, settings, make_engine), out)
    done = {s.number for s in shards if (parts / _part(s.number)).exists()}
    yield len(done), len(shards)
    for number, results in run([s for s in shards if s.number not in done], make_engine, settings):
        if number in done:
            continue  # a worker that was thought lost: its results are the same
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in results)
        replace_text(parts / _part(number), text)
        done.add(number)
        yield len(done), len(shards)
    missing = [s.number for s in shards if s.number not in done]
    if missing:
        raise NablaError(f"{len(missing)} of {len(shards)} shards have no result; run the same job again.")
    write_rows(out, (row for s in shards for row in read_lines(parts / _part(s.number))))
    shutil.rmtree(parts)


def completed(engine: Engine, shard: Shard, settings: DatasetSettings) -> list[Row]:
    """The shard's rows with their completions, searched as one batch."""
    asked: dict[int, Any] = {}
    results: dict[int, Row] = {}
    for i, row in enumerate(shard.rows):
        try:
            asked[i] = engine.prompt(_question(row, settings.question))
        except PromptError as e:
            results[i] = {**row, COMPLETION: None, ABOUT: {"error": f"{type(e).__name__}: {e}"}}
    budget = engine.budget if settings.rollouts is None else Budget(rollouts=settings.rollouts)
    found = engine.generate_batch(
        list(asked.values()),
        seeds=[settings.seed + shard.first + i for i in asked],
        budget=budget,
        sampling=Sampling(max_tokens=settings.max_tokens),
        max_batch=settings.shard,
    )
    for i, result in zip(asked, found, strict=True):
        results[i] = {**shard.rows[i], COMPLETION: result.text, ABOUT: result.summary()}
    return [results[i] for i in range(len(shard.rows))]


def _question(row: Row, field: str) -> str | list[dict[str, Any]]:
    if field not in row:
        raise PromptError(f"The row has no field {field!r}; it has {', '.join(map(repr, row))}.")
    found = row[field]
    if isinstance(found, str) or (isinstance(found, list) and all(isinstance(m, dict) for m in found)):
        return found
    raise PromptError(f"The field {field!r} is {found!r}; expected text, or a list of messages.")


def _shards(rows: Sequence[Row], settings: DatasetSettings) -> list[Shard]:
    size = settings.shard
    return [Shard(at // size, at, tuple(rows[at : at + size])) for at in range(0, len(rows), size)]


def _part(number: int) -> str:
    return f"{number:08}.jsonl"


def _identity(rows: Sequence[Row], settings: DatasetSettings, make_engine: EngineMaker) -> str:
    """What makes parts fit together: the rows, what is asked of them, the engine, and the version that did it."""
    what = settings.model_dump(exclude={"workers", "num_cpus", "num_gpus"})
    engine = getattr(make_engine, "__qualname__", repr(make_engine))
    said = json.dumps([nabla_agents.__version__, engine, what, rows], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def _claim(parts: Path, identity: str, out: Path) -> None:
    """Makes the folder of the parts, or makes sure that those in it are of the same job."""
    known = parts / "job"
    if out.exists() and not known.exists():
        raise ConfigurationError(f"{out} is there already; remove it, or choose another file.")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        if not known.exists() and any(parts.iterdir()):
            raise ConfigurationError(f"{parts} is needed for parts of the job, and has other files in it; remove them.")
        if not known.exists():
            replace_text(known, identity)
        elif known.read_text(encoding="utf-8") != identity:
            raise ConfigurationError(
                f"{parts} has parts of another job: other rows, other settings or another version. Remove the folder, "
                f"or choose another file than {out}."
            )
    except OSError as e:
        raise ConfigurationError(f"{parts} cannot be written ({e}).") from e
