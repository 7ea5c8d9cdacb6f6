"""A trace as one HTML page: no script, no network, and everything that a model wrote escaped."""

from nabla_agents.report.page import fragment, page

__all__ = ["fragment", "page"]
