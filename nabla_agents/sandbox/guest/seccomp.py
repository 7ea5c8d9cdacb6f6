"""The sealed filter: which system calls a program may make. There is none that takes a path, so nothing can be opened.

The kernel checks it at every call, whatever the program did to its interpreter. All else fails with EPERM; a call in a
foreign format (32-bit, x32), where numbers mean other things, kills the process.
"""

import ctypes
import platform
import struct

# name: (x86-64, aarch64); None where the machine has no such call. From the kernel's unistd headers.
CALLS = {
    "arch_prctl": (158, None),
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fstat": (5, 80),
    "futex": (202, 98),
    "get_robust_list": (274, 100),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getgroups": (115, 158),
    "getpgrp": (111, None),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "getresgid": (120, 150),
    "getresuid": (118, 148),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "lseek": (8, 62),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "pread64": (17, 67),
    "read": (0, 63),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigpending": (127, 136),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "set_robust_list": (273, 99),
    "sigaltstack": (131, 132),
    "time": (201, None),
    "times": (100, 153),
    "write": (1, 64),
    "writev": (20, 66),
}
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH
X32_BIT = 0x40000000
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
KILL, REFUSE, ALLOW = 0x80000000, 0x00050000 | 1, 0x7FFF0000  # SECCOMP_RET_KILL_PROCESS, _ERRNO with EPERM, _ALLOW
NUMBER_AT, ARCH_AT = 0, 4  # offsets in struct seccomp_data
PR_SET_SECCOMP, MODE_FILTER = 22, 2


def instructions(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter as (code, jump if true, jump if false, operand)."""
    column, arch = MACHINES[machine]
    numbers = sorted(call[column] for call in CALLS.values() if call[column] is not None)
    head = [(LOAD, 0, 0, ARCH_AT), (IF_EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT)]
    if machine == "x86_64":
        head += [(IF_AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    allowed = [step for n in numbers for step in ((IF_EQUAL, 0, 1, n), (RETURN, 0, 0, ALLOW))]
    return [*head, *allowed, (RETURN, 0, 0, REFUSE)]


class Filter:
    """The filter of this machine, laid out once, so that a forked child only has to hand it to the kernel."""

    def __init__(self) -> None:
        machine = platform.machine()
        if machine not in MACHINES:
            raise OSError(f"no system call table for {machine}; known are {', '.join(MACHINES)}")
        steps = instructions(machine)
        self._code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
        address = ctypes.addressof(self._code)
        self._program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), address))
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def apply(self) -> None:
        """Binds this process from now on; no_new_privs must be set. OSError where the kernel refuses."""
        if self._prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(self._program), 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "the kernel refused the seccomp filter")
