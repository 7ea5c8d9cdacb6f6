"""What a search shows while it runs and when it ends: a live view, plain lines, or one JSON object."""

from nabla_agents.live.views import JsonView, LiveView, PlainView, View, watch

__all__ = ["JsonView", "LiveView", "PlainView", "View", "watch"]
