"""What the site has besides the pages in this folder: the cookbook, made from the recipes; the study, from
`benchmarks/results`; and names that no page of the reference lists. All of them get their places in the navigation.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from textwrap import indent
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS, COOKBOOK, STUDY, PACKAGE = ROOT / "docs", ROOT / "cookbook", ROOT / "benchmarks/results", ROOT / "nabla_agents"
MARK = "# Prints:\n"
FURTHER = "reference/further.md"


def on_config(config: Any) -> Any:
    """The navigation, with what is found in the folders."""
    sections = {name: entry for entry in config.nav if isinstance(entry, dict) for name in entry}
    named = str(config.nav)
    guides = sorted(page.name for page in DOCS.glob("*.md") if page.name not in named)
    sections["How-to"]["How-to"] = guides
    sections["Cookbook"]["Cookbook"] = ["cookbook/index.md", *(f"cookbook/{r.stem}.md" for r in _recipes())]
    if _unlisted():
        sections["Reference"]["Reference"].append(FURTHER)
    return config


def on_files(files: Files, config: Any) -> Files:
    made = {f"cookbook/{recipe.stem}.md": _page(recipe) for recipe in _recipes()}
    readme = (COOKBOOK / "README.md").read_text(encoding="utf-8")
    made["cookbook/index.md"] = re.sub(r"\((\d\d_\w+)\.py\)", r"(\1.md)", readme)
    for name in ("textbook.md", "08_chat_ui.html"):
        made[f"cookbook/{name}"] = (COOKBOOK / name).read_text(encoding="utf-8")
    for file in (file for ending in ("md", "svg", "toml") for file in sorted(STUDY.glob(f"*/**/*.{ending}"))):
        made[f"study/{file.relative_to(STUDY).as_posix()}"] = file.read_text(encoding="utf-8")
    study = (STUDY / "README.md").read_text(encoding="utf-8")
    made["study.md"] = re.sub(r"\]\((\w+/)", r"](study/\1", study)
    if _unlisted():
        made[FURTHER] = "# Further names\n\n" + "\n\n".join(f"::: nabla_agents.{name}" for name in _unlisted())
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that are right in the repository become those of the site."""
    return markdown.replace("](../benchmarks/results/README.md", "](study.md").replace(
        "](../benchmarks/results/", "](study/"
    )


def _unlisted() -> list[str]:
    """Public names without a place in the reference. Errors have one page together."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    exported = sorted(alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names)
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")]
    listed = {name.rpartition(".")[2] for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    return [n for n in exported if n not in listed and not n.endswith(("Error", "__"))]


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
{_spaced(about)}
!!! tip "Real model and GPU"

{indent(_spaced(real[:1].upper() + real[1:]), "    ")}

```python title="cookbook/{recipe.name}"
{code}
```

It prints:

```text
{shown}
```
"""


def _spaced(text: str) -> str:
    """With an empty line around indented lines, which makes them a block of code."""
    return re.sub(r"(?m)^(?! |$)(.*)\n(?=    )", r"\1\n\n", re.sub(r"(?m)^(    .*)\n(?! |$)", r"\1\n\n", text))
