"""The page docs/serving.md: its Python blocks run, one after the other, against a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nabla_agents import ArithmeticSteps, Engine
from nabla_agents.adapters import shared_engines
from nabla_agents.serve import ServeSettings, create_app
from tests.pages import run_page
from tests.serve.serving import running

PAGE = Path(__file__).parent.parent.parent / "docs" / "serving.md"


@pytest.mark.enable_socket
def test_what_the_page_shows_runs(tiny_engine: Engine) -> None:
    settings = ServeSettings(port=0)
    app = create_app(tiny_engine, settings, rewards={"arithmetic": ArithmeticSteps()})
    with running(app, settings) as server:
        namespace = run_page(PAGE, port=server.port)
        for key in [key for key in shared_engines._loaded if "base_url" in dict(key)]:
            engine: Any = shared_engines._loaded.pop(key)
            engine.close()
        namespace["engine"].close()
        namespace["client"].close()
        namespace["app"].state.service.close()


def test_the_page_names_every_setting_and_error_as_they_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for row in re.findall(r"^\| (`[a-z_`, ]+`) \| [^|]*\| ", text, re.MULTILINE):
        names = set(re.findall(r"`([a-z_]+)`", row))
        if not names & {"strategy", "budget", "reward", "draft"}:
            assert names <= set(ServeSettings.model_fields)
    source = "".join(
        file.read_text(encoding="utf-8") for file in (PAGE.parent.parent / "nabla_agents/serve").glob("*.py")
    )
    codes = set(re.findall(r'code(?:: str = |=)"([a-z_]+)"', source)) | {"invalid_type"}
    assert {code for code in codes if f"`{code}`" not in text} == set()
