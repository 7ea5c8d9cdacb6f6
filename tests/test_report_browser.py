"""The page of a trace in a real browser, if there is one: it is drawn, and nothing in it is blocked or missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nabla_agents import Engine
from nabla_agents.report import page

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")]


def test_the_page_is_drawn_without_an_error(tmp_path: Path) -> None:
    result = Engine.tiny().generate("Mia has 89 stamps. The number grows 9 times. She loses 22. How many now?", seed=1)
    file = tmp_path / "trace.html"
    file.write_text(page(result.trace, title="Trace"), encoding="utf-8")
    picture = tmp_path / "trace.png"
    command = (BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0")
    size = ("--window-size=900,1600", f"--screenshot={picture}")
    done = subprocess.run([*command, *size, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr  # what the page itself complains about
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000  # a blank page of this size takes some 10,000 bytes
