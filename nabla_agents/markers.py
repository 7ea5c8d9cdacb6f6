"""The markers in a completion's text around reasoning and tool calls, as most open models write them."""

from typing import Final

CALL_BEGIN: Final = "<tool_call>"
CALL_END: Final = "</tool_call>"
REASONING_BEGIN: Final = "<think>"
REASONING_END: Final = "</think>"
