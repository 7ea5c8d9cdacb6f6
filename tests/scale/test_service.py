"""What a Ray application refuses before any replica is started, and what it asks of Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nabla_agents import ConfigurationError, Engine
from nabla_agents.scale import ReplicaSettings, app, application
from nabla_agents.serve import ServeSettings

# Ray's own, on import
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def unmade() -> Engine:
    pytest.fail("an engine was made")


def deployment(application: Any) -> Any:
    return application._bound_deployment


def test_replicas_are_as_many_and_as_large_as_was_said() -> None:
    replicas = ReplicaSettings(replicas=2, num_cpus=4, num_gpus=0.5, resources={"engine": 1})
    made = deployment(application(unmade, replicas, ServeSettings(max_concurrent=3, max_queued=5, anonymous=True)))
    assert made.num_replicas == 2
    assert made.max_ongoing_requests == 8
    assert made.ray_actor_options == {"num_cpus": 4, "num_gpus": 0.5, "resources": {"engine": 1}}


def test_more_replicas_than_the_least_mean_autoscaling() -> None:
    made = deployment(
        application(
            unmade, ReplicaSettings(replicas=1, max_replicas=4, target_ongoing=3), ServeSettings(anonymous=True)
        )
    )
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 3)


def test_serve_runs_import_path_reads_text_as_settings(tmp_path: Path) -> None:
    """As `serve run nabla_agents.scale:app name=value ...` calls it."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    file = tmp_path / "serve.toml"
    file.write_text("max_concurrent = 2\nmax_queued = 0\n")
    given = {"model": "tiny", "replicas": "3", "num_cpus": "0.5", "settings": str(file), "anonymous": "true"}
    made = deployment(call_user_app_builder_with_args_if_necessary(app, given))
    assert (made.num_replicas, made.max_ongoing_requests) == (3, 2)
    assert made.ray_actor_options["num_cpus"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"replica": "2"}, "ReplicaSettings: replica = '2'"),
        ({"replicas": "-1"}, "replicas"),
        ({"replicas": "many"}, "replicas"),
        ({"replicas": "0"}, "replicas is 0"),
        ({"replicas": "3", "max_replicas": "2"}, "max_replicas is 2; expected at least replicas=3"),
        ({"engine": "nowhere"}, "expected package.module:function"),
        ({"settings": "/no/such/file.toml"}, "cannot be read"),
        ({"replicas": "2"}, "set keys or NABLA_SERVE_API_KEY, or anonymous"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        app(arguments)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'nabla-agents\[ray\]'"):
        application(unmade)
