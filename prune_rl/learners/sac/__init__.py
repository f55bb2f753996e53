"""Soft actor-critic: `init`, `act` and `update` over a `State`, with hyperparameters in `Config`."""

from prune_rl.learners.actions import action_noise as action_noise
from prune_rl.learners.actor_critic import all_groups as all_groups
from prune_rl.learners.actor_critic import prunable_groups as prunable_groups
from prune_rl.learners.rollout import Rollout as Rollout
from prune_rl.learners.sac.config import Config as Config
from prune_rl.learners.sac.learner import update as update
from prune_rl.learners.sac.state import VMAP_AXES as VMAP_AXES
from prune_rl.learners.sac.state import Networks as Networks
from prune_rl.learners.sac.state import State as State
from prune_rl.learners.sac.state import act as act
from prune_rl.learners.sac.state import acting as acting
from prune_rl.learners.sac.state import extend as extend
from prune_rl.learners.sac.state import init as init
from prune_rl.learners.sac.state import shrink as shrink
from prune_rl.learners.sac.state import squashes as squashes
from prune_rl.learners.sac.values import LOG_STD_RANGE as LOG_STD_RANGE
