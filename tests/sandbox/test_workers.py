"""Workers die, are shared by threads, and leave nothing behind."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from nabla_agents import ConfigurationError, Execution, Executor, Limits, Program, ProgramError, SandboxError, Status
from nabla_agents.sandbox import Capabilities, backends
from nabla_agents.sandbox.fork import ForkWorker
from nabla_agents.sandbox.observation import Observation
from nabla_agents.sandbox.workers import WorkerPool

RunningIn = Callable[[int, float], list[int]]
SOUND = b'{"status": "ok", "values": []}'


class FakeWorker:
    """A worker whose checks end as told."""

    capabilities = Capabilities("fake", "3", frozenset(), ())

    def __init__(self, *, healthy: bool = True, stdout: bytes = b"") -> None:
        self.healthy, self.stdout, self.stopped, self.asked = healthy, stdout, False, 0

    def alive(self) -> bool:
        return not self.stopped

    def check(self, request: bytes, limits: Limits) -> Observation:
        self.asked += 1
        if self.healthy and b"6 * 7" in request:
            return Observation(b"42\n", SOUND, 0.0)
        return Observation(self.stdout, b"", 0.0)

    def stop(self) -> None:
        self.stopped = True


def light() -> ForkWorker:
    return ForkWorker(packages=())


def test_a_crash_is_the_programs_fault_only_if_the_sandbox_still_works() -> None:
    with WorkerPool(FakeWorker, workers=1) as sound:
        assert sound.run(Program("crash")).status is Status.CRASHED
    with WorkerPool(lambda: FakeWorker(healthy=False), workers=1) as broken:
        done = broken.run(Program("crash"))
    assert (done.status, done.status.judges) == (Status.UNAVAILABLE, False)


def test_without_a_worker_the_status_is_unavailable() -> None:
    workers = [FakeWorker()]

    def start() -> FakeWorker:
        if not workers:
            raise SandboxError("no more")
        return workers.pop()

    first = workers[0]
    with WorkerPool(start, workers=1) as pool:
        first.stop()
        done = pool.run(Program(""))
    assert (done.status, done.backend) == (Status.UNAVAILABLE, "fake")
    assert "no more" in done.detail


def test_a_dead_worker_is_replaced_before_the_next_program() -> None:
    with WorkerPool(light, workers=1) as pool:
        os.kill(pool._idle[0]._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        time.sleep(0.2)
        assert pool.run(Program("print(6 * 7)")).stdout == "42\n"
        assert pool.restarts == 1


def test_a_program_whose_worker_is_killed_from_outside_is_run_once_more(running_in: RunningIn) -> None:
    with WorkerPool(light, workers=1) as pool:
        pid = pool._idle[0]._process.pid  # type: ignore[attr-defined]
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        done = pool.run(Program("import time; time.sleep(0.6); print(6 * 7)"), Limits(wall_seconds=10))
        assert (done.status, done.stdout, pool.restarts) == (Status.OK, "42\n", 1)
        assert running_in(pid, 5) == []


@pytest.mark.parametrize("victim", ["the worker", "the program"])
def test_a_program_that_is_killed_from_outside_twice_is_not_judged(running_in: RunningIn, victim: str) -> None:
    """It is not at fault, so it has not crashed. Without limits a program cannot do that: it can signal nobody."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.2):
            for group in [worker._process.pid for worker in made if worker.alive()]:
                for process in running_in(group, 0):
                    if (process == group) is (victim == "the worker"):
                        os.kill(process, signal.SIGKILL)

    made: list[ForkWorker] = []

    def start() -> ForkWorker:
        made.append(light())
        return made[-1]

    with WorkerPool(start, workers=1) as pool:
        killer = threading.Thread(target=kill)
        killer.start()
        done = pool.run(Program("import time; time.sleep(8)"), Limits(wall_seconds=10))
        ended.set()
        killer.join()
        assert (done.status, done.status.judges) == (Status.UNAVAILABLE, False)
        assert done.detail == f"{victim} was killed from outside (SIGKILL), and so was the one before it"
        assert pool.run(Program("print(6 * 7)")).stdout == "42\n"


def test_a_killed_worker_is_an_unjudged_answer() -> None:
    from nabla_agents import PythonTests, Rollout

    killed = Observation(b"", b"", 0.1, Status.UNAVAILABLE, "the worker was killed from outside (SIGKILL)")
    worker = FakeWorker()
    worker.check = lambda request, limits: killed  # type: ignore[method-assign]
    with WorkerPool(lambda: worker, workers=1) as pool:
        [score] = PythonTests("assert f(1) == 2", executor=pool).score([Rollout.from_text("?", "def f(x): return 2")])
    assert not score.judged
    assert "killed from outside" in score.explanation


def test_a_zygote_that_does_not_answer_is_killed_with_its_program(running_in: RunningIn) -> None:
    """Stopped, it cannot obey; the program still ends about a second after its limit."""
    with WorkerPool(light, workers=1) as pool:
        pid = pool._idle[0]._process.pid  # type: ignore[attr-defined]
        threading.Timer(0.1, os.kill, (pid, signal.SIGSTOP)).start()
        done = pool.run(Program("while True: pass"), Limits(wall_seconds=0.5))
        assert done.status is Status.TIMEOUT
        assert done.wall_seconds < 3
        assert running_in(pid, 5) == []
        assert pool.run(Program("print(6 * 7)")).stdout == "42\n"


def test_eight_threads_each_get_their_own_result(fork: Executor) -> None:
    wrong: list[Execution] = []

    def work(thread: int) -> None:
        for i in range(12):
            number = 1000 * thread + i
            done = fork.run(Program("def f(x): print(x); return x * 2", entry="f", calls=[[number]]))
            if (done.stdout, done.values) != (f"{number}\n", (2 * number,)):
                wrong.append(done)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_run_many_keeps_the_order(fork: Executor) -> None:
    done = fork.run_many([Program(f"import time; time.sleep({0.1 * (i % 3)}); print({i})") for i in range(6)])
    assert [execution.stdout for execution in done] == [f"{i}\n" for i in range(6)]
    assert fork.run_many([]) == []


def test_a_pool_outlives_the_thread_that_made_it() -> None:
    """PDEATHSIG on the zygote would kill it with that thread."""
    made: list[WorkerPool] = []
    thread = threading.Thread(target=lambda: made.append(WorkerPool(light, workers=1)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with made[0] as pool:
        assert pool.run(Program("print(6 * 7)")).stdout == "42\n"
        assert pool.restarts == 0


def test_timers_and_handlers_of_the_host_are_left_alone(fork: Executor) -> None:
    before = {number: signal.getsignal(number) for number in signal.Signals}
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        fork.run(Program("while True: pass"), Limits(wall_seconds=0.2))
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
        assert {number: signal.getsignal(number) for number in signal.Signals} == before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_killed_host_leaves_nothing_running(orphans: Callable[[str], list[int]]) -> None:
    """SIGKILL in mid-check: the zygote sees the end of its socket, the child that of its parent."""
    assert orphans("fork") == []


def test_a_closed_executor_refuses_and_leaves_no_process_or_file(running_in: RunningIn) -> None:
    files = len(os.listdir("/proc/self/fd"))
    pool = WorkerPool(light, workers=2)
    group = pool._idle[0]._process.pid  # type: ignore[attr-defined]
    pool.run_many([Program("print(1)")] * 4)
    pool.close()
    pool.close()
    assert running_in(group, 5) == []
    assert len(os.listdir("/proc/self/fd")) == files
    with pytest.raises(SandboxError, match="closed"):
        pool.run(Program(""))


@pytest.mark.untyped
def test_something_that_is_no_program_is_refused(fork: Executor) -> None:
    with pytest.raises(ProgramError):
        fork.run("print(1)")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_an_executor_of_another_process_is_refused(fork: Executor) -> None:
    """A forked host shares the sockets of its parent: answers would go to the wrong one."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            fork.run(Program("print(1)"))
        except SandboxError:
            os.write(write, b"refused")
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        assert answer.read() == b"refused"
    os.waitpid(child, 0)
    assert fork.run(Program("print(6 * 7)")).stdout == "42\n"


def test_the_same_program_is_run_once(fork: Executor) -> None:
    inner = FakeWorker(stdout=b"x")
    with backends.CachedExecutor(WorkerPool(lambda: inner, workers=1), 2) as cached:
        cached.run(Program("print(6 * 7)"))
        assert cached.run(Program("print(6 * 7)")).stdout == "42\n"
        assert inner.asked == 1
        cached.run(Program("print(6 * 7)"), Limits(output_bytes=10))
        assert inner.asked == 2, "other limits are another run"
        cached.run(Program("crash"))
        asked = inner.asked
        cached.run(Program("crash"))
        assert inner.asked > asked, "a crash may be luck"
        cached.run(Program("import time; 6 * 7"))
        asked = inner.asked
        cached.run(Program("import time; 6 * 7"))
        assert inner.asked > asked, "the clock changes"
        statuses = Counter(done.stdout for done in cached.run_many([Program("print(6 * 7) # 1")] * 3))
        assert statuses == {"42\n": 3}


def test_a_sandbox_that_does_not_contain_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test sees that nothing works, or that a program could be anywhere; no other executor takes its place."""
    monkeypatch.setattr(backends, "BACKENDS", {"fake": lambda: FakeWorker(healthy=False)})
    with pytest.raises(SandboxError, match="harmless program"):
        backends.make_executor()
    monkeypatch.setattr(backends, "BACKENDS", {"fake": lambda: FakeWorker(stdout=b"REACHED\n")})
    with pytest.raises(SandboxError, match="sockets.*processes and threads.*endless loop.*memory"):
        backends.make_executor()
    [diagnosis] = backends.diagnosis()
    assert (diagnosis.backend, diagnosis.active) == ("fake", False)


@pytest.mark.untyped
@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": -3}, {"workers": "2"}, {"remembered": -1}], ids=repr)
def test_numbers_that_are_none_are_refused_before_anything_starts(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"make_executor {next(iter(options))}"):
        backends.make_executor(**options)


def test_the_diagnosis_names_the_layers() -> None:
    active = {found.backend: found for found in backends.diagnosis() if found.active}
    assert {"seccomp", "no_new_privs"} <= set(active["fork"].layers)
    assert active["fork"].why == ""
