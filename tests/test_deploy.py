"""What is in `deploy/` can be read by whoever reads it, and says what the server understands."""

from __future__ import annotations

import configparser
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from nabla_agents.cli import app
from nabla_agents.serve import ServeSettings

DEPLOY = Path(__file__).parent.parent / "deploy"


def options_of_serve() -> set[str]:
    return set(re.findall(r"--[a-z-]+", CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).stdout))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def environment_is_known(names: set[str]) -> None:
    ours = {name.removeprefix("NABLA_SERVE_").lower() for name in names if name.startswith("NABLA_SERVE_")}
    assert ours <= set(ServeSettings.model_fields) | {"api_key"}


def test_the_settings_file_is_one() -> None:
    settings = ServeSettings.read(DEPLOY / "serve.toml", {})
    assert settings.keys[0].id == "example"
    assert not settings.on_loopback


def test_the_container() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {words[0] for words in instructions} <= {
        *("FROM", "ARG", "ENV", "RUN", "COPY", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"),
        *("ENTRYPOINT", "CMD"),
    }
    for instruction, rest in instructions:
        if instruction == "COPY" and "--from" not in rest:
            assert all((DEPLOY.parent / source).exists() for source in rest.split()[:-1])
    [command] = [rest for instruction, rest in instructions if instruction == "CMD"]
    assert set(re.findall(r"--[a-z-]+", command)) <= options_of_serve()
    environment_is_known(set(re.findall(r"NABLA_SERVE_\w+", text)))
    users = [rest for instruction, rest in instructions if instruction == "USER"]
    assert users == ["nabla"]


def test_the_compose_file() -> None:
    [compose] = documents("compose.yaml")
    nabla = compose["services"]["nabla"]
    assert (DEPLOY / nabla["build"]["context"] / nabla["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert {word for word in nabla["command"] if word.startswith("--")} <= options_of_serve()
    environment_is_known(set(nabla["environment"]))
    assert all(port.startswith("127.0.0.1:") for service in compose["services"].values() for port in service["ports"])
    [prometheus] = documents("prometheus.yml")
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["nabla:8000"]


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker reads the file here where there is one")
def test_docker_reads_the_compose_file() -> None:
    command = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    environment = {**os.environ, "NABLA_SERVE_API_KEY": "x" * 20}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "unknown" in done.stderr or "is not a docker command" in done.stderr:
        pytest.skip("docker has no compose")
    assert done.returncode == 0, done.stderr


def test_the_systemd_unit() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(DEPLOY / "nabla-serve.service", encoding="utf-8")
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    command = shlex.split(unit["Service"]["ExecStart"])
    assert command[1:2] == ["serve"]
    assert {word for word in command if word.startswith("--")} <= options_of_serve()
    assert int(unit["Service"]["TimeoutStopSec"]) > ServeSettings().shutdown_seconds + 15


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kuberay.yaml"])
def test_kubernetes_objects(name: str) -> None:
    for found in documents(name):
        assert {"apiVersion", "kind", "metadata", "spec"} <= set(found)
        for pod in pods(found):
            mounted = {m["name"] for container in pod["containers"] for m in container.get("volumeMounts", ())}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
            for container in pod["containers"]:
                assert {word for word in container.get("args", ()) if word.startswith("--")} <= options_of_serve()
                environment_is_known({variable["name"] for variable in container.get("env", ())})


def pods(found: Any) -> list[dict[str, Any]]:
    """Every pod's specification within."""
    if isinstance(found, dict):
        mine = [found] if "containers" in found else []
        return mine + [pod for value in found.values() for pod in pods(value)]
    return [pod for value in found for pod in pods(value)] if isinstance(found, list) else []


def test_the_probes_are_routes_of_the_server() -> None:
    [deployment, service] = documents("kubernetes.yaml")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    paths = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe", "startupProbe")}
    assert paths == {"/ready", "/health"}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > ServeSettings().shutdown_seconds + 15


def test_the_ray_application_is_there() -> None:
    pytest.importorskip("ray")
    scale = pytest.importorskip("nabla_agents.scale")
    [ray_service] = documents("kuberay.yaml")
    [application] = yaml.safe_load(ray_service["spec"]["serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (module, name) == (scale.__name__, "app")
    known = set(scale.ReplicaSettings.model_fields)
    known |= {"model", "engine", "dtype", "revision", "device_map", "settings", "anonymous"}
    assert set(application["args"]) <= known
    assert list(inspect.signature(scale.app).parameters) == ["arguments"]


def sizing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sizing", DEPLOY / "sizing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sizing"] = module
    spec.loader.exec_module(module)
    return module


def test_sizing_is_computed_from_measured_constants() -> None:
    """By hand: 4 rollouts of 100 tokens at 1000 tokens/s are 0.4 s, 3 / 2 passes of half of 0.2 s are 0.15 s."""
    figures = [
        {"shape": "s", "what": "rollouts, batch of 1", "value": 50.0, "unit": "tokens/s"},
        {"shape": "s", "what": "rollouts, batch of 64", "value": 1000.0, "unit": "tokens/s"},
        {"shape": "s", "what": "rollouts, batch of 64", "value": 7.0, "unit": "GB peak"},
        {"shape": "s", "what": "gradient pass, 200 tokens", "value": 0.2, "unit": "s"},
    ]
    module = sizing()
    [constants] = module.Constants.read(figures)
    assert constants.seconds(rollouts=4, tokens=100, rollouts_per_pass=2.0, batch=64) == pytest.approx(0.55)
    text = module.table([constants], rollouts=[1, 4], tokens=100, rollouts_per_pass=2.0)
    assert "| s | 7.0 | 1 | 10.00 | 2.0 |" in text
    assert "| s | 7.0 | 4 | 1.82 | 8.2 |" in text
