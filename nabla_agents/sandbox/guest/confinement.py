"""What a guest process gives up besides system calls: privileges, files, resources. Linux only."""

import ctypes
import fcntl
import os
import resource
import struct

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION_3 = 0x20080522
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # the same on every machine
STACK_BYTES = 8 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Lets the kernel kill this process when its parent ends.

    Only for a child of a single-threaded process: the signal comes when the parent's *thread* ends.
    """
    _libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def die_without(pipe: int) -> None:
    """Lets the kernel end this process (SIGIO) when the other end of a pipe closes, into which nobody writes.

    It binds whichever thread of the host started this process, and needs none here.
    """
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | fcntl.FASYNC)


def drop_privileges() -> list[str]:
    """Gives up capabilities, new privileges and being traced or read by equals; returns what holds now."""
    if os.geteuid() == 0:
        for capability in range(64):
            _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        header = ctypes.create_string_buffer(struct.pack("=II", CAPABILITY_VERSION_3, 0))
        if _libc.syscall(CAPSET[os.uname().machine], header, ctypes.create_string_buffer(24)) != 0:
            raise OSError(ctypes.get_errno(), "capabilities could not be dropped")
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs could not be set")
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    return ["no_new_privs"]


def close_files() -> list[str]:
    """Forbids every path, TCP port, abstract socket and foreign signal by Landlock, as far as the kernel knows them."""
    version = _libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return []
    rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)  # refer, truncate, device ioctl came later
    network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 8 + 8 * (version >= 4) + 8 * (version >= 6)
    handled = struct.pack("=QQQ", (1 << rights) - 1, network, scopes)
    ruleset = _libc.syscall(LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return []
    refused = _libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return [] if refused else ["landlock"]


def address_space() -> int:
    """Bytes this process has mapped."""
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[0]) * resource.getpagesize()


def limit_resources(address_bytes: int, cpu_seconds: int) -> None:
    """Caps memory and processor time, and forbids the rest.

    The hard processor limit is one second above the soft one: where both are equal the kernel sends SIGKILL, which
    looks like anything else.
    """
    resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    forbid_files_and_processes()


def forbid_files_and_processes() -> None:
    """No file may grow, no process start, no core be dumped, no memory be locked."""
    for which in ("FSIZE", "NPROC", "CORE", "MEMLOCK", "MSGQUEUE"):
        resource.setrlimit(getattr(resource, f"RLIMIT_{which}"), (0, 0))
