"""What is shipped, and that README, Makefile, CI and pre-commit name the same commands."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parent.parent
NAMESPACES = ["integrations", "integrations/llama_index", "integrations/llama_index/llms"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout; pure Python, so nothing is compiled or fetched."""
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return Path(built)


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("folder", NAMESPACES)
def test_a_folder_above_an_integration_is_no_package(folder: str) -> None:
    """An `__init__.py` in one of these would hide llama_index.core from everybody on the path."""
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_wheel_holds_three_packages_and_no_folder_of_integrations(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"nabla_agents", "langchain_nabla", "llama_index"}
    assert {"langchain_nabla/__init__.py", "llama_index/llms/nabla/__init__.py", "nabla_agents/py.typed"} <= set(names)
    assert not {"llama_index/__init__.py", "llama_index/llms/__init__.py"} & set(names)


def test_the_wheel_holds_every_embedded_weight(wheel: Path) -> None:
    weights = [path for path in (ROOT / "nabla_agents/tiny/weights").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in weights)
    packed = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    for path in weights:
        assert packed[path.relative_to(ROOT).as_posix()] == path.stat().st_size
    assert sum(path.stat().st_size for path in weights) <= 24 * 2**20


@pytest.mark.parametrize("form", ["standard", "editable"])
def test_each_form_of_the_wheel_imports_beside_the_core_of_llama_index(form: str, tmp_path: Path) -> None:
    """Each is unpacked into a site folder of its own; of the folder with the dependencies no `.pth` file is read."""
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path / "dist"), versions=[form])
    zipfile.ZipFile(built).extractall(tmp_path / "site")
    core = sysconfig.get_paths()["purelib"]
    modules = ["nabla_agents", "langchain_nabla", "llama_index.llms.nabla", "llama_index.core"]
    script = (
        f"import site, sys; site.addsitedir({str(tmp_path / 'site')!r}); sys.path.append({core!r})\n"
        f"import {', '.join(modules)}\n" + "\n".join(f"print({name}.__file__)" for name in modules)
    )
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *ours, theirs = map(Path, done.stdout.split())
    assert all(path.is_relative_to(tmp_path if form == "standard" else ROOT) for path in ours)
    assert theirs.is_relative_to(core)


@pytest.mark.parametrize("folder", [".", "integrations"])
def test_llama_index_core_imports_from_within_the_checkout(folder: str) -> None:
    """A script started in either folder has it first on its path."""
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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    named = {re.match(r"[\w-]+", requirement)[0] for requirement in listed} - {"nabla-agents"}  # type: ignore[index]
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert named <= pinned


def test_the_map_is_short_and_shows_every_module() -> None:
    text = (ROOT / "AGENTS.md").read_text()
    modules = {path.name for path in (ROOT / "nabla_agents").glob("*.py")} - {"__init__.py"}
    packages = {f"{path.parent.name}/" for path in (ROOT / "nabla_agents").glob("*/__init__.py")}
    assert len(text.splitlines()) <= 120
    assert {name for name in modules | packages if name not in text} == set()
