"""Pages of the cookbook, made from the recipes: what a recipe is about, its code, and what it prints."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

COOKBOOK = Path(__file__).resolve().parent.parent / "cookbook"
MARK = "# Prints:\n"


def on_config(config: Any) -> Any:
    """The recipes take their places in the navigation."""
    pages = ["cookbook/index.md", *(f"cookbook/{recipe.stem}.md" for recipe in _recipes())]
    for entry in config.nav:
        if isinstance(entry, dict) and "Cookbook" in entry:
            entry["Cookbook"] = pages
    return config


def on_files(files: Files, config: Any) -> Files:
    made = {f"{recipe.stem}.md": _page(recipe) for recipe in _recipes()}
    made["index.md"] = re.sub(r"\((\d\d_\w+)\.py\)", r"(\1.md)", (COOKBOOK / "README.md").read_text(encoding="utf-8"))
    for name in ("textbook.md", "08_chat_ui.html"):
        made[name] = (COOKBOOK / name).read_text(encoding="utf-8")
    for name, content in made.items():
        files.append(File.generated(config, f"cookbook/{name}", content=content))
    return files


def _recipes() -> list[Path]:
    return sorted(COOKBOOK.glob("[0-9][0-9]_*.py"))


def _page(recipe: Path) -> str:
    source, _, prints = recipe.read_text(encoding="utf-8").partition(MARK)
    module = ast.parse(source)
    title, _, about = (ast.get_docstring(module) or "").partition("\n")
    name, _, rest = title.partition(":")
    about, _, real = about.partition("Real model and GPU: ")
    code = "\n".join(source.splitlines()[module.body[0].end_lineno :]).strip()
    shown = "\n".join(line.removeprefix("#").removeprefix(" ") for line in prints.splitlines())
    return f"""# {name.rstrip(".")}

{rest.strip().capitalize() if rest else ""}
{about}
!!! tip "Real model and GPU"

{_indented(real[:1].upper() + real[1:])}

```python title="cookbook/{recipe.name}"
{code}
```

It prints:

```text
{shown}
```
"""


def _indented(text: str) -> str:
    """Inside of the box; lines of code become a block of code."""
    lines = [f"    {line}" if line else "" for line in text.splitlines()]
    out: list[str] = []
    for line in lines:
        if line.startswith("        ") and out and not out[-1].startswith("        "):
            out.append("")  # an indented block needs an empty line before it
        out.append(line)
    return "\n".join(out)
