from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.runs.mask_history import MaskHistory


def masks(*kept: int) -> dict[str, Any]:
    return {"actor/layer_0": jnp.arange(12)[None] < jnp.array(kept)[:, None], "file": jnp.array([[True]])}


def test_masks_over_time(tmp_path: Path) -> None:
    history = MaskHistory(tmp_path / "masks")
    history.write(0, masks(12, 12))
    history.write(100, masks(12, 12))
    history.write(200, masks(12, 7))
    # One file per change; in between the newest one before holds.
    assert history.steps() == [0, 200]
    for step, kept in [(0, (12, 12)), (150, (12, 12)), (200, (12, 7)), (10**9, (12, 7))]:
        found = MaskHistory(tmp_path / "masks").read(step)
        assert found.keys() == {"actor/layer_0", "file"}
        np.testing.assert_array_equal(found["actor/layer_0"], masks(*kept)["actor/layer_0"])
        assert found["actor/layer_0"].dtype == np.bool_


def test_a_continued_mask_history_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    kept = {0: 12, 100: 12, 200: 7, 300: 7, 400: 5}
    whole, cut = MaskHistory(tmp_path / "whole"), MaskHistory(tmp_path / "cut")
    for step, width in kept.items():
        whole.write(step, masks(width))
        cut.write(step, masks(width))
    again = MaskHistory(tmp_path / "cut")
    again.rewind(200)
    assert again.steps() == [0, 200]
    again.write(300, masks(7))
    again.write(400, masks(5))
    files = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("whole", "cut")
    ]
    assert files[0] == files[1]
    again.rewind(-1)
    assert again.steps() == []
    with pytest.raises(ValueError, match="holds no masks up to step 400"):
        again.read(400)


def test_bad_masks(tmp_path: Path) -> None:
    history = MaskHistory(tmp_path)
    with pytest.raises(TypeError, match="the mask of a has dtype float32, it must be bool"):
        history.write(0, {"a": jnp.ones(3)})
    pickled: dict[str, Any] = {"masks/a": np.array([object()])}
    np.savez(tmp_path / "step_000000000001.npz", **pickled)
    (tmp_path / "step_000000000002.npz").write_bytes(b"no archive")
    (tmp_path / "step_000000000003.npz").write_bytes(b"")
    for step in (1, 2, 3):
        with pytest.raises(ValueError, match="is damaged"):
            history.read(step)
    # A damaged file does not prevent the next write.
    MaskHistory(tmp_path).write(4, masks(3))
    np.testing.assert_array_equal(history.read(9)["actor/layer_0"], masks(3)["actor/layer_0"])


def test_a_dense_run_has_no_masks(tmp_path: Path) -> None:
    history = MaskHistory(tmp_path)
    history.write(0, {})
    history.write(100, {})
    assert history.steps() == [0]
    assert MaskHistory(tmp_path).read(100) == {}
