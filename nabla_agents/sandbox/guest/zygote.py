"""The warm parent of all checks: it loads, locks itself in, then forks one child per check and reports how it ended.

It is single-threaded, holds nothing of the host's but one socket, and never reads what a child writes: children answer
to the host through pipes. End of file on the socket means that the host is gone.
"""

import _signal  # pyright: ignore[reportMissingImports]  CPython has it
import ctypes
import gc
import json
import os
import platform
import random
import select
import signal
import socket
import sys
import traceback
from io import BufferedWriter, FileIO, TextIOWrapper

from . import confinement, interpreter, preload, seccomp

HEADER_BYTES = 4096
INPUT, OUTPUT, RESULT = 0, 1, 3  # descriptors of a child; 2, and 0 without input, are the null device
DESCRIPTORS = 256  # none is above


def main(channel_fd: int, packages: list[str], paths: list[str]) -> None:
    channel = socket.socket(fileno=os.dup(channel_fd))  # a low number, however many files the host has open
    os.close(channel_fd)
    try:
        zygote = Zygote(channel, packages, paths)
        channel.send(json.dumps(zygote.description).encode())
    except BaseException:
        channel.send(json.dumps({"failed": traceback.format_exc()[-HEADER_BYTES:]}).encode())
        return
    while zygote.serve():
        pass


class Zygote:
    def __init__(self, channel: socket.socket, packages: list[str], paths: list[str]) -> None:
        self._channel = channel
        self._pid = os.getpid()
        self._death, wake = os.pipe()  # readable when a child has died; not every build of Python knows pidfd
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Past `os.fork`, which makes anew what only threads could have left behind (locks, hooks, thread states): a
        # third of the child's page faults, and here there is one thread.
        self._fork = ctypes.PyDLL(None, use_errno=True).fork
        sys.path += paths
        preload.load(packages)
        self._filter = seccomp.Filter()
        self._address_bytes = confinement.address_space()
        os.chdir("/")
        layers = ["seccomp", *confinement.drop_privileges(), *confinement.close_files()]
        for name in [name for name in sys.modules if name.partition(".")[0] == "guest"]:
            del sys.modules[name]
        sys.path.clear()
        self.description = {
            "python_version": platform.python_version(),
            "modules": preload.names(),
            "layers": layers,
        }
        gc.collect()
        gc.freeze()  # children share these pages as long as the collector leaves them alone

    def serve(self) -> bool:
        """Runs the next check to its end; False when the host is gone."""
        message, fds, _, _ = socket.recv_fds(self._channel, HEADER_BYTES, 3)
        if not message:
            return False
        if not fds:  # a kill that came too late
            return True
        header = json.loads(message)
        child = self._fork()
        if child < 0:
            raise OSError(ctypes.get_errno(), "no child could be forked")
        if child == 0:
            self._become_a_check(header, *fds)
        for fd in fds:
            os.close(fd)
        return self._wait(child)

    def _wait(self, child: int) -> bool:
        """Reports how the child ended; kills it when the host says so or is gone."""
        poll = select.poll()
        poll.register(self._death, select.POLLIN)
        poll.register(self._channel, select.POLLIN)
        host_is_there = True
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._channel.fileno() in ready:
                host_is_there = bool(self._channel.recv(HEADER_BYTES))
                os.kill(child, signal.SIGKILL)
                poll.unregister(self._channel)
            if self._death in ready:
                os.read(self._death, HEADER_BYTES)
            ended, status, used = os.wait4(child, os.WNOHANG)
            if ended:
                break
        end = {"exit": os.waitstatus_to_exitcode(status)}
        end |= {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
        if host_is_there:
            self._channel.send(json.dumps(end).encode())
        return host_is_there

    def _fill_standard_input(self, text: str) -> None:
        """For programs that read the descriptor; `sys.stdin` is a text of its own."""
        memory = os.memfd_create("stdin")
        os.write(memory, text.encode("utf-8", "surrogatepass"))
        os.lseek(memory, 0, os.SEEK_SET)
        os.dup2(memory, INPUT)

    def _become_a_check(self, header: dict, request_fd: int, output_fd: int, result_fd: int) -> None:
        """Never returns. From the filter on, this process can only compute, and write to two pipes."""
        try:
            confinement.die_with(self._pid)
            _signal.set_wakeup_fd(-1)  # `signal` makes enumerations of it, which copies 30 pages
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
            with open(request_fd, "rb") as file:
                request = json.loads(file.read())
            if request["stdin"] and hasattr(os, "memfd_create"):
                self._fill_standard_input(request["stdin"])
            os.dup2(output_fd, OUTPUT)
            os.dup2(result_fd, RESULT)
            os.closerange(RESULT + 1, DESCRIPTORS)
            sys.stdout = TextIOWrapper(BufferedWriter(FileIO(OUTPUT, "w")), encoding="utf-8", errors="replace")
            stdout = sys.stdout
            random.seed(0)
            confinement.limit_resources(self._address_bytes + header["memory_bytes"], header["cpu_seconds"])
            self._filter.apply()
            report = interpreter.execute(request).encode()
            interpreter.flush(stdout)
            while report:
                report = report[os.write(RESULT, report) :]
        finally:
            os._exit(0)
