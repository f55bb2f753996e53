"""A frontier from one run: the policies kept while it narrowed are measured, and the smallest good enough is chosen."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prune_rl.atomic_files import write_bytes, write_json
from prune_rl.envs.task import Task
from prune_rl.evaluation.evaluate import EVALUATION_ENVS, evaluate_policies
from prune_rl.export.policy import Policy, load_policy, save_policy
from prune_rl.learners.registry import State
from prune_rl.reporting.frontier_plot import draw_frontier
from prune_rl.reporting.statistics import mean
from prune_rl.runs.frontier import FRONTIER_FILE, FrontierFolder, Point, read_frontier
from prune_rl.spaces import Spec
from prune_rl.training.config import Config
from prune_rl.training.frontier_points import frontier_level
from prune_rl.training.policy_export import compact_policy, policy_paths, seeds_with_policy, state_of_seed

# Apart from every evaluation seed that is likely to be given.
SELECTION = 2**31


class FrontierKeeper:
    """Saves the compact policies of a run while it narrows: of every seed the newest one of each level."""

    def __init__(self, config: Config, spec: Spec, path: Path, total: int) -> None:
        """``total``: hidden neurons of the actor at the start. Goes on with what ``path`` holds already."""
        self._config, self._spec, self._total = config, spec, total
        self._folder = FrontierFolder(path)
        self._kept: dict[tuple[int, int], int] = {}  # (seed, level): step
        for step in self._folder.steps():
            for seed in config.all_seeds:
                if self._folder.policy(step, seed).exists():
                    level = self._level(load_policy(self._folder.policy(step, seed)))
                    if level is not None:
                        self._now_kept(step, seed, level)

    def keep(self, state: State, step: int, frozen: Sequence[bool]) -> None:
        """Save what ``state`` holds after ``step`` environment steps, and remove what it replaces.

        A seed that is ``frozen``, [S], or whose network holds NaN, gets no policy; the end of training says so.
        """
        for index, seed in enumerate(self._config.all_seeds):
            if frozen[index]:
                continue
            try:
                policy = compact_policy(state_of_seed(state, index), self._config, self._spec, seed, step)
            except ValueError:
                continue
            level = self._level(policy)
            if level is None:
                continue
            self._folder.save(step, seed, policy)
            self._now_kept(step, seed, level)

    def _now_kept(self, step: int, seed: int, level: int) -> None:
        before = self._kept.get((seed, level))
        if before is not None and before != step:
            self._folder.remove(before, seed)
        self._kept[seed, level] = step

    def _level(self, policy: Policy) -> int | None:
        return frontier_level(policy.num_neurons, self._total, self._config.frontier)


def measure_frontier(config: Config, task: Task, path: Path, control: Path | None, console: Console) -> None:
    """Play the selection episodes with every policy that was kept, and with the dense control's; writes frontier.json.

    Policies that were measured before, on the same episodes, are not played again.
    """
    folder, episodes = FrontierFolder(path), config.selection_episodes
    seed = SELECTION + config.evaluation_seed
    result: dict[str, Any] = {"env_id": config.env, "episodes": episodes, "seed": seed}
    result |= {"points": [], "dense": {}, "chosen": {}}
    before = _measured_before(path, result)
    known = {(point["seed"], point["step"]): point for point in before["points"]}
    dense = before["dense"]

    policies: list[Policy] = []
    unplayed: list[Callable[[list[float]], None]] = []  # what becomes of their returns
    for training_seed in seeds_with_policy(path, config):
        for step in folder.steps():
            if not folder.policy(step, training_seed).exists():
                continue
            point = known.get((training_seed, step))
            if point is None:
                policy = load_policy(folder.policy(step, training_seed))
                sizes = {"neurons": policy.num_neurons, "weights": policy.num_weights, "bytes": policy.nbytes}
                point = {"seed": training_seed, "step": step, "widths": list(policy.widths), **sizes}
                policies.append(policy)
                unplayed.append(functools.partial(point.__setitem__, "returns"))
            result["points"].append(point)
        wide = None if control is None else policy_paths(control, config)[training_seed]
        name = str(training_seed)
        if name in dense:
            result["dense"][name] = dense[name]
        elif wide is not None and wide.exists():
            policies.append(load_policy(wide))
            unplayed.append(functools.partial(result["dense"].__setitem__, name))
    count = min(EVALUATION_ENVS, episodes)
    if policies:
        console.print(f"playing {len(policies)} policies of the frontier, {episodes} episodes each")
        played = evaluate_policies(policies, task, episodes=episodes, seed=seed, num_envs=count)
        for keep, evaluation in zip(unplayed, played, strict=True):
            keep([float(value) for value in evaluation.returns])
    if result["points"] == before["points"]:
        result["chosen"] = before["chosen"]
    if result != before:
        _write(path, result)


def _measured_before(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The content of frontier.json if it is of the same episodes, else ``wanted``, which has no points."""
    nothing = {**wanted, "points": [], "dense": {}, "chosen": {}}
    try:
        before = read_frontier(path)
    except ValueError:  # none yet, or a damaged one, which is written anew
        return nothing
    return (
        before if all(before.get(key) == wanted[key] for key in ("env_id", "episodes", "seed")) else nothing
    )


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a policy is chosen by; exactly one field is set.

    Attributes:
        tolerance: the smallest whose mean return is at least ``reference − tolerance · |reference|``; the reference is
            the dense control's mean return, or the best of the frontier where there is no control.
        neurons: of those with at most so many hidden neurons, the one with the highest mean return.
        bytes: likewise, of at most so many bytes.
        least_return: the smallest whose mean return is at least this.
    """

    tolerance: float | None = None
    neurons: int | None = None
    bytes: int | None = None
    least_return: float | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one condition to choose by, --tolerance, --neurons, --bytes or --return; got {len(given)}"
            )


def choose(points: Sequence[Point], dense: Sequence[float] | None, wish: Wish) -> Point:
    """The point of one seed's frontier that a wish asks for.

    "Smallest" is by neurons, then weights; of equal ones the better, then the later.

    Raises:
        ValueError: no point fits; the message says how near the nearest one comes.
    """
    if not points:
        raise ValueError(
            "this run kept no policies while it narrowed (--frontier 0), so there is none to choose"
        )
    returns = {id(point): mean(point["returns"]) for point in points}
    if wish.tolerance is not None or wish.least_return is not None:
        least = wish.least_return
        if least is None:
            assert wish.tolerance is not None
            reference = max(returns.values()) if dense is None else mean(dense)
            least = reference - wish.tolerance * abs(reference)
        good = [point for point in points if returns[id(point)] >= least]
        if not good:
            raise ValueError(
                f"no policy of the frontier returns {least:.1f} or more, the best {max(returns.values()):.1f}"
            )
        return min(good, key=lambda p: (p["neurons"], p["weights"], -returns[id(p)], -p["step"]))
    name = "neurons" if wish.neurons is not None else "bytes"
    most = wish.neurons if wish.neurons is not None else wish.bytes
    small = [point for point in points if point[name] <= (most or 0)]
    if not small:
        raise ValueError(
            f"no policy of the frontier has {most} {name} or less, the smallest has "
            f"{min(point[name] for point in points)}"
        )
    return max(small, key=lambda p: (returns[id(p)], -p["neurons"], p["step"]))


def choose_policies(config: Config, path: Path, wish: Wish, console: Console) -> None:
    """Make the policy of every seed in ``policy/`` the one that a wish asks for; needs frontier.json.

    A seed none of whose policies is within the tolerance gets its best one, and a note says so. Any other wish that
    cannot be met raises ``ValueError`` before a file is touched.
    """
    data = read_frontier(path)
    chosen: dict[int, Point] = {}
    for seed in seeds_with_policy(path, config):
        points = [point for point in data["points"] if point["seed"] == seed]
        try:
            chosen[seed] = choose(points, data["dense"].get(str(seed)), wish)
        except ValueError as error:
            if wish.tolerance is None or not points:
                raise ValueError(f"seed {seed}: {error}") from None
            chosen[seed] = max(points, key=lambda point: mean(point["returns"]))
            console.print(f"[yellow]note:[/] seed {seed} does not keep the tolerance: {error}")
    folder = FrontierFolder(path)
    policies = {seed: load_policy(folder.policy(point["step"], seed)) for seed, point in chosen.items()}
    for seed, policy in policies.items():
        where = policy_paths(path, config)[seed]
        if load_policy(where).metadata != policy.metadata:
            save_policy(where, policy)
        point = chosen[seed]
        widths = "·".join(map(str, point["widths"])) or "no hidden layer"
        console.print(
            f"seed {seed}: chosen {point['neurons']} neurons ({widths}) after {point['step']:,} steps, return "
            f"{mean(point['returns']):.1f} in the episodes that select",
            markup=False,
        )
    steps = {str(seed): point["step"] for seed, point in chosen.items()}
    if data["chosen"] != steps:
        _write(path, {**data, "chosen": steps})


def _write(path: Path, data: dict[str, Any]) -> None:
    write_json(path / FRONTIER_FILE, data)
    if data["points"]:
        write_bytes(path / "frontier.png", draw_frontier(data))
