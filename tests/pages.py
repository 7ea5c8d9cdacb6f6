"""The Python blocks of a page: run in order in one namespace, and what each prints held against the page."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
_FENCED = re.compile(r"^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_difference = runpy.run_path(str(ROOT / "cookbook" / "__main__.py"))["difference"]


def run_page(page: Path, capsys: pytest.CaptureFixture[str], *, port: int = 8000) -> dict[str, Any]:
    """What the page's names mean at its end.

    A `text` block is what the Python blocks before it print, `...` in it any text; what prints has one. `port` takes
    the place of 8000.

    Raises:
        AssertionError: a block prints something else; or what its page does not show.
    """
    text, namespace, printed = page.read_text(encoding="utf-8"), {"__name__": "page"}, ""
    for block in _FENCED.finditer(text):
        line, source = text[: block.start(2)].count("\n"), block[2].replace(":8000", f":{port}")
        if block[1] == "python":
            exec(compile("\n" * line + source, str(page), "exec"), namespace)
            printed += capsys.readouterr().out
        else:
            assert not (problem := _difference(source, printed)), f"{page.name}, line {line}: {problem}"
            printed = ""
    assert not printed, f"{page.name} does not show what its last blocks print:\n{printed}"
    return namespace
