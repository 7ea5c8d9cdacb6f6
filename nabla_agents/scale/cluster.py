"""on_ray: shards of a dataset on the workers of a Ray cluster, by Ray Data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from nabla_agents.scale.dataset import DatasetSettings, Row, Shard, completed
from nabla_agents.scale.engines import EngineMaker, needs_ray


class ShardWorker:
    """One engine of the cluster, and the shards it is given."""

    def __init__(self, make_engine: EngineMaker, settings: DatasetSettings) -> None:
        self._engine, self._settings = make_engine(), settings

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(int(row["number"]), int(row["first"]), tuple(json.loads(row["rows"])))
        return {"number": shard.number, "results": json.dumps(completed(self._engine, shard, self._settings))}


def on_ray(
    shards: Sequence[Shard], make_engine: EngineMaker, settings: DatasetSettings
) -> Iterator[tuple[int, list[Row]]]:
    """Each shard on one of `settings.workers` workers with an engine each, as they become free. What a worker or node
    that dies had in hand goes to another one; the rows travel with the work, so that nodes need no common files.

    Raises:
        ConfigurationError: Ray is not installed.
    """
    needs_ray()
    import ray.data

    if not shards:
        return
    items = [{"number": s.number, "first": s.first, "rows": json.dumps(s.rows)} for s in shards]
    worker: Any = ShardWorker  # Ray makes one in each process
    found = ray.data.from_items(items, override_num_blocks=len(items)).map(
        worker,
        fn_constructor_kwargs={"make_engine": make_engine, "settings": settings},
        concurrency=min(settings.workers, len(items)),
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
    )
    for row in found.iter_rows():
        yield int(row["number"]), json.loads(row["results"])
