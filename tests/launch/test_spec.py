from __future__ import annotations

from pathlib import Path

import pytest

from prune_rl.launch.spec import folder_of, read_spec
from tests.launch.grid_files import write_spec


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_one_value_stands_for_a_list_of_one() -> None:
    spec = read_spec(write_spec('[grid]\nenv = "CartPole-v1"\nseed = [0, 2]\nseeds = 2\n'))
    assert spec.cells == [("CartPole-v1", "ppo", "dynamic"), ("CartPole-v1", "ppo", "dense")]
    assert spec.grid.seed == (0, 2)
    assert folder_of(Path("a/grid.toml"), spec) == Path("runs/grid")
    assert folder_of(Path("a/grid.toml"), spec, Path("there")) == Path("there")


def test_overrides_replace_options_of_the_jobs_that_they_match() -> None:
    spec = read_spec(
        write_spec(
            """
            output = "results/a"
            [grid]
            env = ["A", "B"]
            method = ["dynamic", "dense"]
            [options]
            steps = 10
            prune.tolerance = 0.1
            [[override]]
            env = "B"
            options.steps = 20
            [[override]]
            env = "B"
            method = "dynamic"
            options = { num_envs = 3, prune = { tolerance = 0.2 } }
            """
        )
    )
    assert spec.options_of("A", "ppo", "dynamic") == {"steps": 10, "prune.tolerance": 0.1}
    assert spec.options_of("B", "ppo", "dense") == {"steps": 20, "prune.tolerance": 0.1}
    assert spec.options_of("B", "ppo", "dynamic") == {"steps": 20, "prune.tolerance": 0.2, "num-envs": 3}
    assert folder_of(Path("grid.toml"), spec) == Path("results/a")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[grid\n", "grid.toml: "),
        ("[grid]\n", "grid.*env"),
        ('[grid]\nenvs = ["A"]\nenv = "A"\n', "unknown field 'grid.envs'; known are algo, env, method, seed"),
        ('[grid]\nenv = "A"\nseed = ["0"]\n', "grid.seed must be a whole number, got '0'"),
        ('[grid]\nenv = "A"\nmethod = []\n', "grid.method is an empty list"),
        ('[grid]\nenv = ["A", "A"]\n', "grid.env has 'A' twice"),
        ('[grid]\nenv = "A"\nseed = [0, 1]\nseeds = 2\n', "seed 1 would be trained twice"),
        ('[grid]\nenv = "A"\nseeds = 0\n', "grid.seeds must be >= 1, got 0"),
        (
            '[grid]\nenv = "A"\n[engine]\nkind = "pbs"\n',
            "engine.kind must be one of local, slurm, ray, got 'pbs'",
        ),
        ('[grid]\nenv = "A"\n[engine]\nmax_jobs = 0\n', "engine.max_jobs must be >= 1, got 0"),
        ('[grid]\nenv = "A"\n[engine]\nmemory_per_job = 0\n', "engine.memory_per_job must be > 0"),
        ('[grid]\nenv = "A"\n[engine.slurm]\nqueue = "gpu"\n', "unknown field 'engine.slurm.queue'"),
        ('[grid]\nenv = "A"\n[options]\nseed = 3\n', "options has 'seed', .*: it is an axis of"),
        ('[grid]\nenv = "A"\n[options]\nrun-dir = "x"\n', "options has 'run-dir', .*: the grid chooses it"),
        (
            '[grid]\nenv = "A"\n[[override]]\nenv = "B"\noptions = {}\n',
            "override 1 is for env 'B', which .* A",
        ),
        ('[grid]\nenv = "A"\n[[override]]\noptions = { sweep = [] }\n', "override 1 has 'sweep'"),
        ("grid = 3\n", "grid must be a table of fields, got 3"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        read_spec(write_spec(text))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("grid.toml: ")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"there is no file 'absent\.toml'"):
        read_spec(Path("absent.toml"))
