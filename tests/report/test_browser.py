"""The page of a trace in a real browser, if there is one: all of it is drawn, at any width, and nothing in it runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nabla_agents import ArithmeticSteps, Engine, Score, Span, Step, Trace, Usage, tiny
from nabla_agents.types import TokenGain

pytestmark = pytest.mark.timeout(300)  # on a machine that has other work
HOSTILE = "</script><img src=x onerror=alert(1)><script>document.title='taken'</script>"


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page at a width, in light or dark; fails if it complained, or asked for anything."""
    complaints, asked = [], []

    def open_page(html: str, *, width: int = 1000, scheme: str = "light") -> Any:
        file = tmp_path / "trace.html"
        file.write_text(html, encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    assert complaints == []
    assert all(url.startswith("file:") and url.endswith("trace.html") for url in asked)


@functools.cache
def searched() -> Trace:
    engine = Engine.tiny(reward=ArithmeticSteps())
    return engine.generate(tiny.problems(28, seed=0, split="test")[-1].question).trace


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_all_of_a_search_is_drawn_at_any_width(opened: Any, width: int, scheme: str) -> None:
    page = opened(searched().to_html(), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg").count() >= 2
    assert all(box["width"] >= 200 for box in (svg.bounding_box() for svg in page.locator("svg").all()))
    assert page.locator("svg text").first.evaluate("e => e.getBoundingClientRect().height") >= 9
    assert page.locator(".nabla-report pre span[title]").count() > 5
    ink, paper = page.locator(".nabla-report").evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    )
    assert abs(luminance(ink) - luminance(paper)) > 0.6
    assert (luminance(paper) < 0.1) == (scheme == "dark")


def test_hostile_text_is_shown_and_does_nothing(opened: Any) -> None:
    score = Score(-1.0, -1.0, False, (Span(0, 5, -1.0, HOSTILE, HOSTILE),), HOSTILE)
    gains = (TokenGain(0, 5, HOSTILE, 3.0),)
    step = Step("refine", "", True, 0, HOSTILE, HOSTILE, 1.0, 1.0, score=score, text=HOSTILE, gains=gains)
    page = opened(Trace([Step("rollout", "", True, text="a"), step, step], question=HOSTILE).to_html(title=HOSTILE))
    assert page.title() == HOSTILE
    assert page.locator("img, script").count() == 0
    assert HOSTILE in page.locator("h2:text('Answer') + pre").inner_text()


def test_a_search_without_steps_has_a_page(opened: Any) -> None:
    page = opened(Trace(question="What is 7 + 6?").to_html())
    assert "Nothing was tried" in page.locator("body").inner_text()


def test_a_long_answer_stays_within_its_box(opened: Any) -> None:
    text = "\n".join(f"line {i}: " + "x" * 400 for i in range(500))
    steps = [Step("rollout", "", i == 0, text=text, usage=Usage(rollouts=i + 1)) for i in range(40)]
    page = opened(Trace(steps).to_html(), width=500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    assert page.locator("h2:text('Answer') + pre").bounding_box()["height"] < 700


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`, from 0 to 1, roughly."""
    red, green, blue = (int(c) for c in colour.removeprefix("rgb(").removesuffix(")").split(","))
    return (0.3 * red + 0.6 * green + 0.1 * blue) / 255
