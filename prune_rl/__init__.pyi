# The public names, each with the module it is loaded from on first use. `__init__.py` reads this file.

from .dependency.activations import activations as activations
from .dependency.compaction import compact as compact
from .dependency.compaction import compact_carry as compact_carry
from .dependency.compaction import compact_function as compact_function
from .dependency.compaction import expand as expand
from .dependency.find_groups import find_groups as find_groups
from .dependency.groups import NeuronGroup as NeuronGroup
from .dependency.groups import NeuronGroups as NeuronGroups
from .dependency.summary import explain as explain
from .export.export_policy import export_policy as export_policy
from .export.policy import Policy as Policy
from .export.policy import load_policy as load_policy
from .export.policy import save_policy as save_policy
from .learners import ppo as ppo
from .learners import sac as sac
from .mask_file import load_masks as load_masks
from .mask_file import save_masks as save_masks
from .pruning.brain_surgeon import refit as refit
from .pruning.brain_surgeon import surgeon_importance as surgeon_importance
from .pruning.importance import fisher_importance as fisher_importance
from .pruning.importance import magnitude_importance as magnitude_importance
from .pruning.importance import output_importance as output_importance
from .pruning.importance import random_importance as random_importance
from .pruning.importance import taylor_importance as taylor_importance
from .pruning.isomorphism import isomorphic_classes as isomorphic_classes
from .pruning.lamp import lamp_scores as lamp_scores
from .pruning.layer_norm import layer_norm as layer_norm
from .pruning.mask_schedule import Schedule as Schedule
from .pruning.mask_schedule import cubic_sparsity as cubic_sparsity
from .pruning.masks import apply_masks as apply_masks
from .pruning.masks import count as count
from .pruning.masks import init_masks as init_masks
from .pruning.ranking import update_masks as update_masks
from .pruning.shares import shares as shares
from .pruning.shrinking import shrink as shrink
from .pruning.transforms.dynamic_pruning import dynamic_pruning as dynamic_pruning
from .pruning.transforms.dynamic_pruning import masks_of as masks_of
from .pruning.transforms.group_sparse import group_sparse as group_sparse
from .pruning.transforms.scale_by_width import scale_by_width as scale_by_width
from .spaces import Box as Box
from .spaces import Discrete as Discrete
from .spaces import Spec as Spec

__version__: str
