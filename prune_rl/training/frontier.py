"""A frontier from one run: the policies kept while it narrowed are measured, and the smallest good enough is chosen."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prune_rl.atomic_files import write_bytes, write_json
from prune_rl.envs.task import Task
from prune_rl.evaluation.selection import selection_returns
from prune_rl.export.policy import Policy, load_policy, save_policy
from prune_rl.learners.registry import State
from prune_rl.reporting.frontier_choice import Wish, best_of, choose, choose_within
from prune_rl.reporting.frontier_plot import draw_frontier
from prune_rl.reporting.statistics import mean
from prune_rl.runs.frontier import FRONTIER_FILE, FrontierFolder, Kept, Point, kept_of, read_frontier
from prune_rl.spaces import Spec
from prune_rl.training.config import Config
from prune_rl.training.frontier_averages import averages
from prune_rl.training.frontier_points import NEWEST, frontier_level
from prune_rl.training.policy_export import compact_policy, policy_paths, seeds_with_policy, state_of_seed

Play = Callable[[Mapping[Kept, Policy], int, int], dict[Kept, list[float]]]

# Apart from every evaluation seed that is likely to be given.
SELECTION = 2**31
# A dense control is chosen in episodes of its own: the best of several is lucky in those that chose it.
DENSE_APART = 16
# Rounds in which the candidates of one level are compared: each plays the selection episodes divided by the first
# number, others in each round, and so many of them stay. What stays in the end plays all of the selection episodes.
ROUNDS = ((10, 6), (5, 2))
# Times the selection episodes that the policy about to be chosen plays more, and what it is compared with.
CONFIRMATION = 9


class FrontierKeeper:
    """Saves the compact policies of a run while it narrows: of every seed the newest few of each level."""

    def __init__(
        self, config: Config, spec: Spec, path: Path, first: int = 0, held: range | None = None
    ) -> None:
        """Goes on with what ``path`` holds already.

        The seeds of this run are the members from ``first`` on; ``held``: those of this process, by default all.
        """
        self._config, self._spec = config, spec
        members = range(first, first + config.seeds)
        held = members if held is None else held
        # By seed, its place in a state, and in the run.
        self._seeds = {
            seed: (member - held.start, member - first)
            for seed, member in zip(config.all_seeds, members, strict=True)
            if member in held
        }
        self._folder = FrontierFolder(path)
        self._kept: dict[tuple[int, int], list[Kept]] = {}  # (seed, level): in order
        for seed in self._seeds:
            for key in self._folder.kept(seed):
                if not key.averaged:
                    self._now_kept(key, load_policy(self._folder.policy(key)))

    def keep(self, state: State, step: int, frozen: Sequence[bool]) -> None:
        """Save what ``state`` holds after ``step`` environment steps, and remove what it replaces.

        A seed of the run that is ``frozen``, [S], or whose network holds NaN, gets no policy; the end of training says
        so.
        """
        for seed, (place, index) in self._seeds.items():
            if frozen[index]:
                continue
            try:
                policy = compact_policy(state_of_seed(state, place), self._config, self._spec, seed, step)
            except ValueError:
                continue
            self._folder.save(Kept(seed, step), policy)
            self._now_kept(Kept(seed, step), policy)

    def _now_kept(self, key: Kept, policy: Policy) -> None:
        level = frontier_level(policy.num_neurons, sum(self._config.learner.hidden), self._config.frontier)
        kept = self._kept.setdefault((key.seed, level), [])
        if key not in kept:
            kept.append(key)
        if len(kept) > NEWEST:
            self._folder.remove(kept.pop(0))


def measure_frontier(config: Config, task: Task, path: Path, control: Path | None, console: Console) -> None:
    """Play the selection episodes with the best candidates of each level, and with the dense control's policy.

    Candidates are the policies that were kept, and the means of those with the same neurons. Each plays a few episodes
    first, and the better ones of each level a few more; those that are not among the best are removed then. The others,
    and the control, play ``config.selection_episodes`` others: their returns are what frontier.json holds, and they are
    no part of the first choice. With a tolerance, the policy that it would choose plays more, see ``_confirm``. What
    was measured before is not played again.
    """
    folder, episodes = FrontierFolder(path), config.selection_episodes
    seed = _selection_seed(config)
    result: dict[str, Any] = {
        "env_id": config.env,
        "backend": task.backend,
        "episodes": episodes,
        "seed": seed,
    }
    result |= {"points": [], "dense": {}, "chosen": {}}
    before = _measured_before(path, result)
    known = {kept_of(point): point for point in copy.deepcopy(before["points"])}
    dense = copy.deepcopy(before["dense"])
    play = functools.partial(_play, task, console)

    on_disk = {
        key: load_policy(folder.policy(key))
        for training_seed in seeds_with_policy(path, config)
        for key in folder.kept(training_seed)
    }
    # Of what was kept until the frontier was measured, all but the best is about to be removed.
    until = before.get("until", max((key.step for key in known), default=-1))
    result["until"] = max((until, *(key.step for key in on_disk)))
    candidates = {key: policy for key, policy in on_disk.items() if key.step > until}
    candidates |= averages(config, path, candidates)
    kept = {**on_disk, **candidates}
    best = _best_of_level(config, play, candidates)
    points = {
        key: known.get(key) or _point(key, kept[key]) for key in sorted(kept) if key in known or key in best
    }
    unplayed = {key: kept[key] for key in points if key not in known}
    controls = {} if control is None else policy_paths(control, config)
    wide = {
        Kept(training_seed, -1): load_policy(where)
        for training_seed, where in controls.items()
        if str(training_seed) not in dense and where.exists()
    }
    played = play({**unplayed, **wide}, episodes, seed)
    for key in unplayed:
        points[key]["returns"] = played[key]
    result["points"] = list(points.values())
    result["dense"] = {name: dense[name] for name in map(str, config.all_seeds) if name in dense}
    result["dense"] |= {str(key.seed): played[key] for key in wide}
    _confirm(config, play, points, kept, result["dense"], controls)
    if result["points"] == before["points"]:
        result["chosen"] = before["chosen"]
    for key in points.keys() - on_disk.keys():
        folder.save(key, kept[key])
    if result != before:
        _write(path, result)
    for key in on_disk.keys() - points.keys():
        folder.remove(key)


def _confirm(
    config: Config,
    play: Play,
    points: Mapping[Kept, dict[str, Any]],
    kept: Mapping[Kept, Policy],
    dense: dict[str, list[float]],
    controls: Mapping[int, Path],
) -> None:
    """Let the policy that the tolerance chooses of each seed, and what it is compared with, play further episodes.

    The best of many in few episodes was lucky there, and one that misses the tolerance by up to a standard error may
    have been unlucky. Where the smallest does not keep the tolerance in all of its episodes, the next one is played,
    until one does that has played them all. Appends to the returns of points and dense.
    """
    prune, few = config.learner.prune, config.selection_episodes
    if prune is None or prune.tolerance is None:
        return
    seed = _selection_seed(config) - len(ROUNDS) - 1
    while True:
        unconfirmed: dict[Kept, tuple[Policy, list[float]]] = {}
        for training_seed in sorted({key.seed for key in points}):
            own = {key: point for key, point in points.items() if key.seed == training_seed}
            returns = dense.get(str(training_seed))
            chosen, missed = choose_within(list(own.values()), returns, prune.tolerance, few)
            alone = returns is not None and missed is None
            compared = [chosen] if alone else [chosen, best_of(list(own.values()))]
            for point in compared:
                key = kept_of(point)
                if len(point["returns"]) <= few:
                    unconfirmed[key] = kept[key], points[key]["returns"]
            if returns is not None and len(returns) <= few and training_seed in controls:
                unconfirmed[Kept(training_seed, -1)] = load_policy(controls[training_seed]), returns
        if not unconfirmed:
            return
        played = play({key: policy for key, (policy, _) in unconfirmed.items()}, CONFIRMATION * few, seed)
        for key, (_, returns) in unconfirmed.items():
            returns += played[key]


def _selection_seed(config: Config) -> int:
    return SELECTION + config.evaluation_seed - (DENSE_APART if config.learner.prune is None else 0)


def _play(
    task: Task, console: Console, policies: Mapping[Kept, Policy], episodes: int, seed: int
) -> dict[Kept, list[float]]:
    """The returns of each policy in the same episodes."""
    if not policies:
        return {}
    console.print(f"playing {len(policies)} policies of the frontier, {episodes} episodes each")
    played = selection_returns(policies.values(), task, episodes=episodes, seed=seed)
    return {key: [float(value) for value in returns] for key, returns in zip(policies, played, strict=True)}


def _best_of_level(config: Config, play: Play, candidates: Mapping[Kept, Policy]) -> set[Kept]:
    """The few candidates of each seed and level that return most in a few episodes; a newer one before an older."""
    total = sum(config.learner.hidden)
    levels: dict[tuple[int, int], list[Kept]] = {}
    for key, policy in candidates.items():
        level = frontier_level(policy.num_neurons, total, config.frontier)
        levels.setdefault((key.seed, level), []).append(key)
    returns: dict[Kept, list[float]] = {key: [] for key in candidates}
    for number, (share, stay) in enumerate(ROUNDS, start=1):
        crowded = {key: candidates[key] for keys in levels.values() if len(keys) > stay for key in keys}
        episodes, seed = (
            max(1, config.selection_episodes // share),
            _selection_seed(config) - number,
        )
        for key, played in play(crowded, episodes, seed).items():
            returns[key] += played
        for place, keys in levels.items():
            if len(keys) > stay:
                keys.sort(key=lambda key: (mean(returns[key]), key), reverse=True)
            levels[place] = keys[:stay]
    return {key for keys in levels.values() for key in keys}


def _point(key: Kept, policy: Policy) -> dict[str, Any]:
    sizes = {"neurons": policy.num_neurons, "weights": policy.num_weights, "bytes": policy.nbytes}
    averaged = policy.metadata["averaged"] if key.averaged else 1
    return {"seed": key.seed, "step": key.step, "averaged": averaged, "widths": list(policy.widths), **sizes}


def _measured_before(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The content of frontier.json if it is of the same episodes, else ``wanted``, which has no points."""
    nothing = {**wanted, "points": [], "dense": {}, "chosen": {}}
    try:
        before = read_frontier(path)
    except ValueError:  # none yet, or a damaged one, which is written anew
        return nothing
    return (
        before
        if all(before.get(key) == wanted[key] for key in ("env_id", "backend", "episodes", "seed"))
        else nothing
    )


def choose_policies(config: Config, path: Path, wish: Wish, console: Console) -> None:
    """Make the policy of every seed in ``policy/`` the one that a wish asks for; needs frontier.json.

    For a seed none of whose policies is within the tolerance see ``choose_within``, and a note says so. Any other wish
    that cannot be met raises ``ValueError`` before a file is touched.
    """
    data = read_frontier(path)
    chosen: dict[int, Point] = {}
    for seed in seeds_with_policy(path, config):
        points = [point for point in data["points"] if point["seed"] == seed]
        dense, missed = data["dense"].get(str(seed)), None
        try:
            if wish.tolerance is None:
                chosen[seed] = choose(points, dense, wish)
            else:
                chosen[seed], missed = choose_within(points, dense, wish.tolerance)
        except ValueError as error:
            raise ValueError(f"seed {seed}: {error}") from None
        if missed is not None:
            console.print(
                f"[yellow]note:[/] seed {seed} does not keep the tolerance: {missed}; the smallest that keeps it of "
                "this best is chosen"
            )
    folder = FrontierFolder(path)
    policies = {seed: load_policy(folder.policy(kept_of(point))) for seed, point in chosen.items()}
    for seed, policy in policies.items():
        where = policy_paths(path, config)[seed]
        if load_policy(where).metadata != policy.metadata:
            save_policy(where, policy)
        point = chosen[seed]
        widths = "·".join(map(str, point["widths"])) or "no hidden layer"
        what = f"mean of {point['averaged']} policies, " if point["averaged"] > 1 else ""
        console.print(
            f"seed {seed}: chosen {point['neurons']} neurons ({widths}) after {point['step']:,} steps, {what}return "
            f"{mean(point['returns']):.1f} in the episodes that select",
            markup=False,
        )
    choices = {
        str(seed): {"step": point["step"], "averaged": point["averaged"]} for seed, point in chosen.items()
    }
    if data["chosen"] != choices:
        _write(path, {**data, "chosen": choices})


def _write(path: Path, data: dict[str, Any]) -> None:
    write_json(path / FRONTIER_FILE, data)
    if data["points"]:
        write_bytes(path / "frontier.png", draw_frontier(data))
