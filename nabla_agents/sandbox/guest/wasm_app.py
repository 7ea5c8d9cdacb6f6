"""The program inside WebAssembly: what it has imported when the component is built is all that can ever be imported.

Every check is a new instance of the memory as it was then; there are no files, sockets, arguments or environment.
"""

import builtins
import contextlib
import gc
import io
import json
import os
import platform
import random
import sys
import time
import types

import wit_world  # pyright: ignore[reportMissingImports]  made by componentize-py

from . import interpreter, preload

PACKAGES = ["sympy", "dateutil"]
# What this interpreter has and programs shall not see; asyncio and sockets are only half there.
OWN = {"app", "asyncio", "guest", "selectors", "socket", "wit_world"}
HIDDEN = ["app"]  # their names in sys.modules, found when the component is built

OUT_OF_MEMORY = json.dumps({"stdout": "", "report": interpreter.OUT_OF_MEMORY})
real_open, real_write = open, os.write


class Capped(io.RawIOBase):
    """An output that keeps one byte more than the cap and then refuses."""

    def __init__(self, cap):
        self.data, self._cap = bytearray(), cap

    def writable(self):
        return True

    def write(self, data):
        size = memoryview(data).nbytes
        self.data += bytes(data)[: self._cap + 1 - len(self.data)]
        if len(self.data) > self._cap:
            raise interpreter.TooMuchOutput
        return size


class Discarded(io.RawIOBase):
    """An output that nobody reads."""

    def writable(self):
        return True

    def write(self, data):
        return memoryview(data).nbytes


class WitWorld(wit_world.WitWorld):
    def run(self, request: str) -> str:
        """The standard output, each byte as one character, and the report; or what this interpreter offers."""
        try:
            return self.reply(request)
        except MemoryError:
            return OUT_OF_MEMORY

    def reply(self, request):
        job = json.loads(request)
        for name in HIDDEN:
            sys.modules.pop(name, None)
        if "code" not in job:
            names = [name for name in preload.names() if not is_own(name)]
            return json.dumps({"python_version": platform.python_version(), "modules": names})
        output = Capped(job["output_bytes"])
        stdout = redirect(output)
        random.seed(0)
        report = interpreter.execute(job)
        with contextlib.suppress(interpreter.TooMuchOutput):
            interpreter.flush(stdout)
        return json.dumps({"stdout": output.data.decode("latin-1"), "report": report})


def redirect(output):
    """Puts `output` and nothing where the program finds its descriptors 0 to 2.

    The runtime waits for the real ones in threads, which the locked worker may not start: it would die of them. What
    goes around this, by `posix`, does so.
    """

    def opened(file, *how, **more):
        return sys.stdin if file == 0 else real_open(file, *how, **more)

    def written(fd, data):
        return {1: output, 2: Discarded()}[fd].write(data) if fd in (1, 2) else real_write(fd, data)

    builtins.open = io.open = opened
    os.write = written
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.BufferedWriter(output), encoding="utf-8", errors="replace")
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.BufferedWriter(Discarded()), encoding="utf-8", errors="replace")
    return sys.stdout


def no_wait(seconds):
    """Time passes without fuel: a program that sleeps would wait for nothing but the host's clock."""


def is_own(name):
    top = name.partition(".")[0]
    return top in OWN or top.startswith("componentize_py")


def warm_up():
    stub = types.ModuleType("ctypes")  # all that sympy asks of it
    stub.__dict__.update(c_long=int, sizeof=lambda _: 4)
    sys.modules["ctypes"] = stub
    preload.load(PACKAGES)
    del sys.modules["ctypes"]
    HIDDEN.extend(name for name in sys.modules if is_own(name))
    time.sleep = no_wait
    sys.path.clear()
    gc.collect()
    gc.freeze()


warm_up()
