"""The pages: their examples print what stands below them, and their links lead somewhere."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.pages import ROOT, run_page

DOCS = ROOT / "docs"


PAGES = [
    "README.md",
    "docs/parts.md",
    "docs/tutorial.md",
    "docs/langchain.md",
    "docs/llamaindex.md",
    "integrations/langchain-nabla/README.md",
    "integrations/llama-index-llms-nabla/README.md",
]


@pytest.fixture
def _loop() -> Iterator[None]:
    """An event loop for LlamaIndex, which would make one and leave it open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("_loop")
@pytest.mark.filterwarnings("ignore:The function `loads` is in beta", "ignore::DeprecationWarning:llama_index")
@pytest.mark.parametrize("page", PAGES)
def test_a_pages_examples_print_what_it_shows(page: str) -> None:
    assert run_page(ROOT / page)


@pytest.mark.parametrize(
    ("shown", "problem"),
    [
        ("```python\nprint(1)\n```\nso:\n```text\n1\n```\n", ""),
        ("```python\nprint(1)\n```\n```text\n2\n```\n", "line 4"),
        ("```python\nprint(1)\n```\n", "does not show"),
        ("```python\nx = 1\n```\n```text\n1\n```\n", "line 4"),
    ],
)
def test_a_page_that_shows_something_else_is_refused(shown: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(shown)
    with pytest.raises(AssertionError, match=problem) if problem else nullcontext():
        run_page(tmp_path / "page.md")


def test_every_link_to_a_page_of_the_repository_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "cookbook" / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            made = DOCS / "cookbook" in (page.parent / target).parents  # by docs/site.py, from the recipes
            source = ROOT / "cookbook" / Path(target).with_suffix(".py").name if made else page.parent / target
            assert source.exists() or target.endswith("cookbook/index.md"), f"{page.name}: {target}"
