"""What one client can do to a server, tried: each attack, what is expected of it, what was observed.

    python benchmarks/attack.py                     about 2 minutes on 2 CPU cores; `make attack`
    python benchmarks/attack.py --only schema       those with this word in their name

The server is `nabla serve` with the embedded model on loopback, a process of its own whose memory is limited; the
upstream of the last ones is `hostile_upstream.py`. It exits with 1 where something is not as expected. While a request
is refused, another client asks for /health without pause: the longest time that it waits is how long the event loop was
held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from hostile_upstream import HostileUpstream
from rich.console import Console
from rich.table import Table

from nabla_agents.serve import digest, new_key

NABLA: Final = ("-c", "from nabla_agents.cli import main; main()", "serve")
CHAT, TEXTS, STEPS, TOKENS = "/v1/chat/completions", "/v1/completions", "/v1/nabla/steps", "/v1/nabla/tokens"
KEYS: Final = {name: new_key() for name in ("attacker", "other", "rated")}
MEMORY: Final = 6 << 30  # bytes of address space, of which torch takes about half
HELD: Final = 1.0  # seconds that the event loop may be held at most
SHUTDOWN: Final = 3  # seconds that running answers have at the end
GRACE: Final = 12  # ... and after which the process has ended, whatever hangs
WRITE: Final = 2  # seconds that a reader has
UPSTREAM: Final = 5  # seconds that an upstream has
GROWTH_MB: Final = 250  # by which 24 compiled grammars may grow the server


@dataclass(frozen=True)
class Outcome:
    expected: str
    observed: str
    ok: bool


@dataclass
class Server:
    """A server's process and where it listens."""

    process: subprocess.Popen[bytes]
    port: int

    def client(self, key: str = "attacker") -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEYS[key]}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=120)

    def post(self, route: str, body: dict[str, Any], key: str = "attacker") -> httpx.Response:
        with self.client(key) as client:
            return client.post(route, json={"model": "tiny", **body})

    @property
    def memory_mb(self) -> float:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @contextmanager
    def probed(self) -> Iterator[list[float]]:
        """Seconds that each /health took meanwhile, asked without pause."""
        seconds, done = list[float](), threading.Event()

        def probe() -> None:
            with self.client("other") as client:
                while not done.is_set():
                    began = time.perf_counter()
                    with suppress(httpx.HTTPError):
                        client.get("/health")
                    seconds.append(time.perf_counter() - began)
                    done.wait(0.02)
                seconds.append(0.0)

        thread = threading.Thread(target=probe)
        thread.start()
        _wait(lambda: len(seconds) > 0, 30)
        seconds.clear()
        try:
            yield seconds
        finally:
            done.set()
            thread.join()


@contextmanager
def serving(*command: str) -> Iterator[Server]:
    """A server's process with little memory, ready; stopped at the end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "serve.toml")
        rate = {"rated": "requests_per_minute = 5\n"}
        keys = (f'[[keys]]\nid = "{n}"\nsha256 = "{digest(k)}"\n{rate.get(n, "")}' for n, k in KEYS.items())
        limits = {"write": WRITE, "shutdown": SHUTDOWN, "stall": 1, "upstream": UPSTREAM}
        lines = "".join(f"{name}_seconds = {seconds}\n" for name, seconds in limits.items())
        config.write_text(lines + "".join(keys))
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port), "--config", str(config)],
            env={**os.environ, "NABLA_SERVE_LOG_LEVEL": "error"},
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        )
        server = Server(process, port)
        try:
            _wait(lambda: process.poll() is not None or _ready(server), 120)
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            yield server
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait(60)


def _ready(server: Server) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{server.port}/ready", timeout=5).status_code == 200
    return False


def _wait(reached: Callable[[], bool], seconds: float) -> float:
    """Seconds until it is reached; infinite where it is not."""
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        if reached():
            return time.monotonic() - began
        time.sleep(0.02)
    return float("inf")


def says(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "seed": 0, **fields}


def answers_in(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}}


SMALL: Final = says("What is 3 + 4?", max_tokens=32, nabla={"strategy": "greedy"})


def small_chat(server: Server, key: str = "other", **fields: Any) -> float:
    """Seconds that a small chat takes: the median of five."""
    seconds: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        server.post(CHAT, {**SMALL, **fields}, key).raise_for_status()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


# ── refused before it costs anything ──────────────────────────────────────────────────────────────────────────────────


def refused(server: Server, route: str, body: dict[str, Any], *words: str) -> Outcome:
    """A 400 within five seconds, in few words, that holds the event loop for no one."""
    with server.probed() as probes:
        began = time.perf_counter()
        response = server.post(route, body)
        seconds = time.perf_counter() - began
    ok = response.status_code == 400 and seconds < 5 and len(response.content) < 10_000
    ok = ok and all(word in response.text for word in words) and max(probes) < HELD
    named = f", naming {', '.join(words)}" if words else ""
    observed = (
        f"{response.status_code} in {seconds:.2f} s, {len(response.content)} bytes; loop held {max(probes):.2f} s"
    )
    return Outcome(f"400 in 5 s{named}; loop held at most {HELD:g} s", observed, ok)


def strategy(**changes: Any) -> dict[str, Any]:
    return says(nabla={"strategy": changes})


UNSORTABLE: Final = [{"a": i} for i in range(6000)]
DRAFT_4: Final = {"$schema": "http://json-schema.org/draft-04/schema#", "enum": UNSORTABLE, "type": "x"}
DEEP: Final[Any] = json.loads('{"items": ' * 400 + "{}" + "}" * 400)
REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "a billion refinement steps": (
        CHAT,
        strategy(name="nabla", dto={"steps": 10**9, "stop_on_flip": False}),
        "steps",
    ),
    "a billion openings": (CHAT, strategy(name="nabla", openings=10**9), "openings"),
    "n as 2e8": (CHAT, strategy(name="best-of-n", n=2e8), "n of the strategy", "can be changed"),
    "n as text": (CHAT, strategy(name="self-consistency", n="200000000"), "n of the strategy", "can be changed"),
    "a width of 200 million": (CHAT, strategy(name="nabla-parallel", width=200_000_000), "width"),
    "a setting that is not on the list": (CHAT, strategy(name="greedy", depth=3), "can be changed: rule"),
    "a schema of draft 4 with 6,000 unsortable items": (CHAT, says(**answers_in(DRAFT_4))),
    "a schema with 6,000 unsortable names": (CHAT, says(**answers_in({"required": UNSORTABLE, "type": "x"}))),
    "a schema of 400 levels": (CHAT, says(**answers_in(DEEP)), "64 deep"),
    "a schema of 900 kB": (CHAT, says(**answers_in({"enum": ["x" * 90 for _ in range(9000)]}))),
    "a hundred thousand prompts": (TEXTS, {"prompt": ["a"] * 100_000}, "100000 answers"),
    "twenty thousand messages": (CHAT, {"messages": [{"role": "user", "content": ""}] * 20_000}, "20000 messages"),
    "a megabyte of one letter": (CHAT, says("a" * 1_000_000)),
    "a stop string of a megabyte": (CHAT, says(stop=["x" * 900_000])),
    "an error for each of 300,000 messages": (CHAT, {"messages": [1] * 300_000}),
    "an error for each of 40,000 names": (CHAT, says(**{f"unknown {i}": 1 for i in range(40_000)})),
}


# ── the others ────────────────────────────────────────────────────────────────────────────────────────────────────────


def grammars(server: Server) -> Outcome:
    """24 schemas as large as may be, each another: what was compiled is not kept without bound."""
    server.post(CHAT, says(max_tokens=1, **answers_in({"type": "string"})))
    before = server.memory_mb
    statuses: list[int] = []
    for i in range(24):
        schema = {
            "type": "object",
            "properties": {f"p{i}_{j}": {"enum": [f"{j}-{k}" for k in range(8)]} for j in range(60)},
        }
        body = says(max_tokens=1, nabla={"strategy": "greedy"}, **answers_in(schema))
        statuses.append(server.post(CHAT, body).status_code)
        rules = {"body": "%json " + json.dumps({"enum": [f"{i} {j} " + "x" * 40 for j in range(1100)]})}
        prompt = {"messages": [{"role": "user", "content": "Hi"}], "text": "Hi"}
        wish = {"prompt": prompt, "sampling": {"grammar": rules, "max_tokens": 1}, "nabla": {"strategy": "greedy"}}
        statuses.append(server.post(STEPS, wish).status_code)
    grown = server.memory_mb - before
    expected = f"at most {GROWTH_MB} MB more"
    return Outcome(expected, f"{grown:.0f} MB more, statuses {sorted(set(statuses))}", grown <= GROWTH_MB)


def long_answers(server: Server, count: int, **wish: Any) -> list[socket.socket]:
    """Connections on which long answers are written; close them to leave."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1300}
    connections: list[socket.socket] = []
    for seed in range(count):
        nabla = {"strategy": "greedy", **wish}
        wanted = says(
            "Write numbers.", model="tiny", temperature=1.5, max_tokens=4096, nabla=nabla, **answers_in(schema)
        )
        body = json.dumps({**wanted, "seed": seed}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEYS['attacker']}\r\n"
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        connections.append(connection)
    return connections


def running(server: Server) -> float:
    with server.client("other") as client:
        lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("nabla_running "))


@contextmanager
def beside(server: Server, count: int, **wish: Any) -> Iterator[None]:
    connections = long_answers(server, count, **wish)
    _wait(lambda: running(server) >= min(count, 12), 30)
    time.sleep(0.5)
    try:
        yield
    finally:
        for connection in connections:
            connection.close()
        _wait(lambda: running(server) == 0, 30)


def starving(count: int, *, times: float = 3, **wish: Any) -> Callable[[Server], Outcome]:
    def attack(server: Server) -> Outcome:
        alone = small_chat(server)
        with beside(server, count, **wish):
            together, others = small_chat(server), running(server)
        ok = together <= times * alone and others > 0
        observed = f"{together / alone:.2f} times ({alone:.3f} s alone; {others:.0f} beside)"
        return Outcome(f"at most {times:g} times", observed, ok)

    return attack


def leaving(server: Server) -> Outcome:
    alone = small_chat(server)
    with beside(server, 1, strategy={"name": "best-of-n", "n": 8}):
        pass
    gone = _wait(lambda: running(server) == 0, 30)
    after = small_chat(server)
    ok = gone < 1 and after <= 3 * alone
    return Outcome("free in 1 s; then at most 3 times", f"free after {gone:.2f} s; {after / alone:.2f} times", ok)


def rates(server: Server) -> Outcome:
    """Five a minute, of whatever route."""
    with server.client("rated") as client:
        routes = ("/v1/models", "/nowhere", "/metrics")
        statuses = [client.get(route).status_code for route in routes]
        statuses += [client.post(CHAT, json={}).status_code for _ in range(4)]
        statuses.append(client.get("/v1/models/tiny").status_code)
    expected = [200, 404, 200, 400, 400, 429, 429, 429]
    return Outcome(str(expected), str(statuses), statuses == expected)


def slow_readers(server: Server) -> Outcome:
    """Eight clients ask for megabytes and read nothing."""
    body = json.dumps({"model": "tiny", "ids": [5] * 60_000}).encode()
    head = f"POST {TOKENS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEYS['attacker']}\r\n"
    message = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    began, dropped = time.monotonic(), 0
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.socket()) for _ in range(8)]
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.setblocking(False)
        while dropped < 8 and time.monotonic() < began + 60:
            dropped = 0
            for connection in connections:
                try:
                    connection.send(message)
                except BlockingIOError:
                    pass
                except OSError:
                    dropped += 1
            time.sleep(0.2)
        seconds = time.monotonic() - began
    return Outcome("all 8 dropped", f"{dropped} dropped within {seconds:.0f} s", dropped == 8)


def hanging(port: int, config: Path) -> None:
    """A server one of whose strategies computes for ever, as a defect might."""
    from nabla_agents import Engine
    from nabla_agents.serve import ServeSettings, create_app, serve

    class Endless:
        rule = "objective"

        async def steps(self, search: Any) -> Any:
            while True:
                pass
            yield

        def select(self, pool: Any) -> Any:
            return None

    settings = ServeSettings.read(config, port=port)
    serve(create_app({"tiny": Engine.tiny()}, settings, strategies={"endless": Endless()}), settings)


def hung(server: Server) -> Outcome:
    """The last resort: what hangs all the same is seen from outside, and ends when it is told to."""
    with server.client() as client:
        first = client.get("/health").status_code
        threading.Thread(target=lambda: _quietly(server, says(nabla={"strategy": "endless"})), daemon=True).start()
        seen = _wait(lambda: client.get("/health").status_code == 503, 20)
    server.process.send_signal(signal.SIGTERM)
    ended = _wait(lambda: server.process.poll() is not None, 120)
    ok = first == 200 and seen < 10 and ended <= SHUTDOWN + GRACE
    expected = f"/health 200, then 503; ended {SHUTDOWN} + {GRACE} s after SIGTERM at most"
    return Outcome(expected, f"/health {first}, 503 after {seen:.1f} s; ended after {ended:.1f} s", ok)


def _quietly(server: Server, body: dict[str, Any]) -> None:
    with suppress(httpx.HTTPError):
        server.post(CHAT, body)


def answers(server: Server) -> Outcome:
    response = server.post(CHAT, SMALL, "other")
    return Outcome("200", str(response.status_code), response.status_code == 200)


def ends(server: Server) -> Outcome:
    """SIGTERM amid long answers."""
    connections = long_answers(server, 8)
    _wait(lambda: running(server) >= 8, 30)
    server.process.send_signal(signal.SIGTERM)
    ended = _wait(lambda: server.process.poll() is not None, 120)
    for connection in connections:
        connection.close()
    return Outcome(f"ended {SHUTDOWN} + {GRACE} s after it at most", f"after {ended:.1f} s", ended <= SHUTDOWN + GRACE)


ATTACKS: Final[dict[str, Callable[[Server], Outcome]]] = {
    "twice 24 other schemas": grammars,
    "a small chat beside 8 long answers": starving(8),
    "a small chat beside 4 best-of-8 of long answers": starving(4, times=8, strategy={"name": "best-of-n", "n": 8}),
    "a small chat beside all that another key may ask for": starving(40, times=5),
    "a small chat after a client has left best-of-8": leaving,
    "more requests than the key's rate, of any route": rates,
    "eight clients that read nothing": slow_readers,
    "after all that, a small chat": answers,
    "SIGTERM amid long answers": ends,
}


# ── through an upstream ───────────────────────────────────────────────────────────────────────────────────────────────


def useless(model: str, *statuses: int) -> Callable[[Server, HostileUpstream], Outcome]:
    """A draft that is none: an error in time, in little memory, which holds the event loop for no one."""

    def attack(server: Server, upstream: HostileUpstream) -> Outcome:
        server.post(CHAT, says(model="right"))
        before, began = server.memory_mb, time.perf_counter()
        with server.probed() as probes:
            response = server.post(CHAT, says(model=model, nabla={}))
        seconds, grown = time.perf_counter() - began, server.memory_mb - before
        left = _wait(lambda: upstream.answering == 0, 30)
        ok = response.status_code in statuses and seconds < UPSTREAM + 5 and max(probes) < HELD and grown <= GROWTH_MB
        expected = f"{' or '.join(map(str, statuses))} in {UPSTREAM + 5} s; loop held at most {HELD:g} s; let go in 1 s"
        observed = f"{response.status_code} in {seconds:.2f} s, {grown:.0f} MB more; loop held {max(probes):.2f} s"
        return Outcome(expected, f"{observed}; let go after {left:.2f} s", ok and left < 1)

    return attack


def left_events(server: Server, upstream: HostileUpstream) -> Outcome:
    """Events without end, whose reader leaves."""
    before = server.memory_mb
    with (
        server.client() as client,
        client.stream("POST", CHAT, json=says(model="endless events", stream=True)) as answer,
    ):
        read = next(answer.iter_raw())
    left = _wait(lambda: upstream.answering == 0, 30)
    grown = server.memory_mb - before
    observed = f"{len(read)} bytes read; let go after {left:.2f} s, {grown:.0f} MB more"
    return Outcome(f"let go in 1 s, at most {GROWTH_MB} MB more", observed, left < 1 and grown <= GROWTH_MB)


def silence(server: Server, upstream: HostileUpstream) -> Outcome:
    """All that one key may ask of an upstream that does not answer, and another key's chat through it."""
    alone = small_chat(server, model="right", nabla=None)
    threads = [threading.Thread(target=_quietly, args=(server, says(model="silent"))) for _ in range(120)]
    for thread in threads:
        thread.start()
    _wait(lambda: upstream.answering >= 50, UPSTREAM)
    silent, together = upstream.answering, small_chat(server, model="right", nabla=None)
    for thread in threads:
        thread.join()
    ok = silent >= 50 and together <= max(1.0, 5 * alone)
    return Outcome(
        "at most 1 s, beside 50 and more",
        f"{together:.3f} s ({alone:.3f} s alone), beside {silent} that wait for the upstream",
        ok,
    )


THROUGH: Final[dict[str, Callable[[Server, HostileUpstream], Outcome]]] = {
    "an upstream's answer without end": useless("endless", 502, 504),
    "an upstream's answer of a million levels": useless("nested", 502),
    "an upstream that is silent": useless("silent", 504),
    "an upstream's events without end, whose reader leaves": left_events,
    "a chat through an upstream that is silent to others": silence,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="attacks with this in their name")
    parser.add_argument("--hanging", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hanging:
        hanging(arguments.port, arguments.config)
        return
    console, missed = Console(width=max(150, Console().width)), list[str]()
    table = Table(
        "attack", "expected", "observed", "", title="What one client can do to a server", title_justify="left"
    )

    def took(name: str, outcome: Outcome) -> None:
        table.add_row(name, outcome.expected, outcome.observed, "ok" if outcome.ok else "MISSED")
        if not outcome.ok:
            missed.append(name)

    def wanted(names: Sequence[str]) -> list[str]:
        return [name for name in names if arguments.only in name]

    def tried(name: str, attack: Callable[..., Outcome], *on: Any) -> None:
        try:
            took(name, attack(*on))
        except (httpx.HTTPError, OSError) as e:
            took(name, Outcome("an answer", f"{type(e).__name__}: {e}", ok=False))

    if wanted([*REFUSED, *ATTACKS]):
        with serving(*NABLA) as server:
            for name in wanted([*REFUSED]):
                tried(name, refused, server, *REFUSED[name])
            for name in wanted([*ATTACKS]):
                tried(name, ATTACKS[name], server)
    for name in wanted(["a strategy that computes for ever"]):
        with serving(__file__, "--hanging") as server:
            tried(name, hung, server)
    if wanted([*THROUGH]):
        with HostileUpstream().running() as upstream, serving(*NABLA, "--upstream", upstream.url) as server:
            for name in wanted([*THROUGH]):
                tried(name, THROUGH[name], server, upstream)
    console.print(table)
    if missed:
        sys.exit(f"{len(missed)} not as expected: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
