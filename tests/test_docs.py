"""The site: the tutorial's blocks run, every public name has its place in the reference, and no page is forgotten."""

import re
from pathlib import Path
from typing import Any

import pytest

import nabla_agents

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.mark.timeout(300)
def test_the_tutorials_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS / "tutorial.md"
    text = page.read_text()
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        source = "\n" * text[: block.start(1)].count("\n") + block[1]
        exec(compile(source, str(page), "exec"), namespace)
    shown = capsys.readouterr().out
    assert "Answer: 80" in shown
    assert "verified True 5 equations right" in shown


def test_every_public_name_is_in_the_reference() -> None:
    listed = {
        name.rpartition(".")[2]
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    }
    listed |= {name for name in nabla_agents.__all__ if name.endswith("Error")}  # the module `errors` is listed whole
    listed |= {name for name in nabla_agents.__all__ if isinstance(getattr(nabla_agents, name), FORMATS)}
    assert set(nabla_agents.__all__) - listed - {"__version__"} == set()


FORMATS = tuple(type(getattr(nabla_agents, name)) for name in ("QWEN_MATH_PRM", "SKYWORK_REWARD_V2", "VLLM"))


def test_every_page_has_a_place_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert [page for page in pages if page not in navigation] == []
