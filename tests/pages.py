"""The Python blocks of a page: run in order in one namespace, and what each prints held against the page.

`python tests/pages.py README.md` does so in an environment of your own.
"""

import re
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_FENCED = re.compile(r"^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_difference = runpy.run_path(str(ROOT / "cookbook" / "__main__.py"))["difference"]


def run_page(page: Path, *, port: int = 8000) -> dict[str, Any]:
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
            with redirect_stdout(StringIO()) as out:
                exec(compile("\n" * line + source, str(page), "exec"), namespace)
            printed += out.getvalue()
        else:
            assert not (problem := _difference(source, printed)), f"{page.name}, line {line}: {problem}"
            printed = ""
    assert not printed, f"{page.name} does not show what its last blocks print:\n{printed}"
    return namespace


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run_page(Path(name))
        print(f"{name} prints what it shows")
