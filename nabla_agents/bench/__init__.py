"""Strategies × accuracy on the embedded models' test problems, with intervals, controls and the whole ledger."""

from nabla_agents.bench.arms import Arm, choose
from nabla_agents.bench.records import Record, Store
from nabla_agents.bench.run import BenchSettings, run
from nabla_agents.bench.statistics import bootstrap_interval, wilson_interval
from nabla_agents.bench.summary import ArmSummary, summarise, trust
from nabla_agents.bench.tasks import CODE, TASKS, WORDS, Question, Task

__all__ = [
    "CODE",
    "TASKS",
    "WORDS",
    "Arm",
    "ArmSummary",
    "BenchSettings",
    "Question",
    "Record",
    "Store",
    "Task",
    "bootstrap_interval",
    "choose",
    "run",
    "summarise",
    "trust",
    "wilson_interval",
]
