"""Whole datasets: one completion for every row, on this machine or on a Ray cluster; goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import nabla_agents
from nabla_agents.config import Sampling, Settings
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError, NablaError, PromptError
from nabla_agents.scale.engines import EngineMaker, needs_ray
from nabla_agents.scale.files import ABOUT, COMPLETION, Row, kind_of, read_lines, read_rows, replace_text, write_rows
from nabla_agents.types import Budget


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


Shard = tuple[int, list[Row]]
"""Its number, and its rows: shard n begins with row n * `settings.shard` of the dataset."""

Runner = Callable[[Sequence[Shard], EngineMaker, DatasetSettings], Iterable[Shard]]
"""Completes shards, in any order, each at least once."""


def on_this_machine(shards: Sequence[Shard], make_engine: EngineMaker, settings: DatasetSettings) -> Iterator[Shard]:
    """One shard after another, in this process."""
    if shards:
        yield from map(ShardWorker(make_engine, settings).completed, shards)


def on_ray(shards: Sequence[Shard], make_engine: EngineMaker, settings: DatasetSettings) -> Iterator[Shard]:
    """Each shard on one of `settings.workers` workers with an engine each, as they become free. What a worker or node
    that dies had in hand goes to another one; the rows travel with the work, so that nodes need no common files.

    Raises:
        ConfigurationError: Ray is not installed.
    """
    needs_ray()
    import ray.data

    if not shards:
        return
    items = [{"number": number, "rows": json.dumps(rows, default=str)} for number, rows in shards]
    worker: Any = ShardWorker  # Ray makes one in each process
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(
        worker,
        fn_constructor_kwargs={"make_engine": make_engine, "settings": settings},
        concurrency=min(settings.workers, len(items)),
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
    )
    for item in results.iter_rows():
        yield int(item["number"]), json.loads(item["rows"])


class ShardWorker:
    """One engine, and the shards it is given."""

    def __init__(self, make_engine: EngineMaker, settings: DatasetSettings) -> None:
        self._engine: Engine = make_engine()
        self._settings = settings

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """A shard as Ray Data has it."""
        number, rows = self.completed((int(item["number"]), json.loads(item["rows"])))
        return {"number": number, "rows": json.dumps(rows, default=str)}

    def completed(self, shard: Shard) -> Shard:
        """The shard's rows with their completions, searched as one batch."""
        engine, settings, (number, rows) = self._engine, self._settings, shard
        prompts: dict[int, Any] = {}
        completions: dict[int, Row] = {}
        for i, row in enumerate(rows):
            if ABOUT in row:  # it could not be read
                completions[i] = {COMPLETION: None}
                continue
            try:
                prompts[i] = engine.prompt(_question(row, settings.question))
            except PromptError as e:
                completions[i] = {COMPLETION: None, ABOUT: {"error": f"{type(e).__name__}: {e}"}}
        results = engine.generate_batch(
            list(prompts.values()),
            seeds=[settings.seed + number * settings.shard + i for i in prompts],
            budget=engine.budget if settings.rollouts is None else Budget(rollouts=settings.rollouts),
            sampling=Sampling(max_tokens=settings.max_tokens),
            max_batch=settings.shard,
        )
        for i, result in zip(prompts, results, strict=True):
            completions[i] = {COMPLETION: result.text, ABOUT: result.summary()}
        return number, [{**row, **completions[i]} for i, row in enumerate(rows)]


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

    A row that cannot be read or asked has no completion, and `nabla.error` says why. Finished shards are kept in the
    folder `out` + `.parts` until all are there; the same call goes on from them, whatever ended the one before. The
    suffix of a file says what it is: `.jsonl` or `.parquet`.

    Raises:
        ConfigurationError: files that cannot be read or written, or parts of another job; before anything is loaded.
        NablaError: what the engine raises for other reasons than the row itself, or a full disk; the job can go on
            later.
    """
    settings = settings or DatasetSettings()
    kind_of(out)
    rows = read_rows(source)
    shards = [(n, rows[at : at + settings.shard]) for n, at in enumerate(range(0, len(rows), settings.shard))]
    parts = out.with_name(out.name + ".parts")
    files = {number: parts / f"{number:08}.jsonl" for number, _ in shards}
    _claim(parts, _identity(rows, settings, make_engine), out)
    done = {number for number, file in files.items() if file.exists()}
    yield len(done), len(shards)
    for number, completed in run([shard for shard in shards if shard[0] not in done], make_engine, settings):
        if number in done:
            continue  # a worker that was thought lost: its results are the same
        write_rows(files[number], completed)
        done.add(number)
        yield len(done), len(shards)
    if len(done) < len(shards):
        missing = len(shards) - len(done)
        raise NablaError(f"{missing} of {len(shards)} shards have no result; run the same job again.")
    write_rows(out, (row for number, asked in shards for row in _part(files[number], len(asked))))
    shutil.rmtree(parts)


def _part(file: Path, count: int) -> list[Row]:
    """The rows of a finished shard."""
    rows = read_lines(file)
    if len(rows) != count:
        raise ConfigurationError(
            f"{file} has {len(rows)} rows; expected {count}. Remove it, and run the same job again."
        )
    return rows


def _question(row: Row, field: str) -> str | list[dict[str, Any]]:
    if field not in row:
        raise PromptError(f"The row has no field {field!r}; it has {', '.join(map(repr, row))}.")
    question = row[field]
    if isinstance(question, str) or (isinstance(question, list) and all(isinstance(m, dict) for m in question)):
        return question
    raise PromptError(f"The field {field!r} is {repr(question)[:200]}; expected text, or a list of messages.")


def _identity(rows: Sequence[Row], settings: DatasetSettings, make_engine: EngineMaker) -> str:
    """What makes parts fit together: the rows, what is asked of them, the engine, and the version that did it."""
    work = settings.model_dump(exclude={"workers", "num_cpus", "num_gpus"})
    engine = getattr(make_engine, "__qualname__", repr(make_engine))
    job = json.dumps([nabla_agents.__version__, engine, work, rows], sort_keys=True, default=str)
    return hashlib.sha256(job.encode()).hexdigest()


def _claim(parts: Path, identity: str, out: Path) -> None:
    """Makes the folder of the parts, or makes sure that those in it are of the same job."""
    job = parts / "job"
    if out.exists() and not job.exists():
        raise ConfigurationError(f"{out} is there already; remove it, or choose another file.")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        if not job.exists():
            if any(parts.iterdir()):
                raise ConfigurationError(
                    f"{parts} is needed for parts of the job, and has other files in it; remove them."
                )
            replace_text(job, identity)
        elif job.read_text(encoding="utf-8") != identity:
            raise ConfigurationError(
                f"{parts} has parts of another job: other rows, other settings or another version. Remove the folder, "
                f"or choose another file than {out}."
            )
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"{parts} cannot be read or written ({e}).") from e
