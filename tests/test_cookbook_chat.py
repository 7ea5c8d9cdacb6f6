"""The chat page of the cookbook in a real browser: it shows progress, then the verified answer, and runs no text."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

RECIPE = Path(__file__).resolve().parent.parent / "cookbook" / "08_chat_ui.py"
pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(300)]  # of this machine alone


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return runpy.run_path(str(RECIPE), run_name="recipe")


@pytest.fixture
def address(recipe: dict[str, Any]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), recipe["Handler"])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.parametrize("width", [360, 1200])
def test_an_answer_is_drafted_changed_and_verified(browser: Any, address: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.get_by_role("button").click()  # the question is there already
    assert page.get_by_role("button").is_disabled()
    page.locator(".note.verified").wait_for(timeout=60_000)
    assert "Answer: 80" in page.locator(".model").inner_text()
    assert page.locator(".note").inner_text() == "5 equations right"
    assert page.locator("progress").count() == 0
    assert page.get_by_role("button").is_enabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []


def test_what_was_typed_is_text(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.get_by_role("textbox").fill("<img src=x onerror=document.title='taken'> 3 + 4?")
    page.get_by_role("textbox").press("Enter")
    page.locator("progress").wait_for(state="detached", timeout=60_000)
    assert page.locator("img").count() == 0
    assert page.title() == "Chat with ∇"
    assert "<img" in page.locator(".user").inner_text()


def test_a_question_that_cannot_be_asked_is_explained(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.get_by_role("textbox").fill("why? " * 6000)
    page.get_by_role("button").click()
    page.locator("progress").wait_for(state="detached", timeout=60_000)
    assert "context" in page.locator(".note").inner_text()
