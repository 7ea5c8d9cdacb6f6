"""`import nabla_agents` is cheap, and names are loaded when they are first used."""

import ast
import subprocess
import sys
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nabla_agents

HEAVY = {"torch", "transformers", "langchain_core", "llama_index", "pydantic", "rich", "typer"}


def loaded_by(code: str) -> set[str]:
    """Names of the modules that `code` adds to those of a bare interpreter."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_imports_no_framework_and_few_modules() -> None:
    modules = loaded_by("import nabla_agents")
    assert not HEAVY & {name.partition(".")[0] for name in modules}
    assert len(modules) <= 64, sorted(modules)


def test_an_exported_name_resolves_when_used() -> None:
    modules = loaded_by("import nabla_agents; engine = nabla_agents.Engine; assert engine.__name__ == 'Engine'")
    assert "torch" in modules
    assert not {"langchain_core", "llama_index"} & {name.partition(".")[0] for name in modules}


def test_an_engine_needs_neither_the_sandbox_nor_any_reward_of_ours() -> None:
    modules = loaded_by("import nabla_agents.engine")
    assert not [m for m in modules if m.startswith(("nabla_agents.sandbox", "nabla_agents.rewards.tools"))]
    assert not [m for m in modules if m.startswith("nabla_agents.rewards.learned")]


class Imports(ast.NodeVisitor):
    """The modules that a module imports as it is loaded, and those that only its types need."""

    def __init__(self, modules: Collection[str]) -> None:
        self.modules, self.found = modules, set[str]()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """What a function imports is imported later."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            self.found |= {submodule if submodule in self.modules else str(node.module)} & set(self.modules)


def test_no_modules_import_each_other_in_a_circle() -> None:
    root = Path(nabla_agents.__file__).parent
    paths = {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in root.rglob("*.py")
    }
    del paths["nabla_agents"]  # it exports lazily
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        imports = Imports(paths)
        imports.visit(ast.parse(path.read_text(encoding="utf-8")))
        graph[name] = imports.found - {name}
    assert len(list(TopologicalSorter(graph).static_order())) == len(paths) > 100


def test_every_exported_name_resolves_and_is_listed() -> None:
    import nabla_agents

    assert set(nabla_agents.__all__) <= set(dir(nabla_agents))
    for name in nabla_agents.__all__:
        assert getattr(nabla_agents, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    import nabla_agents

    with pytest.raises(AttributeError, match="no_such_name"):
        nabla_agents.no_such_name  # noqa: B018


@pytest.mark.parametrize("adapter", ["langchain_nabla", "llama_index.llms.nabla"])
def test_an_adapter_imports_without_torch(adapter: str) -> None:
    """Importing an adapter must not load weights or torch, and neither adapter needs the other's framework."""
    modules = {name.partition(".")[0] for name in loaded_by(f"import {adapter}")}
    other = "llama_index" if adapter == "langchain_nabla" else "langchain_core"
    assert not {"torch", "transformers", other} & modules
