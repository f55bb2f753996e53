"""The compact policy as files that other programs run; imports neither JAX nor Gymnasium."""

from prune_rl.export.activations import ACTIVATIONS
from prune_rl.export.files import PolicyFileError
from prune_rl.export.latency import measure_latency
from prune_rl.export.policy import Policy, load_policy, save_policy

__all__ = ["ACTIVATIONS", "Policy", "PolicyFileError", "load_policy", "measure_latency", "save_policy"]
