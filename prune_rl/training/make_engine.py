"""From a run's configuration to the engine that trains it, and what is refused before."""

from __future__ import annotations

from typing import Any

import jax

from prune_rl.envs.task import Task
from prune_rl.envs.vector import make_vector
from prune_rl.export.files import MAX_TENSORS_BYTES
from prune_rl.learners.registry import learner_of
from prune_rl.processes.agreement import check_alike
from prune_rl.processes.group import ALONE, ProcessGroup
from prune_rl.training.config import Config
from prune_rl.training.engines import DeviceEngine, Engine, HostEngine
from prune_rl.training.engines.env_devices import EnvDevices
from prune_rl.training.members import members_of

# Updates in one compiled call: enough that a call's overhead vanishes, few enough that progress shows.
CHUNK = 25


def check_engine(config: Config, task: Task) -> None:
    """Raise ``ValueError`` for what cannot be trained or saved.

    That is what ``make_engine`` would refuse (a missing package, actions unfit for the learner, environments that the
    devices cannot share equally) and an actor too large for a policy file.
    """
    task.check()
    learner = config.learner
    if config.shard_envs:
        EnvDevices.choose(learner.num_envs)
    state = jax.eval_shape(lambda: learner_of(learner).init(jax.random.key(0), learner, task.spec))
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params["actor"]))
    if size + 8 * task.spec.observation_size > MAX_TENSORS_BYTES:
        raise ValueError(
            f"an actor of hidden widths {learner.hidden} takes {size} bytes, more than the {MAX_TENSORS_BYTES} that a "
            "policy file may have: choose smaller ones (--hidden)"
        )


def check_processes(group: ProcessGroup, config: Config, *numbers: int) -> None:
    """Raise ``ValueError`` if the processes cannot train a run together.

    ``numbers``: of the seeds of each program, which all processes share equally.
    """
    check_alike(group, {**config.to_json(), "jax": jax.__version__, "accelerator": jax.default_backend()})
    for number in numbers:
        group.share(number, "seeds")


def make_engine(config: Config, task: Task, *others: Config, group: ProcessGroup = ALONE) -> Engine[Any]:
    """The engine for the backend of a resolved configuration, with fresh learners and environments.

    ``others``: runs that train in the same program, see ``share_program``. ``group``: the processes that share the
    seeds.
    """
    runs = (config, *others)
    seeds, members = [seed for run in runs for seed in run.all_seeds], members_of(runs)
    if config.reset_every is None:
        return DeviceEngine(
            task.jax_env(),
            seeds,
            config.learner,
            CHUNK,
            members=members,
            group=group,
            shard_envs=config.shard_envs,
        )
    return HostEngine(
        lambda: make_vector(task, config.learner.num_envs),
        seeds,
        config.learner,
        config.reset_every,
        members=members,
        group=group,
    )
