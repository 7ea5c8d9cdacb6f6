"""The filter, run as the kernel runs it, on both machines."""

import pytest

from nabla_agents.sandbox.guest import seccomp

EXPECTED_CALLS = {"x86_64": 50, "aarch64": 47}


def verdict(steps: list[tuple[int, int, int, int]], arch: int, number: int) -> int:
    """What the filter answers: a model of the four instructions that it uses."""
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == seccomp.RETURN:
            return operand
        if code == seccomp.LOAD:
            accumulator = {seccomp.ARCH_AT: arch, seccomp.NUMBER_AT: number}[operand]
        else:
            true = accumulator == operand if code == seccomp.IF_EQUAL else accumulator >= operand
            at += if_true if true else if_false


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_only_the_table_is_allowed(machine: str) -> None:
    column, arch = seccomp.MACHINES[machine]
    steps = seccomp.instructions(machine)
    allowed = {call[column] for call in seccomp.CALLS.values()} - {None}
    assert len(allowed) == EXPECTED_CALLS[machine]
    for number in range(1024):
        assert verdict(steps, arch, number) == (seccomp.ALLOW if number in allowed else seccomp.REFUSE)


def test_foreign_call_formats_are_deadly() -> None:
    steps = seccomp.instructions("x86_64")
    i386 = 0x40000003
    assert verdict(steps, i386, 1) == seccomp.KILL
    assert verdict(steps, seccomp.MACHINES["x86_64"][1], seccomp.X32_BIT | 1) == seccomp.KILL
    assert verdict(seccomp.instructions("aarch64"), seccomp.MACHINES["x86_64"][1], 63) == seccomp.KILL


def test_no_allowed_call_takes_a_path_or_makes_a_process() -> None:
    words = ("open", "exec", "fork", "clone", "socket", "connect", "link", "mount", "ptrace", "kill", "prctl", "ioctl")
    assert not [name for name in seccomp.CALLS if any(word in name.replace("arch_prctl", "") for word in words)]
