"""Hostile programs are contained, harmless ones print what CPython prints, and the checks see an open sandbox."""

from collections.abc import Callable
from types import ModuleType

import pytest

from nabla_agents import Executor

Verdicts = Callable[..., dict[str, list[str]]]
QUICK = ["depth", "escape", "files", "integrity", "io", "kernel", "network", "process", "text"]


def test_the_checks_catch_an_executor_that_contains_nothing(verdicts: Verdicts) -> None:
    """Only lines that harm nothing are run, in namespaces where the machine has them; those hide some more effects."""
    caught = {name for name, broken in verdicts("open").items() if broken}
    assert {
        "files/chdir_etc",
        "files/chmod",
        "files/read_passwd",
        "files/symlink",
        "files/write_tmp",
        "network/net_bind",
        "network/net_loopback",
        "network/net_unix",
        "process/os_exit0",
    } <= caught


def test_a_line_with_an_unknown_placeholder_is_refused(rig: ModuleType) -> None:
    assert rig.filled("x = @@3*(@@1@@3*)@@", {}) == "x = (((1)))"
    with pytest.raises(KeyError):
        rig.filled("open('@@NO_SUCH@@')", {})


def test_hostile_lines_that_end_by_themselves_are_contained(verdicts: Verdicts) -> None:
    """The part of the next test that takes no time."""
    broken = verdicts("fork", "--hazards", *QUICK)
    assert len(broken) >= 30
    assert {name: rules for name, rules in broken.items() if rules} == {}


@pytest.mark.slow
def test_every_hostile_line_is_contained(verdicts: Verdicts, rig: ModuleType) -> None:
    broken = verdicts("fork", "--hazards")
    assert set(broken) == {line.id for line in rig.lines()}
    assert {name: rules for name, rules in broken.items() if rules} == {}


def test_harmless_programs_print_what_cpython_prints(fork: Executor, coverage: Callable[[Executor], int]) -> None:
    assert coverage(fork) >= 47
