"""Learners: pure functions over a train state that carries masks. They know no environment."""

# So that both are attributes of this package, from which the names prune_rl.ppo and prune_rl.sac are loaded.
from prune_rl.learners import ppo as ppo
from prune_rl.learners import sac as sac
