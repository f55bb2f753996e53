from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prune_rl import compilation_cache
from prune_rl.compilation_cache import cache_folder, remove_incomplete

# A program's first lines: what a process compiled and what it found is counted from the start.
COUNTED = """
import collections, json, sys
import jax, jax.numpy as jnp
from prune_rl import cli, compilation_cache
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
"""
REPORT = """
found = [events[f"/jax/compilation_cache/cache_{what}"] for what in ("hits", "misses")]
print(json.dumps([*found, jax.config.jax_compilation_cache_dir]))
"""
TRAIN = [
    *("train", "CartPole-v1", "--no-control", "--hidden", "4", "4", "--num-envs", "2", "--num-steps", "8"),
    *("--num-minibatches", "2", "--update-epochs", "1", "--steps", "64", "--episodes", "1", "--run-dir"),
]


def in_a_process(code: str, *arguments: str, **environment: str) -> list[Any]:
    """Hits, misses and cache folder of a process that runs ``code`` without the cache of the tests."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(
            ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "JAX_ENABLE_COMPILATION_CACHE")
        )
    }
    done = subprocess.run(
        [sys.executable, "-c", COUNTED + code + REPORT, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "compilation cache entry" not in done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_same_command_compiles_nothing_the_second_time(tmp_path: Path) -> None:
    policies = []
    for name in ("first", "second"):
        hits, misses, folder = in_a_process(
            "assert cli.main(sys.argv[1:]) == 0", *TRAIN, str(tmp_path / name), XDG_CACHE_HOME=str(tmp_path)
        )
        assert Path(folder).is_relative_to(tmp_path) or sys.platform != "linux"
        policies.append((tmp_path / name / "policy" / "policy.safetensors").read_bytes())
        # A few small programs are the same within one process.
        assert misses > hits if name == "first" else (misses == 0 and hits > 10)
    assert policies[0] == policies[1]


def test_what_the_user_set_wins_and_an_import_sets_nothing(tmp_path: Path) -> None:
    code = """
before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
assert before[1] > 0
assert compilation_cache.enable() == ""
jnp.arange(7)
after = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
assert before == after
"""
    own = str(tmp_path / "own")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert in_a_process(code, JAX_COMPILATION_CACHE_DIR=own, **environment)[2] == own
    assert in_a_process(code, JAX_ENABLE_COMPILATION_CACHE="false", **environment) == [0, 0, None]
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_gives_a_note_and_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = (
        "note = compilation_cache.enable(); assert 'JAX_COMPILATION_CACHE_DIR' in note, note; jnp.arange(7)"
    )
    assert in_a_process(code, XDG_CACHE_HOME=str(tmp_path / "file")) == [0, 0, None]


def test_the_least_recently_used_program_goes(tmp_path: Path) -> None:
    code = """
from pathlib import Path
folder = Path(sys.argv[1])
compilation_cache.enable(folder, max_bytes=60_000)
for size in range(2, 40):
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((size, size)))
assert 0 < sum(path.stat().st_size for path in folder.glob("*-cache")) <= 60_000
"""
    _, misses, _ = in_a_process(code, str(tmp_path))
    assert misses > len(list(tmp_path.glob("*-cache"))) > 0


def test_a_program_that_was_written_in_part_is_removed(tmp_path: Path) -> None:
    for name in ("whole-cache", "whole-atime", "part-cache"):
        (tmp_path / name).write_bytes(b"12345678")
    remove_incomplete(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {".lockfile"} == {"whole-cache", "whole-atime"}


def test_the_folder_is_one_per_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cache_folder()
    assert here == cache_folder()
    monkeypatch.setattr(compilation_cache, "_processor", lambda: "another")
    assert cache_folder() == here.parent / "another"
