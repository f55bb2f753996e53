"""Reinforcement-learning policies that are pruned while they train, and the transformations that prune them.

Names are imported on first use, as listed in `__init__.pyi`: ``import prune_rl`` and ``prune_rl.load_policy`` need
neither JAX nor Gymnasium.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
