"""The site: the tutorial's blocks run, every public name has its place in the reference, and no page is forgotten."""

import re
from pathlib import Path
from typing import Any

import pytest

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


def test_every_link_to_a_page_of_the_repository_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "cookbook" / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            made = DOCS / "cookbook" in (page.parent / target).parents  # by the site's hook, from the recipes
            source = ROOT / "cookbook" / Path(target).with_suffix(".py").name if made else page.parent / target
            assert source.exists() or target.endswith("cookbook/index.md"), f"{page.name}: {target}"
