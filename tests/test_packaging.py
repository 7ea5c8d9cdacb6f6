"""What is shipped, and that README, Makefile, CI and pre-commit name the same commands."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import distributions, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

import nabla_agents

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = {"langchain-nabla": "langchain_nabla", "llama-index-llms-nabla": "llama_index.llms.nabla"}
FOLDERS = [ROOT, *(ROOT / "integrations" / name for name in ADAPTERS)]
NAMESPACES = [
    "",
    "/langchain-nabla",
    *(f"/llama-index-llms-nabla{under}" for under in ("", "/llama_index", "/llama_index/llms")),
]


def built(folder: Path, into: Path, form: str = "standard") -> Path:
    """A wheel of this checkout; pure Python, so nothing is compiled or fetched."""
    (wheel,) = WheelBuilder(str(folder)).build(directory=str(into), versions=[form])
    return Path(wheel)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("dist"))


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("folder", NAMESPACES)
def test_a_folder_above_an_integration_is_no_package(folder: str) -> None:
    """An `__init__.py` in one of these would hide llama_index.core from everybody on the path."""
    assert (ROOT / f"integrations{folder}").is_dir()
    assert not (ROOT / f"integrations{folder}" / "__init__.py").exists()


def test_each_wheel_holds_one_package(tmp_path: Path) -> None:
    names = [zipfile.ZipFile(built(folder, tmp_path)).namelist() for folder in FOLDERS]
    tops = [{name.split("/")[0] for name in each if ".dist-info/" not in name} for each in names]
    assert tops == [{"nabla_agents"}, {"langchain_nabla"}, {"llama_index"}]
    for each, package in zip(names, ("nabla_agents", "langchain_nabla", "llama_index/llms/nabla"), strict=True):
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= set(each)
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in each)
    assert not {"llama_index/__init__.py", "llama_index/llms/__init__.py"} & set(names[2])


def test_the_three_distributions_are_of_one_version_and_depend_on_it() -> None:
    core, *adapters = map(project, FOLDERS)
    assert core["version"] == nabla_agents.__version__
    for name, adapter in zip(ADAPTERS, adapters, strict=True):
        assert (adapter["name"], adapter["version"]) == (name, core["version"])
        assert f"nabla-agents[grammar]=={core['version']}" in adapter["dependencies"]
        extras = [re.sub(r"\[\w+\]", "", each) for [each, *_] in core["optional-dependencies"].values()]
        assert f"{name}=={core['version']}" in extras
        assert (ROOT / "integrations" / name / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def named(requirements: Iterable[str]) -> set[str]:
    """The distributions of requirements, those of extras left out."""
    return {re.match(r"[\w.-]+", each)[0] for each in requirements if "extra ==" not in each}  # type: ignore[index]


def test_what_a_recipe_imports_comes_with_the_extra_all() -> None:
    core, *adapters = map(project, FOLDERS)
    extras = core["optional-dependencies"]
    [chosen] = [re.findall(r"[\w-]+", each.partition("[")[2]) for each in extras["all"]]
    new = named(
        [
            *core["dependencies"],
            *(each for extra in chosen for each in extras[extra]),
            *(each for adapter in adapters for each in adapter["dependencies"]),
            *adapters[0]["optional-dependencies"]["agents"],
        ]
    )
    brought = set[str]()
    assert any("[agents]" in each for each in extras["langchain"])
    while new := new - brought:
        brought |= new
        new = named(each for one in new for found in distributions(name=one) for each in found.requires or ())
    ours = {"nabla_agents": ["nabla-agents"], "langchain_nabla": ["langchain-nabla"]}
    owners = {**packages_distributions(), **ours}
    for recipe in (ROOT / "cookbook").glob("[0-9]*.py"):
        for node in ast.walk(ast.parse(recipe.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for module in {each.partition(".")[0] for each in modules} - sys.stdlib_module_names:
                assert {*owners[module]} & brought, f"{recipe.name} imports {module}"


def test_the_wheel_holds_every_embedded_weight(wheel: Path) -> None:
    weights = [path for path in (ROOT / "nabla_agents/tiny/weights").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in weights)
    packed = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    for path in weights:
        assert packed[path.relative_to(ROOT).as_posix()] == path.stat().st_size
    assert sum(path.stat().st_size for path in weights) <= 24 * 2**20


@pytest.mark.parametrize("form", ["standard", "editable"])
def test_the_wheels_import_side_by_side_and_beside_the_hosts(form: str, tmp_path: Path) -> None:
    """Each is unpacked into one site folder; of the folder with the dependencies no `.pth` file is read."""
    for folder in FOLDERS:
        zipfile.ZipFile(built(folder, tmp_path / "dist", form)).extractall(tmp_path / "site")
    hosts = sysconfig.get_paths()["purelib"]
    modules = ["nabla_agents", *ADAPTERS.values(), "llama_index.core", "langchain_core"]
    script = (
        f"import site, sys; site.addsitedir({str(tmp_path / 'site')!r}); sys.path.append({hosts!r})\n"
        f"import {', '.join(modules)}\n" + "\n".join(f"print({name}.__file__)" for name in modules)
    )
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *ours, index, chain = map(Path, done.stdout.split())
    assert all(path.is_relative_to(tmp_path if form == "standard" else ROOT) for path in ours)
    assert index.is_relative_to(hosts)
    assert chain.is_relative_to(hosts)


@pytest.mark.parametrize("folder", [".", "integrations", "integrations/llama-index-llms-nabla"])
def test_llama_index_core_imports_from_within_the_checkout(folder: str) -> None:
    """A script started in one of the folders has it first on its path."""
    script = "import llama_index.core, llama_index.llms.nabla"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT / folder, check=True)


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "nabla = nabla_agents.cli:main" in archive.read(entry_points).decode()


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    commands = [
        line for block in code_blocks("sh") for line in block.splitlines() if re.match(r"(make|pip|\.ci)\b", line)
    ]
    assert [command.split("#")[0].strip() for command in commands] == ["make demo", "make test"]
    assert {"demo", "test"} <= targets()


def test_ci_runs_the_readmes_test_command_and_pre_commit_the_same_checks_as_ci() -> None:
    in_ci = re.findall(r"^make ([a-z]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    in_hooks = re.findall(r"entry: make ([a-z]+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    assert "test" in in_ci
    assert set(in_hooks) == set(in_ci)
    assert set(in_ci) <= targets()


def test_ci_can_be_executed() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_every_direct_dependency_has_a_constraint() -> None:
    """So that a checkout installs today what it installed when it was tested."""
    core, *adapters = map(project, FOLDERS)
    extras = [requirement for extra in core["optional-dependencies"].values() for requirement in extra]
    listed = [
        *core["dependencies"],
        *extras,
        *(requirement for each in adapters for requirement in each["dependencies"]),
        *adapters[0]["optional-dependencies"]["agents"],
    ]
    ours = {"nabla-agents", *ADAPTERS}
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert named(listed) - ours <= pinned


def test_the_map_is_short_and_shows_every_module() -> None:
    text = (ROOT / "AGENTS.md").read_text()
    modules = {path.name for path in (ROOT / "nabla_agents").glob("*.py")} - {"__init__.py"}
    packages = {f"{path.parent.name}/" for path in (ROOT / "nabla_agents").glob("*/__init__.py")}
    assert len(text.splitlines()) <= 120
    assert {name for name in modules | packages if name not in text} == set()
