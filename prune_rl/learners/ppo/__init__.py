"""Proximal policy optimisation: `init`, `act` and `update` over a `State`, with hyperparameters in `Config`."""

from prune_rl.learners.actions import action_noise as action_noise
from prune_rl.learners.actor_critic import all_groups as all_groups
from prune_rl.learners.actor_critic import prunable_groups as prunable_groups
from prune_rl.learners.optimizer import learning_rate as learning_rate
from prune_rl.learners.ppo.config import Config as Config
from prune_rl.learners.ppo.learner import VMAP_AXES as VMAP_AXES
from prune_rl.learners.ppo.learner import State as State
from prune_rl.learners.ppo.learner import act as act
from prune_rl.learners.ppo.learner import environment_actions as environment_actions
from prune_rl.learners.ppo.learner import init as init
from prune_rl.learners.ppo.learner import prepare as prepare
from prune_rl.learners.ppo.learner import shrink as shrink
from prune_rl.learners.ppo.learner import squashes as squashes
from prune_rl.learners.ppo.learner import update as update
from prune_rl.learners.ppo.surrogate import Batch as Batch
from prune_rl.learners.ppo.surrogate import actor_distribution as actor_distribution
from prune_rl.learners.ppo.surrogate import loss as loss
from prune_rl.learners.ppo.surrogate import optimizer as optimizer
from prune_rl.learners.ppo.surrogate import values as values
from prune_rl.learners.rollout import Rollout as Rollout
