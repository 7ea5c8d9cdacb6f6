"""Writes the site's pages and settings into `build`, for Zensical: `make docs` runs it.

Besides the pages of this folder: the cookbook, made from the recipes; the study, from `benchmarks/results`; and
names that no page of the reference lists. All of them get their places in the navigation.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS, COOKBOOK, STUDY, PACKAGE = ROOT / "docs", ROOT / "cookbook", ROOT / "benchmarks/results", ROOT / "nabla_agents"
BUILD = ROOT / "build"
MARK = "# Prints:\n"
FURTHER = "reference/further.md"


def main() -> None:
    shutil.rmtree(BUILD / "docs", ignore_errors=True)
    shutil.copytree(DOCS, BUILD / "docs", ignore=shutil.ignore_patterns("site.*", "__pycache__"))
    for name, text in _made().items():
        page = BUILD / "docs" / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    for page in (BUILD / "docs").rglob("*.md"):
        page.write_text(_linked(page.read_text(encoding="utf-8")), encoding="utf-8")
    settings = yaml.safe_dump(_settings(), sort_keys=False, allow_unicode=True)
    (BUILD / "site.yml").write_text(settings, encoding="utf-8")


def _settings() -> dict[str, Any]:
    """Those of `site.yml`, with a navigation that has what is found in the folders."""
    settings = yaml.safe_load((DOCS / "site.yml").read_text(encoding="utf-8"))
    sections = {name: entry for entry in settings["nav"] if isinstance(entry, dict) for name in entry}
    named = str(settings["nav"])
    sections["How-to"]["How-to"] = sorted(page.name for page in DOCS.glob("*.md") if page.name not in named)
    sections["Cookbook"]["Cookbook"] = ["cookbook/index.md", *(f"cookbook/{r.stem}.md" for r in _recipes())]
    if _unlisted():
        sections["Reference"]["Reference"].append(FURTHER)
    return settings


def _made() -> dict[str, str]:
    """The pages, pictures and files that this folder has not, by their paths in the site."""
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
    return made


def _linked(markdown: str) -> str:
    """Links that are right in the repository become those of the site."""
    for there, here in (
        ("../benchmarks/results/README.md", "study.md"),
        ("../benchmarks/results/", "study/"),
        ("../docs/", "../"),
    ):
        markdown = markdown.replace(f"]({there}", f"]({here}")
    return markdown


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


if __name__ == "__main__":
    main()
