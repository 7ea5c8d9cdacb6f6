"""The OpenAI-compatible server as a Ray Serve deployment: replicas with one engine each, behind Ray's proxies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from nabla_agents.config import Settings
from nabla_agents.errors import ConfigurationError
from nabla_agents.scale.engines import EngineMaker, engine_maker, needs_ray

if TYPE_CHECKING:
    from ray.serve import Application

    from nabla_agents.serve import ServeSettings


class ReplicaSettings(Settings):
    """How many replicas there are and what each has. With `max_replicas` above `replicas`, as many run between the two
    as keep about `target_ongoing` answers in progress on each.

    `num_cpus` and `num_gpus` are what Ray reserves for a replica; parts of a GPU are shared.
    """

    replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    target_ongoing: Annotated[float, Field(gt=0)] = 8.0
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    resources: Mapping[str, float] = {}
    """Of the cluster's own kinds, to say on which nodes replicas may be."""
    health_check_seconds: Annotated[float, Field(gt=0)] = 10.0


class Replica:
    """One engine behind the server's application, which Ray's ingress adds."""

    async def check_health(self) -> None:
        """Raises once the replica takes no more requests, or hangs."""
        app: Any = getattr(self, "app", None)
        if app is not None and (not app.state.service.ready or app.state.service.stalled):
            raise RuntimeError("the replica shuts down, or hangs")


def application(
    make_engine: EngineMaker, replicas: ReplicaSettings | None = None, settings: ServeSettings | None = None
) -> Application:
    """A Ray Serve application of the server's whole API, for `serve.run`; streams too.

    `make_engine` is called once in each replica. `settings` need keys, or `anonymous`.

    A replica that dies is replaced. Requests that it was answering get HTTP 500, or their stream is broken off, which
    no client can take for an end; nothing is answered twice, and the same request, seed included, may be sent again: it
    gets the same answer. What waits for a replica goes to another.

    Raises:
        ConfigurationError: settings that cannot work; Ray is not installed.
    """
    needs_ray()
    from ray import serve

    from nabla_agents.serve import ServeSettings, create_app

    replicas, settings = replicas or ReplicaSettings(), settings or ServeSettings()
    least, most = replicas.replicas, replicas.max_replicas
    if most is not None and most < least:
        raise ConfigurationError(f"max_replicas is {most}; expected at least replicas={least}.")
    if least == 0 and most is None:
        raise ConfigurationError("replicas is 0; expected at least 1, or max_replicas to scale up to.")
    if not (settings.keys or settings.anonymous):
        raise ConfigurationError(
            "Behind Ray's proxies a server cannot tell its own machine's clients from others: set keys or "
            "NABLA_SERVE_API_KEY, or anonymous to answer anyone."
        )
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": replicas.target_ongoing}
    number: dict[str, Any] = {"num_replicas": least} if most is None else {"autoscaling_config": scaling}
    replica = serve.ingress(lambda: create_app(make_engine(), settings))(Replica)  # called in each replica
    deployment = serve.deployment(
        name="nabla",
        max_ongoing_requests=settings.max_concurrent + settings.max_queued,
        ray_actor_options=replicas.model_dump(include={"num_cpus", "num_gpus", "resources"}),
        health_check_period_s=replicas.health_check_seconds,
        graceful_shutdown_timeout_s=settings.shutdown_seconds,
        **number,
    )
    return deployment(replica).bind()


def app(arguments: Mapping[str, Any]) -> Application:
    """The application for `serve run nabla_agents.scale:app model=tiny replicas=2` and config files.

    Arguments: `model` or `engine` (see `engine_maker`), `dtype`, `revision`, `device_map`; the fields of
    `ReplicaSettings`; `settings`, a TOML file of `ServeSettings`; `anonymous=true` to answer without keys, behind a
    gateway that checks them. `NABLA_SERVE_...` variables of the environment count as with `nabla serve`.

    Raises:
        ConfigurationError: an unknown argument, or a value that is not allowed.
    """
    from nabla_agents.serve import ServeSettings

    rest = dict(arguments)
    file, anonymous = rest.pop("settings", None), rest.pop("anonymous", None)
    loading = {name: rest.pop(name) for name in ("dtype", "revision", "device_map") if name in rest}
    make_engine = engine_maker(rest.pop("model", "tiny"), engine=rest.pop("engine", None), loading=loading)
    served = ServeSettings.read(
        None if file is None else Path(str(file)), **({} if anonymous is None else {"anonymous": anonymous})
    )
    return application(make_engine, ReplicaSettings(**rest), served)
