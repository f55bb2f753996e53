"""A linear path beside the hidden layers: these may lose every neuron, and the policy then ends linear."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.cli import main
from prune_rl.export.empty_layers import fold_empty_layers
from prune_rl.export.policy import Policy, load_policy
from prune_rl.learners.registry import LEARNERS
from prune_rl.pruning.masks import apply_masks, init_masks
from prune_rl.spaces import Discrete, Spec
from prune_rl.training.config import Config
from prune_rl.training.policy_export import Trained, compact_policy, masked_policy
from prune_rl.training.run_config import read_config
from tests.learners.random_rollouts import CONTINUOUS, DISCRETE
from tests.learners.schedules import by_schedule

HIDDEN = (6, 5, 7)
PRUNE = by_schedule(min_width=0, sparsity=1.0, critic=True)


def config_of(algo: str, **options: Any) -> Config:
    kind: Any = LEARNERS[algo].Config
    learner = kind(hidden=HIDDEN, prune=PRUNE, normalize_obs=False, **options)
    return Config(algo=algo, learner=learner)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "box"])
@pytest.mark.parametrize("algo", LEARNERS)
def test_it_starts_at_zero_and_leaves_the_groups_as_they_are(algo: str, spec: Spec) -> None:
    learner: Any = LEARNERS[algo]
    with_path, without = (config_of(algo, skip=skip).learner for skip in (True, False))
    without = dataclasses.replace(without, prune=dataclasses.replace(PRUNE, min_width=1))
    a, b = (learner.init(jax.random.key(0), config, spec) for config in (with_path, without))
    skip = a.params["actor"].pop("skip")
    assert skip["kernel"].shape == (spec.observation_size, a.params["actor"]["head"]["bias"].shape[0])
    assert not np.any(skip["kernel"])
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert {name: mask.shape for name, mask in a.masks.items()} == {
        name: mask.shape for name, mask in b.masks.items()
    }


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "box"])
@pytest.mark.parametrize("algo", LEARNERS)
@pytest.mark.parametrize("empty", [(), (0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_the_compact_policy_is_the_masked_one(algo: str, spec: Spec, empty: tuple[int, ...]) -> None:
    config, learner = config_of(algo, skip=True), LEARNERS[algo]
    state = learner.init(jax.random.key(1), config.learner, spec)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), state.params)
    groups = learner.prunable_groups(params, config.learner)
    masks = init_masks(groups)
    for layer in range(3):
        name = f"actor/layer_{layer}"
        masks[name] = jnp.zeros_like(masks[name]) if layer in empty else masks[name].at[1].set(False)
    trained = Trained(apply_masks(groups, params, masks), masks, masks, state.obs_stats)
    wide, small = (make(trained, config, spec, 0) for make in (masked_policy, compact_policy))
    obs = rng.normal(size=(50, spec.observation_size)).astype(np.float32)
    np.testing.assert_allclose(small.outputs(obs), wide.outputs(obs), rtol=1e-5, atol=1e-5)
    assert wide.widths == HIDDEN
    assert small.widths == (() if empty else (5, 4, 6))
    if empty:
        assert small.num_weights == (spec.observation_size + 1) * spec.action.num_outputs
        # Linear in what it sees, and not constant.
        np.testing.assert_allclose(
            small.outputs(obs[:10] + obs[10:20]) + small.outputs(0 * obs[:10]),
            small.outputs(obs[:10]) + small.outputs(obs[10:20]), rtol=1e-4, atol=1e-4,
        )  # fmt: skip
        assert np.ptp(small.outputs(obs), axis=0).min() > 0.1


def test_without_a_linear_path_an_empty_layer_leaves_a_constant() -> None:
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1]).astype(np.float32))
        for shape in ((3, 0), (0, 4), (4, 2))
    ]
    policy = Policy(tuple(layers), "tanh", Discrete(2))
    folded, skip = fold_empty_layers(layers, None, "tanh")
    assert skip is None
    small = Policy(folded, "tanh", Discrete(2))
    obs = rng.normal(size=(5, 3))
    np.testing.assert_allclose(small.outputs(obs), policy.outputs(obs), rtol=1e-6)


@pytest.mark.parametrize("algo", LEARNERS)
def test_a_run_may_end_without_a_hidden_neuron(algo: str, tmp_path: Path) -> None:
    words = (
        f"train CartPole-v1 --algo {algo} --hidden 12 10 --num-envs 4 --num-steps 16 --steps 1600 --episodes 3 --skip "
        "--prune.tolerance None --prune.begin 0.1 --prune.end 0.6 --prune.critic --prune.critic-sparsity 1 "
        "--prune.shrink always --no-control --run-dir run"
    )
    more = ["--learning-starts", "64", "--utd-ratio", "0.1", "--batch-size", "16"] if algo == "sac" else []
    output = io.StringIO()
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        assert main([*shlex.split(words), *more]) == 0, output.getvalue()
    run = tmp_path / "run"
    policy = load_policy(run)
    assert (policy.widths, policy.num_weights) == ((), 5 * 2)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    widths = {name: width for name, (width,) in last["widths"].items()}
    assert widths == {"actor/layer_0": 0, "actor/layer_1": 0, "critic/layer_0": 1, "critic/layer_1": 1}
    (seed,) = json.loads((run / "evaluation.json").read_text())["seeds"]
    assert seed["policies"]["masked"]["returns"] == seed["policies"]["compact"]["returns"]
    assert seed["policies"]["masked"]["widths"] == [12, 10]
    summary = (run / "summary.md").read_text()
    assert "keeps **0 of 22 hidden neurons**" in summary
    assert "linear" in summary
    assert read_config(run).learner.skip


def test_no_neuron_may_only_be_left_where_there_is_a_linear_path() -> None:
    with pytest.raises(ValueError, match=r"prune\.min_width must be >= 1 without --skip, got 0"):
        config_of("ppo", skip=False).resolved()
    assert config_of("ppo", skip=True).resolved().learner.prune == PRUNE
