"""On a Ray cluster of several nodes, each a set of processes here: answers, streams, and what happens when a replica, a
worker or a whole node dies in the middle of its work.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from nabla_agents import Budget, Engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

PORT = 18_431
QUESTION = "Tom has 12 apples. He then has 3 times as many. He gives away 17. How many apples are left?"
STORE = 80 << 20  # bytes, the least that Ray takes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without engines, and two nodes with room for one each."""
    patient = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300"}
    os.environ.update(patient, RAY_worker_niceness="0", RAY_worker_register_timeout_seconds="600")
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, resources={"engine": 1}, object_store_memory=STORE)
        ray.init(address=made.address, log_to_driver=False, configure_logging=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def local() -> Engine:
    return Engine.tiny()


@pytest.fixture(scope="module")
def service(cluster: Any) -> Iterator[str]:
    """The address of two replicas, one on each node with room for an engine."""
    import ray.serve._private.api as private
    from ray import serve

    from nabla_agents.scale import ReplicaSettings, application, engine_maker
    from nabla_agents.serve import ServeSettings

    private.HTTP_PROXY_TIMEOUT = 300  # a machine with other work starts it slowly
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "location": "HeadOnly"})
    replicas = ReplicaSettings(replicas=2, num_cpus=1, resources={"engine": 1}, health_check_seconds=1)
    serve.run(application(engine_maker(), replicas, ServeSettings(anonymous=True)), route_prefix="/")
    yield f"http://127.0.0.1:{PORT}/v1/chat/completions"
    serve.shutdown()


def body(seed: int, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "seed": seed, "messages": [{"role": "user", "content": QUESTION}], **more}


@dataclass(frozen=True)
class Actor:
    """A process of the cluster that is alive."""

    pid: int
    node: str


def actors(*kinds: str) -> list[Actor]:
    """Those whose class has one of these names in its own."""
    import ray._private.state

    alive = [a for a in ray._private.state.actors().values() if a["State"] == "ALIVE"]
    return [Actor(a["Pid"], a["Address"]["NodeID"]) for a in alive if any(k in a["ActorClassName"] for k in kinds)]


def replicas() -> list[Actor]:
    return actors("ServeReplica")


def wait_for(condition: Callable[[], bool], seconds: float = 400.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.5)


def asked_during(service: str, seeds: range, break_it: Callable[[], None]) -> dict[int, list[Any]]:
    """What each seed's client saw while something broke, one entry per attempt; it asks again after an error, as the
    `openai` client does.
    """
    seen: dict[int, list[Any]] = {seed: [] for seed in seeds}

    def ask(seed: int) -> None:
        while not seen[seed] or not isinstance(seen[seed][-1], str):
            try:
                response = httpx.post(service, json=body(seed), timeout=300)
                ok = response.status_code == 200
                seen[seed].append(response.json()["choices"][0]["message"]["content"] if ok else response.status_code)
            except httpx.TransportError as e:
                seen[seed].append(e)
            time.sleep(0 if isinstance(seen[seed][-1], str) else 0.5)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    wait_for(lambda: any(seen.values()))  # the load runs
    break_it()
    for thread in threads:
        thread.join()
    return seen


def assert_each_is_answered_once(seen: dict[int, list[Any]], local: Engine) -> None:
    """Every answer is the one of its seed, whichever replica gave it, and after nothing but clear errors."""
    for seed, attempts in seen.items():
        *errors, answer = attempts
        assert answer == local.generate(QUESTION, seed=seed).text
        assert all(isinstance(e, httpx.TransportError) or e >= 500 for e in errors), attempts


def test_replicas_answer_as_a_local_engine_and_stream(service: str, local: Engine) -> None:
    answer = httpx.post(service, json=body(1), timeout=300).json()
    assert answer["choices"][0]["message"]["content"] == local.generate(QUESTION, seed=1).text
    with httpx.stream("POST", service, json=body(1, stream=True), timeout=300) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [c["delta"].get("content") or "" for e in events[:-1] for c in json.loads(e)["choices"]]
    assert "".join(deltas) == answer["choices"][0]["message"]["content"]
    assert httpx.get(service.replace("v1/chat/completions", "health"), timeout=60).status_code == 200
    refused = httpx.post(service, json=body(1, model="other"), timeout=60)
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"


def test_a_replica_that_is_killed_loses_no_request(service: str, local: Engine) -> None:
    wait_for(lambda: len(replicas()) == 2)
    killed = replicas()[0]
    seen = asked_during(service, range(24), lambda: os.kill(killed.pid, signal.SIGKILL))
    assert_each_is_answered_once(seen, local)
    wait_for(lambda: len(replicas()) == 2)
    assert killed.pid not in {actor.pid for actor in replicas()}


def test_a_stream_that_is_broken_off_does_not_look_like_its_end(service: str) -> None:
    """Both replicas are killed after the first of many answers has begun: the client sees a lost connection."""
    wait_for(lambda: len(replicas()) == 2)
    events: list[str] = []

    def read() -> None:
        long = body(3, stream=True, n=16, nabla={"budget": {"rollouts": 64}})
        with httpx.stream("POST", service, json=long, timeout=300) as response:
            for line in response.iter_lines():
                events.append(line)
                if len(events) == 1:
                    for actor in replicas():
                        os.kill(actor.pid, signal.SIGKILL)

    with pytest.raises(httpx.TransportError):
        read()
    assert events
    assert "data: [DONE]" not in events
    wait_for(lambda: len(replicas()) == 2)


def test_a_node_that_is_killed_loses_no_request(cluster: Any, service: str, local: Engine) -> None:
    wait_for(lambda: len(replicas()) == 2)
    node = next(n for n in cluster.worker_nodes if n.node_id in {actor.node for actor in replicas()})
    seen = asked_during(service, range(24), lambda: cluster.remove_node(node, allow_graceful=False))
    assert_each_is_answered_once(seen, local)
    cluster.add_node(num_cpus=1, resources={"engine": 1}, object_store_memory=STORE)
    wait_for(lambda: len(replicas()) == 2)


def test_a_dataset_has_each_completion_once_though_a_worker_is_killed(
    cluster: Any, tmp_path: Path, local: Engine
) -> None:
    from nabla_agents.scale import DatasetSettings, complete_dataset, engine_maker, on_ray

    questions = [QUESTION.replace("12", str(12 + i)) for i in range(24)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
    settings = DatasetSettings(shard=2, rollouts=2, workers=2, num_cpus=0.5)
    job = complete_dataset(tmp_path / "q.jsonl", tmp_path / "out.jsonl", engine_maker(), settings, run=on_ray)
    assert next(job) == (0, 12)
    assert next(job)[0] == 1
    [one, *_] = actors("MapWorker", "ShardWorker")
    os.kill(one.pid, signal.SIGKILL)
    assert list(job)[-1] == (12, 12)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().split("\n") if line]
    assert [row["question"] for row in found] == questions
    expected = [local.generate(q, seed=i, budget=Budget(rollouts=2)).text for i, q in enumerate(questions)]
    assert [row["completion"] for row in found] == expected
