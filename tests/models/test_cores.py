"""How many cores a process may use, and that torch takes no more."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nabla_agents import Engine, sandbox
from nabla_agents.cli import app
from nabla_agents.models import cores
from nabla_agents.models.cores import Cores

V1 = {"proc/self/cgroup": "7:cpuset:/\n4:cpu,cpuacct:/a/b\n0::/\n"}
V2 = {"proc/self/cgroup": "0::/a/b\n"}
FS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({**V2, f"{FS}/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({**V2, f"{FS}/a/b/cpu.max": "300000 100000", f"{FS}/a/cpu.max": "50000 100000"}, 0.5),
        ({**V2, f"{FS}/cpu.max": "200000 100000"}, 2.0),
        ({**V2, f"{FS}/a/b/cpu.max": "max 100000"}, None),
        ({**V1, f"{FS}/cpu/a/cpu.cfs_quota_us": "400000", f"{FS}/cpu/a/cpu.cfs_period_us": "100000"}, 4.0),
        ({**V1, f"{FS}/cpu/cpu.cfs_quota_us": "-1", f"{FS}/cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
    ids=["own", "the least of all above", "a container's", "no limit", "version 1", "no limit in 1", "no cgroups"],
)
def test_the_least_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cores, "_ROOT", tmp_path)
    assert Cores.of_process().quota == quota


@pytest.mark.parametrize(("quota", "usable"), [(None, 4), (0.2, 1), (1.5, 2), (2.0, 2), (9.0, 4)])
def test_part_of_a_core_counts_as_one(quota: float | None, usable: int) -> None:
    assert Cores(4, quota).usable == usable


@pytest.mark.parametrize(("told", "threads"), [(None, 2), ("3", 3)], ids=["nothing said", "said otherwise"])
def test_an_engine_keeps_to_a_quota(monkeypatch: pytest.MonkeyPatch, told: str | None, threads: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(Cores, "of_process", lambda: Cores(8, 2.0))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        Engine.tiny()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_doctor_says_how_many_threads_compute_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "diagnosis", list)
    monkeypatch.setattr(Cores, "of_process", lambda: Cores(8, 1.5))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        said = CliRunner().invoke(app, ["doctor"]).output
    finally:
        torch.set_num_threads(before)
    assert "threads 2: OMP_NUM_THREADS is not set, the affinity has 8 cores, a cgroup's quota pays for 1.5" in said
