"""How a run was made, in the words of its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prune_rl.reporting.pruning_schedule import Config, finds_widths
from prune_rl.reporting.tables import number
from prune_rl.runs.evaluation_file import Entries

PACKAGES = ("python", "prune_rl", "jax", "jaxlib", "flax", "optax", "gymnasium", "numpy")


def provenance(config: Config, versions: Mapping[str, Any], seeds: Entries) -> str:
    """A Markdown list: command, pruning options, seeds, steps, evaluation, commit, device and versions of a run.

    Args:
        config: the content of config.json.
        versions: that of versions.json; {} where there is none.
        seeds: the entries of evaluation.json; none where nothing is evaluated yet.
    """
    learner, git = config.get("learner") or {}, versions.get("git") or {}
    first, count = config.get("seed", 0), config.get("seeds", 1)
    rollout = learner.get("num_envs", 0) * learner.get("num_steps", 0)
    chosen = (learner.get("prune") or {}).get("tolerance") is not None
    commit = git.get("commit") or ("none yet" if git else "no checkout")
    lines = {
        "command": f"`{config.get('command', 'unknown')}`",
        "pruning": _schedule(config),
        "seeds": f"{first}" if count == 1 else f"{first} to {first + count - 1}",
        "steps per seed": number(learner.get("total_timesteps", float("nan")))
        + (f", in whole rollouts of {number(rollout)}" if rollout else ""),
        "extends": " and ".join(f"a run of {number(steps)} steps" for steps in config.get("extends") or ())
        + " (the learning rate started again)" * bool(config.get("extends")),
        "evaluation": f"in Gymnasium, episodes seeded from {config.get('evaluation_seed', '?')}, best action instead "
        f"of a sampled one, {'the policy that was chosen' if chosen else 'policy at the end of training'}"
        if seeds
        else "",
        "commit": commit + (" with uncommitted changes" if git.get("dirty") else ""),
        "device": _device(versions),
        "versions": ", ".join(f"{name} {versions[name]}" for name in PACKAGES if versions.get(name)),
    }
    return "\n".join(f"- {name}: {value}" for name, value in lines.items() if value)


def _schedule(config: Config) -> str:
    """The pruning options in words; empty for a run that is not pruned."""
    prune = (config.get("learner") or {}).get("prune") or {}
    if "sparsity" not in prune:
        return ""
    parts = [
        f"at most {prune['sparsity']:.1%} of "
        + ("all hidden neurons" if prune.get("scope") == "global" else "each hidden layer")
    ]
    if finds_widths(config):
        parts = [
            f"as far as {prune['tolerance']:.1%} of the return allows, from {prune['begin']:.0%} to {prune['end']:.0%} "
            "of the steps"
        ] + ([] if prune["sparsity"] == 1.0 else parts)
    elif {"begin", "end"} <= set(prune):
        rests = ", without the updates in which the gate is closed" if prune.get("gate") is not None else ""
        parts.append(f"schedule from {prune['begin']:.0%} to {prune['end']:.0%} of the steps{rests}")
    parts += [
        f"{name} {prune[name]}"
        for name in ("score", "min_width", "gate", "energy", "strength", "width_exponent")
        if prune.get(name)
    ]
    if config["learner"].get("width_exponent"):
        parts.append(f"width_exponent {config['learner']['width_exponent']}")
    if prune.get("refit"):
        parts.append("refit")
    return ", ".join(parts)


def _device(versions: Mapping[str, Any]) -> str:
    device = versions.get("device") or {}
    kind, platform = device.get("kind", "?"), device.get("platform", "?")
    accelerator = f"{device.get('count', '?')} × {kind}{f' ({platform})' if platform != kind else ''}"
    return f"{accelerator}, processor {versions.get('cpu', '?')}"
