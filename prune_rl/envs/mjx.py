"""Hopper-v3 and Walker2d-v3 in JAX: Gymnasium's tasks on MuJoCo MJX, for accelerators.

Model files are those of the installed Gymnasium, and rewards, terminations and resets those of its v4 classes, which
are v3's on current MuJoCo bindings. MuJoCo is imported when an environment is made, not before.

On a CPU, MuJoCo's own C code is an order of magnitude faster than MJX: there, prefer the Gymnasium backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.resources
import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import struct

from prune_rl.envs.autoreset import JaxEnv
from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.spaces import Box, Spec

FRAME_SKIP = 4  # simulation steps of 0.002 s per action
RESET_RANGE = 5e-3  # of each position (m, rad) and velocity (m/s, rad/s), around the model's own start
HEALTHY_REWARD = 1.0
CONTROL_COST = 1e-3  # per squared action component
VELOCITY_CLIP = 10.0  # in observations
TIME_LIMIT = 1000

# Under vmap every solver iteration runs all of its line search, and all environments wait for the slowest. More than
# these (the models ask for 100 and 50) changed no result beyond rounding, and fewer began to.
SOLVER_ITERATIONS = 10
LINE_SEARCH_ITERATIONS = 6

# The classical Runge-Kutta method of order 4: where stages are evaluated, and what they weigh in the sum.
RK4_NODES = (0.0, 0.5, 0.5, 1.0)
RK4_WEIGHTS = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@dataclasses.dataclass(frozen=True)
class Walker:
    """What distinguishes one walker from another.

    Attributes:
        model_file: in Gymnasium's ``envs/mujoco/assets``.
        z_range: metres, heights of the torso between which (exclusively) the walker is healthy.
        angle_range: radians, the same for the torso's pitch.
        state_limit: what the angles, the joint angles and all velocities have to stay below in magnitude.
    """

    model_file: str
    z_range: tuple[float, float]
    angle_range: tuple[float, float]
    state_limit: float


HOPPER = Walker("hopper.xml", (0.7, math.inf), (-0.2, 0.2), 100.0)
WALKER2D = Walker("walker2d.xml", (0.8, 2.0), (-1.0, 1.0), math.inf)
WALKERS = {"Hopper-v3": HOPPER, "Walker2d-v3": WALKER2D, "Walker2D-v3": WALKER2D}


@struct.dataclass
class MjxState:
    """State of one environment: all of MuJoCo's that the next step depends on.

    Attributes:
        qpos: float32[nq], metres and radians; the first one is the distance walked.
        qvel: float32[nv], metres and radians per second.
        qacc: float32[nv], the last acceleration, from which the constraint solver starts.
        steps: int32 scalar, steps since the reset.
    """

    qpos: jax.Array
    qvel: jax.Array
    qacc: jax.Array
    steps: jax.Array


_Motion = tuple[jax.Array, jax.Array, jax.Array]  # qpos, qvel, qacc
_Stage = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # qvel and qacc at the last node; sums of both


class _Physics(NamedTuple):
    """A model on the host: constants of a jitted step, on whichever device that runs."""

    model: Any
    data: Any
    forward: Callable[[Any, Any], Any]
    start: npt.NDArray[np.float32]
    timestep: float
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class MjxEnv:
    """One of Gymnasium's planar walkers, simulated by MJX in float32.

    From the same state, an episode follows Gymnasium's, computed in float64, for as long as contacts do not amplify
    the difference. Functions are for one environment; ``jax.vmap`` them.
    """

    walker: Walker
    time_limit: int = TIME_LIMIT

    @property
    def spec(self) -> Spec:
        """All positions but the distance walked, and all velocities; one torque per joint."""
        physics = _physics(self.walker.model_file)
        low, high = (tuple(float(bound) for bound in bounds) for bounds in (physics.low, physics.high))
        return Spec(2 * physics.start.size - 1, Box(low, high, (len(low),)))

    def reset(self, key: jax.Array) -> tuple[MjxState, jax.Array]:
        """Start an episode: the model's own start, with each position and velocity off by at most 0.005.

        Returns:
            The state, and the observation, float32[D].
        """
        start = jnp.asarray(_physics(self.walker.model_file).start)
        noise = jax.random.uniform(key, (2, start.size), jnp.float32, -RESET_RANGE, RESET_RANGE)
        state = MjxState(start + noise[0], noise[1], jnp.zeros_like(start), jnp.int32(0))
        return state, _observe(state)

    def step(
        self, env_state: MjxState, action: jax.Array
    ) -> tuple[MjxState, jax.Array, jax.Array, jax.Array, jax.Array]:
        """Hold an action for 0.008 s. Pure and deterministic; it does not reset.

        Args:
            env_state: state of one environment.
            action: float32[nu], clipped to the bounds of ``spec.action`` before anything else, as
                ``prune_rl.envs.gymnasium_adapter`` does for Gymnasium; so the control cost is that of the
                clipped action.

        Returns:
            The new state; the observation, float32[D]; the reward, float32, velocity (m/s) + 1 − 0.001·‖action‖²,
            of which the 1 is paid in the step that ends the episode, too; terminated, bool, whether the walker has
            left its healthy range (or is NaN); truncated, bool, whether the time limit is reached.
        """
        physics = _physics(self.walker.model_file)
        action = jnp.clip(action.astype(jnp.float32), jnp.asarray(physics.low), jnp.asarray(physics.high))
        # The ground is the same everywhere, so each step starts at 0: the distance of one step, the difference that is
        # rewarded, does not lose digits as the walker gets farther.
        distance = env_state.qpos[0]
        start = (env_state.qpos.at[0].set(0.0), env_state.qvel, env_state.qacc)
        qpos, qvel, qacc = _simulate(physics, start, action)
        velocity = qpos[0] / jnp.float32(physics.timestep * FRAME_SKIP)
        state = MjxState(qpos.at[0].add(distance), qvel, qacc, env_state.steps + 1)
        reward = velocity + HEALTHY_REWARD - CONTROL_COST * jnp.sum(jnp.square(action))
        truncated = state.steps >= self.time_limit
        return state, _observe(state), reward, ~is_healthy(self.walker, state), truncated


def make(env_id: str) -> JaxEnv[Any]:
    """Make the MJX environment of an id.

    Args:
        env_id: "Hopper-v3", "Walker2d-v3" or "Walker2D-v3".

    Raises:
        UnsupportedEnvironment: another id; or MuJoCo or MJX is missing (with the install line).
    """
    if env_id not in WALKERS:
        raise UnsupportedEnvironment(f"MJX runs {', '.join(WALKERS)}; it cannot run {env_id!r}")
    walker = WALKERS[env_id]
    try:
        _physics(walker.model_file)
    except ImportError as error:
        raise UnsupportedEnvironment(
            f"{env_id} on MJX needs a package that is missing ({error.name or error}); "
            "install it with: pip install 'prune_rl[mjx]'"
        ) from error
    return MjxEnv(walker)


@functools.cache
def _physics(model_file: str) -> _Physics:
    """Load a model once per process."""
    mujoco = importlib.import_module("mujoco")
    # It prints that its other backend, Warp, is not installed.
    with contextlib.redirect_stdout(io.StringIO()):
        mjx = importlib.import_module("mujoco.mjx")
    assets = importlib.resources.files("gymnasium") / "envs" / "mujoco" / "assets"
    with importlib.resources.as_file(assets / model_file) as path:
        model = mujoco.MjModel.from_xml_path(str(path))
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    assert model.nq == model.nv  # slides and hinges only: a position is integrated by adding
    model.opt.iterations = SOLVER_ITERATIONS
    model.opt.ls_iterations = LINE_SEARCH_ITERATIONS
    # The first use may be within a trace, and what is cached must not be a part of it.
    with jax.ensure_compile_time_eval():
        device_model = mjx.put_model(model, impl="jax")
        device_data = mjx.make_data(model, impl="jax")
    low, high = model.actuator_ctrlrange.astype(np.float32).T
    return _Physics(
        jax.tree.map(np.asarray, device_model),
        jax.tree.map(np.asarray, device_data),
        mjx.forward,
        model.qpos0.astype(np.float32),
        float(model.opt.timestep),
        low,
        high,
    )


def _simulate(physics: _Physics, start: _Motion, ctrl: jax.Array) -> _Motion:
    """Positions, velocities and the last acceleration after ``FRAME_SKIP`` steps of the simulation.

    MJX has this integrator, too, but repeats the dynamics four times in the program; one copy in a loop compiles in
    a fraction of the time.
    """
    model = jax.tree.map(jnp.asarray, physics.model)
    data = jax.tree.map(jnp.asarray, physics.data).replace(ctrl=ctrl)
    stages = np.array([RK4_NODES, RK4_WEIGHTS], np.float32).T * np.float32(physics.timestep)

    def frame(start: _Motion, _: None) -> tuple[_Motion, None]:
        qpos, qvel, qacc = start

        def stage(carry: _Stage, times: jax.Array) -> tuple[_Stage, None]:
            velocity, acceleration, moved, gained = carry
            node, weight = times
            position, velocity = qpos + node * velocity, qvel + node * acceleration
            at_node = data.replace(qpos=position, qvel=velocity, qacc_warmstart=acceleration)
            acceleration = physics.forward(model, at_node).qacc
            return (velocity, acceleration, moved + weight * velocity, gained + weight * acceleration), None

        zeros = jnp.zeros_like(qpos)
        last = jax.lax.scan(stage, (qvel, qacc, zeros, zeros), jnp.asarray(stages))[0]
        qacc, moved, gained = last[1:]
        return (qpos + moved, qvel + gained, qacc), None

    # MJX's own code relies on rank promotion, and loses its accuracy to the short products that accelerators prefer.
    with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
        return jax.lax.scan(frame, start, None, length=FRAME_SKIP)[0]


def _observe(state: MjxState) -> jax.Array:
    return jnp.concatenate([state.qpos[1:], jnp.clip(state.qvel, -VELOCITY_CLIP, VELOCITY_CLIP)])


def is_healthy(walker: Walker, state: MjxState) -> jax.Array:
    """Whether the torso is high and upright enough; False for NaN."""
    z, angle = state.qpos[1], state.qpos[2]
    others = jnp.concatenate([state.qpos[2:], state.qvel])
    return (
        (z > walker.z_range[0])
        & (z < walker.z_range[1])
        & (angle > walker.angle_range[0])
        & (angle < walker.angle_range[1])
        & jnp.all(jnp.abs(others) < walker.state_limit)
    )
