"""LangChain's own test suites (`langchain_tests`), in two runs that the documentation keeps apart.

scripted: a model that follows a script, under the real engine: templates, grammars, parsing, streaming and ledger are
real. embedded: the embedded model, for everything that needs no understanding. And with `-m real` a third one, which is
Qwen2.5-Coder-0.5B from the folder of `make real`.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ChatModelIntegrationTests, ToolsIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests, ToolsUnitTests

from langchain_nabla import ChatNabla, NablaSolve
from nabla_agents import ArithmeticSteps, Budget, Engine
from nabla_agents.testing import scripted_model

from .conftest import assistant

FOLDER = Path(os.environ.get("NABLA_MODELS") or Path.home() / ".cache" / "nabla-models")
FILE = FOLDER / "coder-0.5b.gguf"
table: Any = importlib.import_module("langchain_core.load.load")  # the name stands for a function too
ENGINE: dict[str, Engine] = {}
UNDERSTANDING = {
    "test_tool_calling",
    "test_tool_calling_async",
    "test_tool_calling_with_no_arguments",
    "test_agent_loop",
    "test_unicode_tool_call_integration",
    "test_bind_runnables_as_tools",
    "test_structured_output",
    "test_structured_output_async",
    "test_structured_output_pydantic_2_v1",
    "test_structured_output_optional_param",
    "test_json_mode",
}
"""Tests that look at what a model says in its calls and objects, or that it ends them: the embedded one knows word
problems only, and nothing is closed in its place.
"""


def scripted_engine() -> Engine:
    if "scripted" not in ENGINE:
        model = scripted_model(assistant)
        ENGINE["scripted"] = Engine(model=model, reward=ArithmeticSteps(), budget=Budget(rollouts=2))
    return ENGINE["scripted"]


def embedded_engine() -> Engine:
    if "embedded" not in ENGINE:
        ENGINE["embedded"] = Engine.tiny(reward=ArithmeticSteps(), budget=Budget(rollouts=2))
    return ENGINE["embedded"]


class Chat:
    """What the suites ask about the class."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatNabla

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """Without a key and without retries: nothing is asked of a server."""
        return {"temperature": 0, "max_tokens": 100, "timeout": 60, "stop": []}


class TestUnit(Chat, ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _known_to_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`load(allowed_objects="all")` means the classes in a table of LangChain's own; ours is put into it."""
        path = tuple(ChatNabla.lc_id())
        monkeypatch.setitem(table.ALL_SERIALIZABLE_MAPPINGS, path, path)
        monkeypatch.setattr(table, "_default_class_paths_cache", {})

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        """There is no setting that could come from the environment; a model is made without any."""
        return {"NABLA_IS_LOCAL": "1"}, {"model": "tiny"}, {"model": "tiny"}


class TestScripted(Chat, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": scripted_engine(), "rollouts": 2}  # of the model that replaces it by name, too

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "tiny"

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["reasoning_output"], "stream": ["reasoning_output"]}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        llm = ChatNabla(engine=scripted_engine())
        if not stream:
            return llm.invoke("Think, then greet.")
        full: AIMessageChunk | None = None
        for chunk in llm.stream("Think, then greet."):
            full = chunk if full is None else full + chunk
        assert full is not None
        return full


class TestEmbedded(Chat, ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _no_understanding(self, request: pytest.FixtureRequest) -> None:
        if request.node.originalname in UNDERSTANDING:
            pytest.skip("it expects a model that has learned to write calls and JSON")

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny"}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {}

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "tiny"


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:The engine has no reward")
class TestReal(TestEmbedded):
    """A model that has learned to write calls and JSON, with no parameter but its name."""

    @pytest.fixture(autouse=True)
    def _no_understanding(self) -> None:
        if not FILE.exists():
            pytest.skip(f"there is no {FILE}")

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(FILE), "dtype": "bfloat16"}

    @property
    def model_override_value(self) -> str:
        return str(FILE)


class Tool:
    """What the suites ask about the tool."""

    @property
    def tool_constructor(self) -> type[BaseTool]:
        return NablaSolve

    @property
    def tool_constructor_params(self) -> dict[str, Any]:
        return {"engine": scripted_engine()}

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"problem": "What is 2 + 3?"}


class TestToolUnit(Tool, ToolsUnitTests):
    pass


class TestTool(Tool, ToolsIntegrationTests):
    pass


class TestToolEmbedded(Tool, ToolsIntegrationTests):
    @property
    def tool_constructor_params(self) -> dict[str, Any]:
        return {"engine": embedded_engine(), "max_tokens": 40}
