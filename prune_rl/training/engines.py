"""Engines: they advance the training of S seeds by some updates, with environments on the device or on the host."""

from prune_rl.training.device_engine import DeviceEngine as DeviceEngine
from prune_rl.training.device_engine import Runner as Runner
from prune_rl.training.device_engine import init_runner as init_runner
from prune_rl.training.device_engine import iterate as iterate
from prune_rl.training.device_engine import make_chunk as make_chunk
from prune_rl.training.engine import Engine as Engine
from prune_rl.training.engine import seed_keys as seed_keys
from prune_rl.training.host_engine import HostEngine as HostEngine
from prune_rl.training.host_engine import Learners as Learners
from prune_rl.training.host_engine import derived_seed as derived_seed
from prune_rl.training.over_seeds import over_seeds as over_seeds
