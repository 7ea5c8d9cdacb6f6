"""A process that runs WebAssembly and nothing else: each check is a new instance, with its own fuel and memory.

On Linux it locks itself in as a `fork` child does, so that a hole in the WebAssembly runtime is not one in the host.
"""

import json
import os
import struct
import time

import wasmtime  # pyright: ignore[reportMissingImports]  an extra
from wasmtime import component  # pyright: ignore[reportMissingImports]

STACK_BYTES = 3 << 19  # above that of a thread of the runtime, an overflow would end the whole process
START_FUEL = 1 << 40
LARGEST_BASE_BYTES = 1 << 30


class Machine:
    def __init__(self, artefact: str) -> None:
        config = wasmtime.Config()
        config.consume_fuel = True
        config.max_wasm_stack = STACK_BYTES
        self._engine = wasmtime.Engine(config)
        self._linker = component.Linker(self._engine)
        self._linker.add_wasip2()
        self._component = component.Component.deserialize_file(self._engine, artefact)
        self._base_bytes = self._smallest()

    def run(self, request: str, fuel: int, memory_bytes: int, reply_characters: int) -> dict:
        """What the guest returned, or the trap that ended it, and the fuel it used."""
        store, started = self._store(fuel, self._base_bytes + memory_bytes), time.process_time()
        reply: dict = {}
        try:
            instance = self._linker.instantiate(store, self._component)
            run = instance.get_func(store, "run")
            assert run is not None
            returned = run(store, request)
            reply = {"returned": returned} if len(returned) <= reply_characters else {"trap": "reply too long"}
        except (wasmtime.WasmtimeError, wasmtime.Trap) as e:
            reply = {"trap": str(e)[-2000:]}
        return {**reply, "fuel": fuel - store.get_fuel(), "cpu_seconds": time.process_time() - started}

    def _store(self, fuel: int, memory_bytes: int):
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=memory_bytes)
        store.set_fuel(fuel)
        store.set_wasi(wasmtime.WasiConfig())  # no files, sockets, arguments, environment
        return store

    def _smallest(self) -> int:
        """Bytes of memory that an instance needs before it does anything."""
        low, high = 0, LARGEST_BASE_BYTES
        while high - low > 1 << 20:
            middle = (low + high) // 2
            try:
                self._linker.instantiate(self._store(START_FUEL, middle), self._component)
                high = middle
            except wasmtime.WasmtimeError:
                low = middle
        return high


def lock_in(lifeline: int | None) -> list[str]:
    if lifeline is None:  # not Linux
        return ["wasm"]
    from . import confinement, seccomp

    confinement.die_without(lifeline)
    if len(os.listdir("/proc/self/task")) != 1:  # the filter binds this thread only
        raise OSError("the runtime has started threads")
    os.chdir("/")
    call_filter = seccomp.Filter()
    layers = [*confinement.drop_privileges(), *confinement.close_files()]
    confinement.forbid_files_and_processes()
    call_filter.apply()
    return ["wasm", "seccomp", *layers]


def read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:  # the host is gone
            os._exit(0)
        data += chunk
    return data


def send(message: dict) -> None:
    text = json.dumps(message).encode()
    data = struct.pack("=I", len(text)) + text
    while data:
        data = data[os.write(1, data) :]


def main(artefact: str, lifeline: int | None) -> None:
    machine = Machine(artefact)
    introduction = machine.run("{}", START_FUEL, 64 << 20, 1 << 20)
    send({**json.loads(introduction["returned"]), "layers": lock_in(lifeline)})
    while True:
        (size,) = struct.unpack("=I", read(4))
        job = json.loads(read(size))
        send(machine.run(job.pop("request"), **job))
