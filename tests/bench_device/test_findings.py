from __future__ import annotations

import pytest

from prune_rl.bench_device.findings import findings
from prune_rl.bench_device.report import markdown


def row(case: str, seeds: int, seconds: float, **more: object) -> dict[str, object]:
    times = {"seconds": seconds, "lowest": seconds, "highest": seconds}
    return {"case": case, "seeds": seeds, "status": "measured", **times, **more}


LATE = {"case": "300 seeds", "seeds": 300, "status": "no time left"}


def test_a_cost_per_seed_is_compared_with_one_seed_alone() -> None:
    sixty_four, three_hundred = findings("ppo", [row("1", 1, 0.5), row("64", 64, 1.0), row("300", 300, 1.5)])
    assert sixty_four["value"] == pytest.approx(1 / 32)
    assert sixty_four["one_in"] == pytest.approx(32)
    assert (sixty_four["target"], sixty_four["reached"]) == (1 / 20, True)
    assert three_hundred["value"] == pytest.approx(1 / 100)
    assert (three_hundred["target"], three_hundred["reached"]) == (1 / 170, False)


def test_the_target_of_sac_is_for_any_number_of_seeds() -> None:
    (found,) = findings("sac", [row("1", 1, 1.0), row("64", 64, 1.0), LATE])
    assert (found["target"], found["reached"]) == (1 / 60, True)
    (too_few,) = findings("sac", [row("1", 1, 1.0), row("8", 8, 1.0)])
    assert "target" not in too_few


@pytest.mark.parametrize("rows", [[], [LATE], [row("64", 64, 1.0)]])
def test_without_one_seed_alone_there_is_no_ratio(rows: list[dict[str, object]]) -> None:
    assert findings("ppo", rows) == []


def test_from_which_number_of_seeds_the_device_is_faster() -> None:
    host = [row("h", 1, 0.1, backend="envpool"), row("h", 8, 0.4, backend="envpool")]

    def device(*times: float) -> list[dict[str, object]]:
        return [row("d", n, each, backend="jax") for n, each in zip((1, 8, 64), times, strict=True)]

    *ratios, crossing = findings("mjx", [*host, *device(0.5, 0.5, 0.8)])
    assert [ratio["value"] for ratio in ratios] == pytest.approx([5.0, 1.25, 0.25])
    assert "envpool on the host (8 seeds, in proportion)" in ratios[-1]["name"]
    assert crossing["value"] == 64
    assert findings("mjx", [*host, *device(0.05, 0.5, 0.8)])[-1]["value"] == 64, "slower at 8 seeds"
    assert findings("mjx", [*host, *device(0.05, 0.05, 0.05)])[-1]["value"] == 1
    assert findings("mjx", [*host, *device(9, 9, 9)])[-1]["value"] is None
    assert findings("mjx", host) == []


def test_two_runs_have_equal_bits_or_not() -> None:
    rows = [
        row("with the flag, first run", 8, 3.0, sha256="a"),
        row("without the flag, first run", 8, 2.0, sha256="a"),
        row("with the flag, second run", 8, 3.0, sha256="a"),
        row("without the flag, second run", 8, 2.0, sha256="b"),
    ]
    cost, on, off = findings("deterministic", rows)
    assert (cost["value"], on["value"], off["value"]) == (1.5, True, False)
    (only,) = findings("deterministic", rows[:2])
    assert only == cost


def test_the_page_says_what_was_found_and_what_was_not_measured() -> None:
    rows = [row("1 seed", 1, 0.5), row("64 seeds", 64, 1.0), LATE]
    broken = {"case": "8 seeds", "seeds": 8, "status": "failed", "error": "XlaRuntimeError: out of memory"}
    report = {
        "device": {"platform": "gpu", "kind": "Some GPU", "count": 2},
        "versions": {"python": "3", "jax": "1", "jaxlib": "1", "cpu": "P"},
        "matmul_precision": "highest",
        "took": 12.0,
        "options": {"time_limit": 450.0},
        "sections": [
            {"title": "T", "text": "t", "findings": findings("ppo", rows), "rows": [*rows, broken]},
            {"title": "U", "text": "u", "findings": [{"name": "seeds", "value": None}], "rows": []},
        ],
    }
    page = markdown(report)
    assert "2 × Some GPU (gpu), one of them used" in page
    assert "matmul precision: highest" in page
    assert "1/32.0 | 1/20, reached |" in page
    assert "not measured: no time left" in page
    assert "failed: XlaRuntimeError: out of memory" in page
    assert "| seeds |  none |" in page
    assert "says nothing" not in page
