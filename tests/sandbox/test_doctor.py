"""The command `nabla doctor`."""

import pytest
from typer.testing import CliRunner

from nabla_agents import SandboxError, sandbox
from nabla_agents.cli import app


@pytest.mark.parametrize(("active", "code"), [(True, 0), (False, 1)])
def test_every_sandbox_is_shown_with_its_layers_or_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, active: bool, code: int
) -> None:
    found = [
        sandbox.Diagnosis("one", active, "", ("seccomp", "landlock")),
        sandbox.Diagnosis("other", False, "it is not built"),
    ]
    monkeypatch.setattr(sandbox, "diagnosis", lambda: found)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == code
    assert ("seccomp, landlock" in done.output) == active
    assert "it is not built" in done.output


def test_a_build_that_cannot_be_done_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise SandboxError("no tools")

    monkeypatch.setattr(sandbox, "build_wasm", fail)
    done = CliRunner().invoke(app, ["doctor", "--build"])
    assert done.exit_code == 2
    assert "no tools" in done.stderr
