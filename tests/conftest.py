"""Shared settings: no network at all, and the annotations of nabla_agents (tensor shapes too) checked at run time."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NABLA_SANDBOX_BUILD"] = "0"  # no test builds an interpreter in passing
os.environ["OMP_NUM_THREADS"] = "1"  # for models this small, more threads mostly wait for each other

import jaxtyping
import pytest
from beartype import beartype
from beartype.roar import BeartypeDecorHintException


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked; as it is where one of them cannot be, such as `Self`."""
    try:
        return beartype(function)
    except BeartypeDecorHintException:
        return function


checker: Any = ModuleType("annotation_checker")  # the hook takes its checker by name
checker.checked = checked
sys.modules[checker.__name__] = checker
jaxtyping.install_import_hook("nabla_agents", "annotation_checker.checked")


@pytest.fixture(autouse=True)
def _annotations_checked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Off for a test marked `untyped`: one that passes a wrong type on purpose, and expects our own error for it."""
    jaxtyping.config.update("jaxtyping_disable", request.node.get_closest_marker("untyped") is not None)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT interrupts, also where the tests run in the background and have inherited that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those between attempts to reach a server, which are not waited for."""
    from nabla_agents.backends import http

    taken: list[float] = []
    pause = http.pause

    def none(attempt: int, retry_after: float) -> float:
        taken.append(pause(attempt, retry_after))
        return 0.0

    monkeypatch.setattr(http, "pause", none)
    return taken


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, driven by Playwright; without one, the test is skipped.

    Its event loop stays open as long as it does, so a module that asks for it can have no async tests.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
