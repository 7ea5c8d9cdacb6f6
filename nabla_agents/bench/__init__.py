"""Strategies × rewards × budgets × seeds: accuracy with intervals, controls and the whole ledger."""

from nabla_agents.bench.arms import Arm, choose
from nabla_agents.bench.config import BenchConfig, StrategyChoice
from nabla_agents.bench.controls import ControlledReward, Flipped, OthersRemarks, Shuffled, Unlocated, blur
from nabla_agents.bench.records import Record, Store
from nabla_agents.bench.report import Report
from nabla_agents.bench.run import Bench, BenchSettings, Job, Measured
from nabla_agents.bench.summary import (
    ArmSummary,
    Comparison,
    Results,
    bootstrap_interval,
    compare,
    summarise,
    trust,
    wilson_interval,
)
from nabla_agents.bench.tasks import CODE, TASKS, WORDS, FileTask, Question, Task, file_task
from nabla_agents.bench.workers import run

__all__ = [
    "CODE",
    "TASKS",
    "WORDS",
    "Arm",
    "ArmSummary",
    "Bench",
    "BenchConfig",
    "BenchSettings",
    "Comparison",
    "ControlledReward",
    "FileTask",
    "Flipped",
    "Job",
    "Measured",
    "OthersRemarks",
    "Question",
    "Record",
    "Report",
    "Results",
    "Shuffled",
    "Store",
    "StrategyChoice",
    "Task",
    "Unlocated",
    "blur",
    "bootstrap_interval",
    "choose",
    "compare",
    "file_task",
    "run",
    "summarise",
    "trust",
    "wilson_interval",
]
