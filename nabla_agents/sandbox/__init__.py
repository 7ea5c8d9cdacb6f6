"""Runs Python that nobody has read. Its output is a claim: expected answers stay in the host and are compared there."""

from nabla_agents.sandbox.backends import Diagnosis, diagnosis, make_executor
from nabla_agents.sandbox.building import build as build_wasm
from nabla_agents.sandbox.execution import Execution, Status
from nabla_agents.sandbox.executor import Capabilities, Executor
from nabla_agents.sandbox.program import Limits, Program

__all__ = [
    "Capabilities",
    "Diagnosis",
    "Execution",
    "Executor",
    "Limits",
    "Program",
    "Status",
    "build_wasm",
    "diagnosis",
    "make_executor",
]
