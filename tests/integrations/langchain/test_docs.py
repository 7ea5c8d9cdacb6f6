"""The page docs/langchain.md: its Python blocks run, one after the other."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "langchain.md"


@pytest.mark.timeout(600)
def test_the_pages_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    text = PAGE.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for block in blocks:
        source = "\n" * text[: block.start(1)].count("\n") + block[1]
        exec(compile(source, str(PAGE), "exec"), namespace)
    assert len(blocks) >= 8
    assert "'name': 'add'" in capsys.readouterr().out, "the choice of a tool is enforced"
