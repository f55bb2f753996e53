from __future__ import annotations

from pathlib import Path

import pytest

from prune_rl.runs.evaluation_file import as_evaluated, own_policy, read_evaluation
from tests.reporting.drawn_runs import make_run


def test_an_evaluation_is_read(tmp_path: Path) -> None:
    pruned, dense = (
        read_evaluation(make_run(tmp_path / method, 2, method=method)) for method in ("dynamic", "dense")
    )
    assert [entry["seed"] for entry in pruned["seeds"]] == [0, 1]
    assert set(pruned["seeds"][0]["policies"]) == {"masked", "compact", "dense"}
    assert own_policy(pruned["seeds"][1]) is pruned["seeds"][1]["policies"]["compact"]
    assert own_policy(dense["seeds"][1]) is dense["seeds"][1]["policies"]["dense"]
    assert own_policy({"policies": {"masked": {}}}) is None


def test_a_repeated_evaluation_overrides_the_configuration() -> None:
    config = {"env": "CartPole-v1", "episodes": 100, "evaluation_seed": 1}
    assert as_evaluated(config, {"episodes": 7, "seeds": []}) == {**config, "episodes": 7}


def test_a_run_that_was_not_evaluated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has not been evaluated: measure it again with .* --write`"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "{}",
        '{"seeds": [{"seed": 0}]}',
        '{"seeds": [{"seed": 0, "policies": {"compact": {"returns": []}}}]}',
        '{"seeds": [{"seed": 0, "policies": {"compact": {"returns": [NaN]}}}]}',
        '{"seeds": [{"seed": 0, "policies": {"compact": {"returns": [1.0]}}}]}',
    ],
)
def test_damaged_evaluation(tmp_path: Path, damage: str) -> None:
    (tmp_path / "evaluation.json").write_text(damage)
    with pytest.raises(ValueError, match=r"evaluation.json is damaged .* --write`"):
        read_evaluation(tmp_path)
