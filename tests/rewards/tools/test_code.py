"""Where the Python of a completion is found."""

import time

import pytest

from nabla_agents.rewards.tools.code import line_span, python_code
from nabla_agents.rewards.tools.fences import fenced_blocks


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("print(1)", "print(1)"),
        ("Sure, here (as asked):\nx = 1\nprint(x)", "x = 1\nprint(x)"),
        ("for example, this:\ndef f(): ...", "def f(): ..."),
        ("from here on\nfrom math import pi", "from math import pi"),
        ("no code", "no code"),
        ("a\n```python\nx\n```\nb\n```py\ny\n```", "y\n"),
        ("```python\nx\n```\n```text\ny\n```", "x\n"),
        ("````python\n```\nx\n````", "```\nx\n"),  # a longer fence holds a shorter one
        ("  ```python\n  x\n  ```", "  x\n"),
        ("````markdown\nSo:\n```python\nx\n```\n````\nDone.", "x\n"),
        ("```python\nx\n    ```\n    y\n    ```\nz\n```", "x\n    ```\n    y\n    ```\nz\n"),  # in a docstring
        ("```python\nx", "x"),
        ("```text\nx\n```", None),
        ("```python\n\n```", None),
        ("```x``` it is:\n```python\ny\n```", "y\n"),  # closed in its line: no fence
        ("", None),
        (" \n", None),
    ],
)
def test_the_code_of_a_completion(text: str, code: str | None) -> None:
    found = python_code(text)
    assert (None if found is None else found.text) == code
    assert found is None or text[found.start : found.start + len(found.text)] == found.text


def test_the_block_that_defines_the_entry_is_taken() -> None:
    text = "```\ndef g(): ...\n```\n```\ndef f(): ...\n```\n```\nf(1)\n```"
    typed = "```\nf: object = print\n```\n```\nf(1)\n```"
    assert getattr(python_code(typed, "f"), "text", None) == "f: object = print\n"
    assert [getattr(python_code(text, entry), "text", None) for entry in ("f", "g", "h", None)] == [
        "def f(): ...\n",
        "def g(): ...\n",
        "f(1)\n",
        "f(1)\n",
    ]


def test_a_line_is_found_in_the_completion() -> None:
    text = "so:\n```python\ndef f():\n    return  1 \n\n```"
    code = python_code(text)
    assert code is not None
    places = [line_span(code, line) for line in (1, 2, 3, 4, 0, 99, None)]
    assert [place and text[slice(*place)] for place in places] == [
        "def f():",
        "return  1",
        None,
        None,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    "piece",
    [
        "```\n",
        "```python\n",
        "`",
        "~~~ ",
        "def f",
        "x = ",
        "x(",
        "x()",
        "if ",
        " \n",
        "a.",
        "\n",
        "async\n",
        "def\n",
        "```md\n",
        "````md\n```md\n",
    ],
)
def test_hostile_text_of_100_kb_is_searched_in_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    started = time.process_time()
    for whole in (text, f"```python\nx\n{text}"):
        python_code(whole, "f")
        fenced_blocks(whole)
    assert time.process_time() - started < 5
