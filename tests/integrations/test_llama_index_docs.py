"""What docs/llamaindex.md shows is run, in one namespace, on the embedded model."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "llamaindex.md"


@pytest.fixture
def loop() -> Iterator[None]:
    """An event loop for LlamaIndex, which would make one and leave it open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


@pytest.mark.usefixtures("loop")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert len(blocks) > 5
    assert namespace["response"].metadata["nabla"]["calls"] == 2
    assert capsys.readouterr().out
