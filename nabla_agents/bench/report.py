"""What a comparison leaves behind: JSON, a Markdown table and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nabla_agents.bench.arms import Arm
from nabla_agents.bench.records import Record
from nabla_agents.bench.results import Results, write
from nabla_agents.bench.table import markdown


@dataclass(frozen=True)
class Report:
    """How results are told: the command that measures them anew, the settings, which arms are compared in pairs, whose
    course is drawn, and notes for the reader.
    """

    command: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    compare: Sequence[tuple[str, str]] = ()
    curves: Sequence[str] = ("*",)
    notes: str = ""

    def write(self, records: Sequence[Record], arms: Sequence[Arm], folder: Path) -> list[str]:
        """The names of the files written: `results.json`, `table.md`, and pictures where matplotlib is installed."""
        found = Results.of(records, self.compare)
        content = found.as_json(arms, self.settings)
        write(content, folder)
        (folder / "table.md").write_text(markdown(found, self.command, self.notes), encoding="utf-8")
        written = ["results.json", "table.md"]
        if not self.hint:
            from nabla_agents.bench import plots

            written += [file.name for file in plots.draw(content, folder, curves=self.curves)]
        return written

    @property
    def hint(self) -> str:
        """What is missing for the pictures; empty if nothing is."""
        return "" if find_spec("matplotlib") else "For pictures: pip install 'nabla-agents[plots]'"
