"""Hopper-v3, Walker2d-v3 and LunarLander-v2 once more, written from the published sources and used by tests alone.

Sources: OpenAI Gym 0.21.0 and 0.26.2 (``hopper_v3.py``, ``walker2d_v3.py``, their XML files, ``lunar_lander.py``).
Bodies are given as in those XML files, by end points in world coordinates; the model is generated from them, so that
nothing of the files that Gymnasium ships takes part.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import platform
import sys
import xml.etree.ElementTree as ET

import mujoco
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Point = tuple[float, float, float]

# EnvPool has wheels for no other platform. There it belongs to the dev extra, so its absence is an error.
ENVPOOL_PLATFORM = sys.platform == "linux" and platform.machine() == "x86_64"
NO_ENVPOOL = "EnvPool runs on Linux x86-64 only"

DENSITY = 1000.0  # kg/m³, of every geom
TIMESTEP = 0.002  # s
FRAME_SKIP = 4
CTRL_COST_WEIGHT = 1e-3
RESET_NOISE = 5e-3
VELOCITY_CLIP = 10.0


class Physics(enum.Enum):
    """By which engine's rules the same XML file is read."""

    MUJOCO_210 = "MuJoCo 2.1.0, the last one that mujoco-py, hence v3, runs on"
    CURRENT = "MuJoCo 3.5 and newer"


@dataclasses.dataclass(frozen=True)
class Link:
    """One capsule, hinged to its parent about −y, in world coordinates of the model's zero position (m, degrees)."""

    name: str
    parent: str
    anchor: Point
    joint_range: tuple[float, float]
    start: Point
    end: Point
    radius: float
    friction: float


@dataclasses.dataclass(frozen=True)
class Locomotion:
    """A v3 locomotion task: its bodies, the constants of its XML file and the arguments' defaults."""

    links: tuple[Link, ...]
    armature: float
    damping: float
    gear: float
    condim: int
    conaffinity: int
    friction: tuple[float, float, float]
    margin: float
    solimp: tuple[float, float, float]
    healthy_z: tuple[float, float]
    healthy_angle: tuple[float, float]
    healthy_state: tuple[float, float]


def _leg(suffix: str, foot: tuple[float, float], foot_friction: float) -> tuple[Link, ...]:
    thigh, leg, feet = f"thigh{suffix}", f"leg{suffix}", f"foot{suffix}"
    hip, knee, ankle = (0.0, 0.0, 1.05), (0.0, 0.0, 0.6), (0.0, 0.0, 0.1)
    heel, toe = (foot[0], 0.0, 0.1), (foot[1], 0.0, 0.1)
    return (
        Link(thigh, "torso", hip, (-150.0, 0.0), hip, knee, 0.05, 0.9),
        Link(leg, thigh, knee, (-150.0, 0.0), knee, ankle, 0.04, 0.9),
        Link(feet, leg, ankle, (-45.0, 45.0), heel, toe, 0.06, foot_friction),
    )


TORSO = Link("torso", "", (0.0, 0.0, 1.25), (0.0, 0.0), (0.0, 0.0, 1.45), (0.0, 0.0, 1.05), 0.05, 0.9)
EVERYWHERE = (-math.inf, math.inf)
HOPPER = Locomotion(
    links=(TORSO, *_leg("", (-0.13, 0.26), 2.0)),
    armature=1.0,
    damping=1.0,
    gear=200.0,
    condim=1,
    conaffinity=1,
    friction=(1.0, 0.005, 0.0001),  # MuJoCo's default
    margin=0.001,
    solimp=(0.8, 0.8, 0.01),
    healthy_z=(0.7, math.inf),
    healthy_angle=(-0.2, 0.2),
    healthy_state=(-100.0, 100.0),
)
WALKER2D = Locomotion(
    links=(TORSO, *_leg("", (0.0, 0.2), 0.9), *_leg("_left", (0.0, 0.2), 1.9)),
    armature=0.01,
    damping=0.1,
    gear=100.0,
    condim=3,
    conaffinity=0,
    friction=(0.7, 0.1, 0.1),
    margin=0.0,
    solimp=(0.9, 0.95, 0.001),  # MuJoCo's default
    healthy_z=(0.8, 2.0),
    healthy_angle=(-1.0, 1.0),
    healthy_state=EVERYWHERE,
)


def capsule_inertia(link: Link, physics: Physics) -> tuple[float, float, float]:
    """Mass (kg) and moments of inertia across and along the axis (kg m²) of a capsule, as an engine computes them.

    Until MuJoCo 2.1.1, a capsule counted as a cylinder that extends by half a radius beyond each end point.
    """
    r, h = link.radius, math.dist(link.start, link.end)
    if physics is Physics.MUJOCO_210:
        length = h + r
        mass = DENSITY * math.pi * r**2 * length
        return mass, mass * (3 * r**2 + length**2) / 12, mass * r**2 / 2
    middle, ends = DENSITY * math.pi * r**2 * h, DENSITY * math.pi * r**3 * 4 / 3
    # a solid hemisphere's centre of mass lies 3r/8 from its flat side, and its moment about that centre is 83/320 m r²
    across = middle * (3 * r**2 + h**2) / 12 + ends * (83 / 320 * r**2 + (h / 2 + 3 / 8 * r) ** 2)
    return middle + ends, across, middle * r**2 / 2 + ends * r**2 * 2 / 5


def _text(*values: float) -> str:
    return " ".join(repr(float(value)) for value in values)


def build_model(task: Locomotion, physics: Physics) -> mujoco.MjModel:
    """The task's model, each body's frame in its joint's anchor; the margin is set for MuJoCo ≥ 3.5.

    Since MuJoCo 3.5 a contact's margin is the sum of those of the two geoms, before it was the larger of the two.
    """
    root = ET.Element("mujoco")
    ET.SubElement(root, "compiler", angle="degree", inertiafromgeom="false")
    ET.SubElement(root, "option", integrator="RK4", timestep=_text(TIMESTEP))
    margin = task.margin / 2 if physics is Physics.MUJOCO_210 else task.margin
    common = {"margin": _text(margin), "solimp": _text(*task.solimp), "contype": "1"}
    world = ET.SubElement(root, "worldbody")
    floor = {"type": "plane", "size": "40 40 40", "condim": "3", "conaffinity": "1"}
    ET.SubElement(world, "geom", floor | common, name="floor", friction=_text(*task.friction))
    actuators = ET.SubElement(root, "actuator")
    parents = {"": (world, (0.0, 0.0, 0.0))}
    for link in task.links:
        parent, origin = parents[link.parent]
        body = ET.SubElement(
            parent, "body", name=link.name, pos=_text(*np.subtract(link.anchor, origin).tolist())
        )
        parents[link.name] = body, link.anchor
        start = np.subtract(link.start, link.anchor)
        end = np.subtract(link.end, link.anchor)
        mass, across, along = capsule_inertia(link, physics)
        upright = link.start[0] == link.end[0]
        inertia = (across, across, along) if upright else (along, across, across)
        ET.SubElement(
            body,
            "inertial",
            pos=_text(*((start + end) / 2).tolist()),
            mass=_text(mass),
            diaginertia=_text(*inertia),
        )
        if link.parent:
            ET.SubElement(
                body,
                "joint",
                name=f"{link.name}_joint",
                axis="0 -1 0",
                limited="true",
                range=_text(*link.joint_range),
                armature=_text(task.armature),
                damping=_text(task.damping),
            )
            ET.SubElement(
                actuators,
                "motor",
                joint=f"{link.name}_joint",
                gear=_text(task.gear),
                ctrllimited="true",
                ctrlrange="-1 1",
            )
        else:
            ET.SubElement(body, "joint", name="rootx", type="slide", axis="1 0 0")
            ET.SubElement(body, "joint", name="rootz", type="slide", axis="0 0 1", ref=_text(link.anchor[2]))
            ET.SubElement(body, "joint", name="rooty", axis="0 1 0")
        ET.SubElement(
            body,
            "geom",
            common,
            name=f"{link.name}_geom",
            type="capsule",
            fromto=_text(*start.tolist(), *end.tolist()),
            size=_text(link.radius),
            friction=_text(link.friction, *task.friction[1:]),
            condim=str(task.condim),
            conaffinity=str(task.conaffinity),
        )
    return mujoco.MjModel.from_xml_string(ET.tostring(root, encoding="unicode"))


class LocomotionV3:
    """The equations of Hopper-v3 and Walker2d-v3 on a given model.

    Args:
        task: ranges of the healthy state.
        model: what to simulate.
        terminate_when_unhealthy: as v3's argument of that name.
    """

    def __init__(
        self, task: Locomotion, model: mujoco.MjModel, terminate_when_unhealthy: bool = True
    ) -> None:
        self.task, self.model, self.data = task, model, mujoco.MjData(model)
        self.terminate_when_unhealthy = terminate_when_unhealthy

    def reset(self, seed: int) -> Array:
        """Start at the zero position plus noise, U(−0.005, 0.005) in each position, then in each velocity."""
        rng = np.random.default_rng(seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos += rng.uniform(-RESET_NOISE, RESET_NOISE, self.model.nq)
        self.data.qvel += rng.uniform(-RESET_NOISE, RESET_NOISE, self.model.nv)
        mujoco.mj_forward(self.model, self.data)
        return self.observation()

    def observation(self) -> Array:
        """Positions but x, then velocities clipped to ±10."""
        return np.concatenate([self.data.qpos[1:], np.clip(self.data.qvel, -VELOCITY_CLIP, VELOCITY_CLIP)])

    def is_healthy(self) -> bool:
        """Whether height, pitch and all of the state but x and z lie strictly inside their ranges."""
        z, angle = self.data.qpos[1:3]
        rest = np.concatenate([self.data.qpos[2:], self.data.qvel])
        (z0, z1), (a0, a1), (s0, s1) = self.task.healthy_z, self.task.healthy_angle, self.task.healthy_state
        return bool(z0 < z < z1 and a0 < angle < a1 and np.all(rest > s0) and np.all(rest < s1))

    def step(self, action: Array) -> tuple[Array, float, bool]:
        """Four simulation steps under one action, which only the engine clips: the control cost takes it as given."""
        before = self.data.qpos[0]
        self.data.ctrl[:] = action
        for _ in range(FRAME_SKIP):
            mujoco.mj_step(self.model, self.data)
        forward = (self.data.qpos[0] - before) / (TIMESTEP * FRAME_SKIP)
        healthy = self.is_healthy()
        alive = 1.0 if healthy or self.terminate_when_unhealthy else 0.0  # so the last step is paid too
        cost = CTRL_COST_WEIGHT * np.sum(action * action)
        return self.observation(), forward + alive - cost, self.terminate_when_unhealthy and not healthy


LANDER_VIEW = (600 / 30, 400 / 30)  # width and height in m
LANDER_FPS = 50
LANDER_FUEL = (
    0.0,
    0.03,
    0.3,
    0.03,
)  # reward lost per action: nothing, left engine, main engine, right engine


def lander_observation(
    position: tuple[float, float],
    velocity: tuple[float, float],
    angle: float,
    angular_velocity: float,
    legs: tuple[bool, bool],
) -> npt.NDArray[np.float32]:
    """LunarLander's eight numbers: place relative to the pad, velocity, tilt, spin, contact of left and right leg."""
    half_width, half_height = LANDER_VIEW[0] / 2, LANDER_VIEW[1] / 2
    rest_height = LANDER_VIEW[1] / 4 + 18 / 30  # of the body's centre, above the world's origin
    return np.array(
        [
            (position[0] - half_width) / half_width,
            (position[1] - rest_height) / half_height,
            velocity[0] * half_width / LANDER_FPS,
            velocity[1] * half_height / LANDER_FPS,
            angle,
            20 * angular_velocity / LANDER_FPS,
            *legs,
        ],
        np.float32,
    )


def lander_shaping(obs: npt.NDArray[np.float32]) -> Array:
    """−100 (distance + speed + |tilt|) + 10 per leg on the ground, of observations [..., 8]."""
    x, y, vx, vy, tilt, _, left, right = np.moveaxis(obs.astype(np.float64), -1, 0)
    return np.asarray(-100 * (np.hypot(x, y) + np.hypot(vx, vy) + np.abs(tilt)) + 10 * (left + right))


def lander_reward(
    before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], action: int, crashed: bool, asleep: bool
) -> float:
    """Gain in shaping less fuel (0.3 main, 0.03 side); at the end −100 or, at rest, +100, in place of it."""
    if asleep:
        return 100.0
    if crashed or abs(float(after[0])) >= 1:
        return -100.0
    return float(lander_shaping(after) - lander_shaping(before)) - LANDER_FUEL[action]


def lander_pilot(obs: npt.NDArray[np.float32], altitude: float = 0.0) -> int:
    """A feedback law that lands; with an altitude above 0 (in units of the observation) it hovers there."""
    x, y, vx, vy, tilt, spin, left, right = (float(value) for value in obs)
    if left or right:
        turn, lift = 0.0, -0.5 * vy
    else:
        turn = 0.5 * (min(max(0.6 * x + vx, -0.4), 0.4) - tilt) - spin
        lift = 0.5 * (0.55 * abs(x) + altitude - y) - 0.5 * vy
    if lift > max(abs(turn), 0.05):
        return 2
    return 3 if turn < -0.05 else 1 if turn > 0.05 else 0
