"""Shared settings: no network at all, and every annotation of nabla_agents (tensor shapes too) checked at run time."""

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jaxtyping
import pytest

jaxtyping.install_import_hook("nabla_agents", "beartype.beartype")


@pytest.fixture(autouse=True)
def _annotations_checked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Off for a test marked `untyped`: one that passes a wrong type on purpose, and expects our own error for it."""
    jaxtyping.config.update("jaxtyping_disable", request.node.get_closest_marker("untyped") is not None)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
