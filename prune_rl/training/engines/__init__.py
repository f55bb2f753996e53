"""Engines: they advance the training of S seeds by some updates, with environments on the device or on the host."""

from prune_rl.training.engines.device import DeviceEngine as DeviceEngine
from prune_rl.training.engines.device import Runner as Runner
from prune_rl.training.engines.device import init_runner as init_runner
from prune_rl.training.engines.device import iterate as iterate
from prune_rl.training.engines.device import make_chunk as make_chunk
from prune_rl.training.engines.engine import Engine as Engine
from prune_rl.training.engines.engine import seed_keys as seed_keys
from prune_rl.training.engines.host import HostEngine as HostEngine
from prune_rl.training.engines.host import Learners as Learners
from prune_rl.training.engines.host import derived_seed as derived_seed
