"""`nabla serve` and `nabla serve-key`: what they refuse before anything is loaded, and a server from start to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from nabla_agents.cli import app
from nabla_agents.serve import ServeSettings, digest

START = "import sys; sys.modules['mcp'] = None; from nabla_agents.cli import main; main()"  # without the extra `mcp`


@pytest.fixture(autouse=True)
def _unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are read in this process."""
    monkeypatch.setattr("nabla_agents.models.language_model.load", lambda *_, **__: pytest.fail("weights were loaded"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "needs API keys: make one with `nabla serve-key`"),
        (["--port", "99999"], "port"),
        (["--strategy", "nobody"], "Unknown strategy 'nobody'"),
        (["--reward", "nobody"], "Unknown reward 'nobody'"),
        (["--offer", "nobody"], "Unknown reward 'nobody'"),
        (["--config", "missing.toml"], "'missing.toml' cannot be read"),
        (["--upstream", "127.0.0.1:8080"], "upstream = '127.0.0.1:8080'"),
        (["--upstream", "http://h/v1", "--upstream-key", "NO_SUCH"], "'NO_SUCH' is no environment variable"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_key_is_shown_once_and_its_entry_is_one_of_the_servers(tmp_path: Path) -> None:
    options = ["--days", "9", "--requests-per-minute", "60", "--concurrent", "2", "--rollouts", "8"]
    done = CliRunner().invoke(app, ["serve-key", "alice", *options])
    key = done.stderr.split()[-1]
    assert len(key) > 40
    assert key not in done.stdout
    file = tmp_path / "serve.toml"
    file.write_text(done.stdout + CliRunner().invoke(app, ["serve-key", "bob"]).stdout, encoding="utf-8")
    alice, bob = ServeSettings.read(file, {}).keys
    assert (alice.id, bob.id) == ("alice", "bob")
    assert alice.sha256 == digest(key)
    assert (alice.requests_per_minute, alice.concurrent, alice.rollouts) == (60, 2, 8)
    assert not alice.expired()
    assert bob.expires is None
    assert CliRunner().invoke(app, ["serve-key", "no spaces"]).exit_code == 2


@pytest.mark.enable_socket
def test_a_server_from_start_to_end(tmp_path: Path) -> None:
    """Its log says where it listens; it answers; SIGTERM ends it in order."""
    command = [sys.executable, "-c", START, "serve", "--port", "0", "--offer", "arithmetic", "--rollouts", "1"]
    environment = {**os.environ, "NABLA_SERVE_SHUTDOWN_SECONDS": "5"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    assert process.stderr is not None
    try:
        lines: list[dict[str, Any]] = []
        while not lines or lines[-1]["event"] != "listening":
            lines.append(json.loads(process.stderr.readline()))
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Ann has 3 pears. She buys 4. How many are there?"}],
            "nabla": {"reward": "arithmetic", "strategy": "greedy"},
        }
        url = f"http://127.0.0.1:{lines[-1]['port']}/v1/chat/completions"
        answer = httpx.post(url, json=body, timeout=60).json()
        assert answer["choices"][0]["nabla"]["usage"]["rollouts"] == 1
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM)
    said = [json.loads(line) for line in rest.splitlines()]
    assert [line["event"] for line in said if line["event"] in ("request", "draining", "stopped")] == [
        "request",
        "draining",
        "stopped",
    ]


@pytest.mark.parametrize(("package", "extra"), [("fastapi", "serve"), ("uvicorn", "serve"), ("httpx", "remote")])
def test_without_its_packages_it_says_what_to_install(package: str, extra: str) -> None:
    names = {"serve": "nabla_agents.serve import create_app", "remote": "nabla_agents.remote import RemoteEngine"}
    tried = f"try:\n from {names[extra]}\nexcept Exception as e: print(type(e).__name__, e)"
    code = f"import sys; sys.modules[{package!r}] = None\n{tried}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ConfigurationError")
    assert f"pip install 'nabla-agents[{extra}]'" in done.stdout
