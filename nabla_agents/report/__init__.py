"""What a search did, for people: one wording of steps and costs, as an HTML page, on a terminal, and in plain lines."""

from nabla_agents.report.html import fragment, page
from nabla_agents.report.terminal import JsonView, LiveView, PlainView, View

__all__ = ["JsonView", "LiveView", "PlainView", "View", "fragment", "page"]
