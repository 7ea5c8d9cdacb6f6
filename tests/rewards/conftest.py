"""The sandboxes that the rewards share, closed when the tests of this folder are over."""

from collections.abc import Iterator

import pytest

from nabla_agents.errors import SandboxError
from nabla_agents.rewards.tools import executors
from nabla_agents.sandbox import Executor


@pytest.fixture(scope="session")
def programs() -> Iterator[Executor]:
    """Runs programs; the tests of a machine without a sandbox are skipped."""
    yield from _shared(executors.programs)


@pytest.fixture(scope="session")
def math_checker() -> Iterator[Executor]:
    """Holds math-verify."""
    pytest.importorskip("math_verify")
    yield from _shared(executors.math_checker)


def _shared(make: executors.SharedExecutor) -> Iterator[Executor]:
    try:
        executor = make()
    except SandboxError as e:
        pytest.skip(str(e))
    yield executor
    executor.close()
