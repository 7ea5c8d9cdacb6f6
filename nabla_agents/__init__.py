"""Gradient-refined reasoning that an agent can call as one step of a larger chain.

Importing this package is light: each name of `__init__.pyi` is imported when it is first used, torch with the first
that needs it. By then its threads are told to share cores with those of other processes.
"""

import lazy_loader

from nabla_agents.models.threads import share_cores

share_cores()
__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
