from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.pruning.mask_schedule import cubic_sparsity, num_removable
from prune_rl.pruning.ranking import update_masks
from prune_rl.reporting.pruning_schedule import Window, pruning_window, target_neurons, target_widths
from prune_rl.runs.config_file import read_config
from prune_rl.runs.logging import read_metrics
from tests.reporting.drawn_runs import STEPS, make_run

SHARES = np.arange(1000) / 1000


def config_of(hidden: list[int], **prune: Any) -> dict[str, Any]:
    return {
        "method": "dynamic",
        "learner": {"hidden": hidden, "prune": {"sparsity": 0.9, "min_width": 2} | prune},
    }


# --- target widths


def test_targets() -> None:
    assert target_widths(config_of([256, 64], sparsity=0.975)) == [7, 2]
    assert target_widths(config_of([20, 256], sparsity=0.95)) == [2, 13]
    assert target_widths(config_of([20, 256])) == [2, 26]
    assert target_neurons(config_of([20, 256])) == 28
    # Ranked over all layers, only the sum is fixed; each layer keeps min_width.
    assert target_widths(config_of([20, 256], scope="global")) == []
    assert target_neurons(config_of([20, 256], scope="global")) == 28
    assert target_neurons(config_of([4, 5, 1], scope="global", min_width=2)) == 5
    dense = {"method": "dense", "learner": {"hidden": [256], "prune": None}}
    for config in (dense, {}):
        assert target_widths(config) == []
        assert target_neurons(config) is None


@partial(jax.jit, static_argnames="size")
def removable_of_all(shares: jax.Array, size: int) -> jax.Array:
    """As a compiled update computes it, at the end of the schedule."""
    return jax.vmap(lambda share: num_removable(cubic_sparsity(1.0, share), size))(shares)


@pytest.mark.parametrize("size", [1, 10, 256, 4099, 99_991, 1_000_000])
def test_targets_are_the_counts_of_the_compiled_schedule(size: int) -> None:
    shares = jnp.asarray(SHARES, jnp.float32)
    counts = np.asarray(removable_of_all(shares, size))
    np.testing.assert_array_equal(counts, num_removable(shares, size), "without jit, as for the report")
    for k in range(0, 1000, 111):
        assert target_widths(config_of([size], sparsity=k / 1000, min_width=1)) == [
            max(size - int(counts[k]), 1)
        ]
    if size <= 10_000:
        np.testing.assert_array_equal(counts, np.arange(1000) * size // 1000)


@pytest.mark.parametrize(("size", "share"), [(10, 0.7), (256, 0.975), (1_000_000, 0.999)])
def test_masks_end_at_the_target(size: int, share: float) -> None:
    scores = {"a": jnp.arange(size, dtype=jnp.float32)}
    masks = {"a": jnp.ones(size, bool)}
    end = jax.jit(lambda progress: update_masks(masks, scores, cubic_sparsity(progress, share)))
    assert int(end(1.0)["a"].sum()) == target_neurons(config_of([size], sparsity=share))


@pytest.mark.parametrize("floor", [1, 3])
def test_masks_ranked_over_all_layers_end_at_the_target(floor: int) -> None:
    sizes = [2, 40, 17]
    masks = {f"layer_{i}": jnp.ones(size, bool) for i, size in enumerate(sizes)}
    keys = jax.random.split(jax.random.key(0), len(sizes))
    scores = {
        name: jax.random.uniform(key, mask.shape)
        for key, (name, mask) in zip(keys, masks.items(), strict=True)
    }
    for share in (0.0, 0.5, 0.9, 0.975):
        kept = update_masks(masks, scores, share, scope="global", min_width=floor)
        total = sum(int(mask.sum()) for mask in kept.values())
        assert total == target_neurons(config_of(sizes, sparsity=share, min_width=floor, scope="global"))


# --- the window


def window_of(run: Path) -> Window | None:
    return pruning_window(read_config(run), read_metrics(run / "metrics.jsonl"))


def test_the_window_is_read_from_the_log(tmp_path: Path) -> None:
    window = window_of(make_run(tmp_path / "run", 3, begin=0.2, end=0.3))
    assert window == Window(10_000, 60_000, (60_000,) * 3, (1.0,) * 3)
    assert window.complete
    assert window.name == "pruning schedule"
    assert window.sentence(0) == "the steps over which the pruning schedule ran, from 10,000 to 60,000"


def test_seeds_that_end_apart_share_the_widest_window(tmp_path: Path) -> None:
    window = window_of(make_run(tmp_path / "run", 3, pace=(1.0, 2.0, 0.8)))
    assert window is not None
    assert (window.begin, window.end) == (10_000, 73_000)
    assert window.ends == (60_000.0, 35_000.0, 73_000.0)
    assert window.complete
    assert "from 10,000 to 35,000–73,000, depending on the seed" in window.sentence(0)


def test_a_schedule_that_did_not_complete(tmp_path: Path) -> None:
    window = window_of(make_run(tmp_path / "run", 3, pace=(1.0, 0.25, 0.5)))
    assert window is not None
    assert (window.begin, window.end) == (10_000, STEPS)
    assert window.ends == (60_000.0, None, None)
    assert window.progress == pytest.approx((1.0, 0.45, 0.9))
    assert not window.complete
    assert window.name == "pruning schedule (not complete)"
    assert "schedule of seeds 8, 9 was not complete at the end of the log" in window.sentence(7)
    (one,) = [window_of(make_run(tmp_path / "one", 1, pace=(0.5,)))]
    assert one is not None
    assert "the pruning schedule was not complete" in one.sentence(0)


def test_without_a_record_the_window_is_the_configured_one(tmp_path: Path) -> None:
    window = window_of(make_run(tmp_path / "run", 2, pace=None, begin=0.2, end=0.7))
    assert window == Window(20_000, 70_000, measured=False)
    assert window.name == "pruning schedule (configured)"
    assert "configured to run; the log does not record when" in window.sentence(0)
    # The log has just begun.
    early = [{"step": 1000, "prune_progress": [0.0, 0.0]}]
    assert pruning_window(read_config(tmp_path / "run"), early) == window
    assert pruning_window({"learner": {"prune": {"begin": 0.1, "end": 0.6}}}, []) is None


def test_the_first_line_may_have_progress() -> None:
    config = config_of([8])
    records: list[dict[str, Any]] = [
        {"step": 10},
        {"step": 20, "prune_progress": [0.5, float("nan")]},
        {"step": 30, "prune_progress": [0.9999999, 1.0]},
    ]
    assert pruning_window(config, records) == Window(0, 30, (30, 30), (0.9999999, 1.0))


def test_a_dense_run_has_no_window(tmp_path: Path) -> None:
    assert window_of(make_run(tmp_path / "run", 2, method="dense")) is None
