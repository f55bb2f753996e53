"""The examples do what the README says of them: few changed lines, the wanted sparsity, the same function compacted."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.conftest import QUICK_FLAGS

EXAMPLES = Path(__file__).parents[2] / "experiments" / "examples"
MARK = "# prune"
# They train long enough for slow programs to cost more than compilation: they run as a user runs them, in a process of
# their own.
TRAIN_LONG = ("convnet", "recurrent_policy", "single_file_ppo")


class Expected(NamedTuple):
    """What a result must reach.

    ``least`` is what a wrong cut misses. Where all is cut at the last update, with no training after it, the digits
    end at 0.14 to 0.25, the tumours at 0.87 and the critics below 0. The PPO's policy survives that; a random one
    returns 22 on CartPole.
    """

    least: float
    widths: list[int]
    weights: int


def dense_sizes(*sizes: int) -> int:
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


EXPECTED = {
    "convnet": Expected(0.9, [4, 8, 16], 10 * 4 + 37 * 8 + dense_sizes(2 * 2 * 8, 16, 10)),
    "critic_ensemble": Expected(0.45, [16, 16], 4 * dense_sizes(5, 16, 16, 1)),
    "equinox_digits": Expected(0.9, [13, 13], dense_sizes(64, 13, 13, 10)),
    "haiku_network": Expected(0.92, [13, 13], dense_sizes(30, 13, 13, 2)),
    "nnx_network": Expected(0.9, [13, 13], dense_sizes(64, 13, 13, 10)),
    "single_file_ppo": Expected(400.0, [7] * 4, dense_sizes(4, 7, 7, 2) + dense_sizes(4, 7, 7, 1)),
}


@pytest.fixture(scope="module", params=EXPECTED)
def name(request: pytest.FixtureRequest) -> str:
    """Of module scope, so that the tests of one example run after each other and share what JAX has compiled."""
    return str(request.param)


def result_of(name: str) -> dict[str, Any]:
    """What the example's ``main`` returns."""
    if name not in TRAIN_LONG:
        result: dict[str, Any] = importlib.import_module(name).main()
        return result
    code = f"import json, {name}; print(json.dumps({name}.main(), default=float))"
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace(QUICK_FLAGS, ""),
        "PYTHONPATH": os.pathsep.join(map(str, (EXAMPLES, EXAMPLES.parents[1]))),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def source(name: str) -> str:
    return (EXAMPLES / f"{name}.py").read_text()


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*EXPECTED, "shrinking", "recurrent_policy"}


def test_a_plain_training_step_goes_on_in_smaller_arrays() -> None:
    """Several times, and the network in the end is that of masks alone, up to rounding."""
    masked, shrinking = (
        importlib.import_module("shrinking").main(width=48, steps=200, shrink=shrink)
        for shrink in (False, True)
    )
    assert masked["width"] == shrinking["width"] == 3  # 48 less 95 %
    widths = list(shrinking["ms per step, by width of the arrays"])
    assert len(widths) >= 3
    assert widths == sorted(widths, reverse=True)
    assert list(masked["ms per step, by width of the arrays"]) == [48]
    np.testing.assert_allclose(masked["logits"], shrinking["logits"], rtol=1e-3, atol=1e-3)


def test_a_recurrent_policy_acts_on_a_small_state() -> None:
    """It balances as well as the masked one, for whole episodes, and nothing of it has the width of before."""
    result = result_of("recurrent_policy")
    assert result["widths"] == {"x": 7}  # 32 less 80 %
    assert result["state"] == 7
    assert result["weights"] == 2 * 21 + 7 * 14 + 7 * 7 + 7 * 2 + 21
    assert result["difference"] < 1e-4  # over 50 steps that feed on each other
    assert result["compact"] >= 400
    assert result["compact"] == pytest.approx(result["masked"], rel=0.05)


def test_the_compact_network_is_small_is_the_masked_function_and_does_its_task(name: str) -> None:
    result, expected = result_of(name), EXPECTED[name]
    widths = result["widths"]
    assert (list(widths.values()) if isinstance(widths, dict) else widths) == expected.widths
    assert result["weights"] == expected.weights
    assert 0 <= result["difference"] < 1e-5
    assert result["compact"] >= expected.least
    assert result["compact"] == pytest.approx(result["masked"], rel=0.01)


def _marked(code: str) -> set[int]:
    return {number for number, line in enumerate(code.splitlines(), 1) if line.endswith(MARK)}


def test_at_most_five_lines_are_marked_and_all_that_prune_are(name: str) -> None:
    code = source(name)
    marked = _marked(code)
    assert len(marked) <= 5
    for node in ast.walk(ast.parse(code)):
        # An imported environment is not pruning; "import prune_rl" and every use of it is.
        if isinstance(node, ast.Name) and node.id == "prune_rl":
            assert node.lineno in marked
        if isinstance(node, ast.Import) and any(alias.name == "prune_rl" for alias in node.names):
            assert node.lineno in marked
        if isinstance(node, ast.stmt) and node.lineno in marked:
            assert node.lineno == node.end_lineno, "a marked statement is one line"


class _WithoutPruning(ast.NodeTransformer):
    """Drops marked lines, and the end of main, which compacts and reports."""

    def __init__(self, marked: set[int]) -> None:
        self.marked = marked

    def visit(self, node: ast.AST) -> Any:
        if (
            isinstance(node, ast.stmt)
            and not isinstance(node, ast.FunctionDef)
            and node.lineno in self.marked
        ):
            return None
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            uses = [i for i, statement in enumerate(node.body) if "masks_of" in ast.unparse(statement)]
            node.body = node.body[: uses[0]]
        return self.generic_visit(node)


def test_without_the_marked_lines_it_is_an_ordinary_training(name: str) -> None:
    code = source(name)
    tree = _WithoutPruning(_marked(code)).visit(ast.parse(code))
    assert "prune_rl." not in ast.unparse(tree).replace("from prune_rl.envs.", "")
    scope: dict[str, Any] = {"__name__": "stripped"}
    exec(compile(tree, f"{name} without pruning", "exec"), scope)
    scope["main"](**{"iterations" if name == "single_file_ppo" else "steps": 1})


def test_the_lines_to_read_are_few(name: str) -> None:
    """As the README counts them: without imports, docstring, the report at the end and the call under __main__."""
    most = {"single_file_ppo": 98, "critic_ensemble": 45}.get(name, 30)
    tree = ast.parse(source(name))
    lines: set[int] = set()
    for statement in tree.body:
        if not isinstance(statement, ast.Import | ast.ImportFrom | ast.Expr | ast.If):
            lines |= {n for node in ast.walk(statement) if isinstance(node, ast.stmt) for n in _span(node)}
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    lines -= {*_span(main.body[-1]), *_span(main.body[-2])}
    code = source(name).splitlines()
    assert sum(bool(code[n - 1].strip()) for n in lines) <= most


def _span(node: ast.stmt) -> range:
    assert node.end_lineno is not None
    return range(node.lineno, node.end_lineno + 1)
