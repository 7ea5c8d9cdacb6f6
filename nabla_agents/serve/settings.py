"""ServeSettings: where the server listens, whom it answers, and what a request may cost."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, SecretStr, field_validator, model_validator

from nabla_agents.config import Count, Settings
from nabla_agents.errors import ConfigurationError
from nabla_agents.serve.keys import ApiKey, digest
from nabla_agents.types import Budget

PREFIX: Final = "NABLA_SERVE_"

Seconds = Annotated[float, Field(gt=0)]


class ServeSettings(Settings):
    """Settings of a server, from keywords, or by `read` from a file and the environment.

    Limits refuse a request before anything is computed. `max_rollouts` and its siblings cap the budget of one answer;
    a request that asks for more is refused, one that asks for nothing gets the engine's own, cut to the caps.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    keys: tuple[ApiKey, ...] = ()
    anonymous: bool = False
    """True answers anyone without a key, wherever from: behind a gateway that checks them."""

    max_concurrent: Count = 16
    """Answers that are searched at the same time, as one batch."""
    max_queued: Annotated[int, Field(ge=0)] = 128
    """Answers that may wait, of all keys together; more are refused with 429."""
    max_body_bytes: Count = 1 << 20
    max_connections: Count = 512
    """Open at once; what comes by one more is refused with 503."""
    header_seconds: Seconds = 10.0
    """Time for a request's head to arrive, and `body_seconds` for its body."""
    body_seconds: Seconds = 30.0
    keep_alive_seconds: Count = 15
    write_seconds: Seconds = 20.0
    """Time that a client has to read what was sent, 64 kB at a time; one that does not is dropped."""
    heartbeat_seconds: Seconds = 10.0
    """A stream without news says that it is alive this often."""
    shutdown_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Time that running answers have to end when the server is stopped; what has not, is cancelled."""
    stall_seconds: Seconds = 120.0
    """The longest that one step of the computing thread may take, such as a batch of gradient passes; beyond it,
    /health says that the server hangs."""

    read_seconds: Seconds = 10.0
    """Time to render and tokenize what a request has, and to compile its schemas."""
    max_schema_bytes: Count = 64 * 1024
    """Of all schemas of a request together, those of its tools included; so are `max_schema_nodes`, their values."""
    max_schema_nodes: Count = 10_000
    max_schema_depth: Count = 64

    upstream: Annotated[str, Field(pattern="^https?://")] | None = None
    """The base URL of another server, such as http://127.0.0.1:8080/v1, that answers OpenAI's routes; the answers of
    those who ask for it are refined here.
    """
    upstream_key: SecretStr | None = None
    upstream_seconds: Seconds = 600.0
    """Time that it has for an answer, from the first byte sent to the last received."""

    max_n: Count = 16
    max_tokens: Count = 4096
    """Tokens of one answer at most."""
    max_rollouts: Count = 64
    max_seconds: Seconds = 300.0
    max_gradient_passes: Count | None = None
    max_flops: Annotated[float, Field(gt=0)] | None = None
    max_top_logprobs: Annotated[int, Field(ge=0)] = 20

    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"
    log_prompts: bool = False
    """True writes prompts and answers into the log."""
    tracing: bool = False
    """True reports OpenTelemetry spans to the process's tracer provider."""
    metrics_public: bool = False
    """True shows /metrics without a key."""

    @field_validator("keys")
    @classmethod
    def _ids_differ(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len({key.id for key in keys}) < len(keys) or len({key.sha256 for key in keys}) < len(keys):
            raise ValueError("two keys have the same id or the same hash")
        return keys

    @model_validator(mode="after")
    def _not_open_to_all(self) -> ServeSettings:
        if not (self.keys or self.anonymous or self.on_loopback):
            raise ValueError(
                f"host {self.host} can be reached from other machines, which needs API keys: make one with "
                "`nabla serve-key`, or let a gateway check them and set anonymous"
            )
        return self

    @property
    def on_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def budget_caps(self) -> Budget:
        """The largest budget of one answer."""
        return Budget(
            rollouts=self.max_rollouts,
            gradient_passes=self.max_gradient_passes,
            flops=self.max_flops,
            seconds=self.max_seconds,
        )

    @classmethod
    def read(
        cls, file: Path | None = None, environment: Mapping[str, str] | None = None, **given: Any
    ) -> ServeSettings:
        """Settings from a TOML file, over them those of the environment (`NABLA_SERVE_PORT`, ...; `NABLA_SERVE_API_KEY`
        is one key in clear), over them what is given.

        Raises:
            ConfigurationError: a file that cannot be read, an unknown setting or a value that is not allowed.
        """
        settings = {} if file is None else _of_file(file)
        settings |= _of_environment(os.environ if environment is None else environment, settings.get("keys", ()))
        return cls(**{**settings, **given})


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _of_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigurationError(f"The settings {str(file)!r} cannot be read: {e}; expected a TOML file.") from e


def _of_environment(environment: Mapping[str, str], keys: Any) -> dict[str, Any]:
    """The variables that name a setting; others with the prefix are refused, since a typo would be a silent hole."""
    found: dict[str, Any] = {}
    for name, value in environment.items():
        if not name.startswith(PREFIX):
            continue
        setting = name.removeprefix(PREFIX).lower()
        if setting == "api_key":
            if len(value) < 16:
                raise ConfigurationError(f"{name} has {len(value)} characters; expected a key of at least 16.")
            found["keys"] = (*keys, {"id": "environment", "sha256": digest(value)})
        elif setting not in ServeSettings.model_fields or setting == "keys":
            raise ConfigurationError(f"{name} is no setting; known are {', '.join(ServeSettings.model_fields)}.")
        else:
            found[setting] = value
    return found
