"""Engines on a Ray cluster: `application` for Ray Serve, `complete_dataset` for whole files on Ray Data.

Needs the extra `ray`; `complete_dataset` on this machine alone does not.
"""

from nabla_agents.scale.dataset import DatasetSettings, complete_dataset, on_ray
from nabla_agents.scale.engines import engine_maker
from nabla_agents.scale.service import ReplicaSettings, app, application

__all__ = ["DatasetSettings", "ReplicaSettings", "app", "application", "complete_dataset", "engine_maker", "on_ray"]
