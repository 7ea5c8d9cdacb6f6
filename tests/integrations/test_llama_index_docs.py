"""What docs/llamaindex.md shows is run, in one namespace, on the embedded model."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "llamaindex.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert len(blocks) > 5
    assert namespace["response"].metadata["nabla"]["calls"] == 2
    assert capsys.readouterr().out
